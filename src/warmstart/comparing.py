"""Is one model better than another? A paired comparison on the same examples, with an interval and a verdict.

Both models are resampled together, so that what is hard for both cancels. For accuracy the exact test of McNemar (1947)
has to agree, since percentiles of a few discordant examples are too sure of themselves. A tie goes to the cheaper.
Many comparisons at once are corrected by Holm (1979, A Simple Sequentially Rejective Multiple Test Procedure).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from warmstart import bootstrap, runtime
from warmstart import metrics as measures
from warmstart.errors import DataError, RecipeError, closest
from warmstart.evaluation import checked, default_metric
from warmstart.tasks import MetricSpec, Predictions, Task

Verdict: TypeAlias = Literal["a", "b", "tie"]
SIGNIFICANT = 1 - bootstrap.LEVEL
FEWEST = 5
"""Units less strata below which no verdict is given."""


@dataclass(frozen=True)
class Comparison:
    """What a paired comparison found."""

    metric: str
    a: float
    b: float
    difference: float
    """a minus b, whichever way is up."""
    low: float
    high: float
    p_value: float
    """Two-sided: how often so large a difference comes from chance alone; exact for accuracy without groups."""
    n: int
    verdict: Verdict
    """The better one, or `tie` when the examples do not tell."""
    p_corrected: float | None = None
    """Holm's p-value where this is one of several comparisons; the verdict goes by it."""

    def words(self, a: str = "a", b: str = "b") -> str:
        """Say it in a sentence.

        Example:
            >>> Comparison("accuracy", 0.9, 0.8, 0.1, 0.02, 0.18, 0.01, 100, "a").words("lp_ft", "probe")
            'lp_ft is better than probe: accuracy 0.900 against 0.800, difference 0.100 (0.020 to 0.180, n = 100)'
        """
        numbers = f"{self.metric} {self.a:.3f} against {self.b:.3f}, difference {self.difference:.3f}"
        sure = f"({self.low:.3f} to {self.high:.3f}, n = {self.n:,})"
        if self.verdict == "tie":
            return f"no difference between {a} and {b} that {self.n:,} examples can show: {numbers} {sure}"
        better, worse = (a, b) if self.verdict == "a" else (b, a)
        return f"{better} is better than {worse}: {numbers} {sure}"


def paired(
    task: Task,
    a: Predictions,
    b: Predictions,
    *,
    seed: int,
    metric: str | None = None,
    resamples: int = 1000,
) -> Comparison:
    """Compare two sets of predictions on the same examples; out-of-fold predictions work the same way.

    Args:
        task: A bound task.
        a: Predictions of the first model.
        b: Predictions of the second one, on the same rows in any order.
        seed: Of the resampling, stratified and grouped as in `evaluation.metrics`.
        metric: Name of the metric; the task's default without it.
        resamples: Bootstrap resamples.

    Raises:
        DataError: The rows or targets differ, or the metric is not defined on them.
        RecipeError: The task has no such metric.
    """
    return measured(task, (a, b), seed=seed, metric=metric, resamples=resamples, names="ab").pair(0, 1)


def many(
    task: Task,
    predictions: Sequence[Predictions],
    *,
    reference: int,
    seed: int,
    metric: str | None = None,
    resamples: int = 1000,
    chosen: bool = False,
) -> list[Comparison]:
    """Compare every model with one of them, on resamples that all share, with verdicts that hold together.

    Each comparison is what `paired` finds, and its verdict has to survive Holm's correction for all of them. Where the
    reference is the leader, chosen on these very examples, the truly best model is still called worse in at most 5 %
    of the cases, since that takes one of k - 1 rivals to beat it by chance; but that one of several equal models is
    called worse happens in 10 %. `chosen` corrects for all k (k - 1) / 2 pairs, and brings that, too, under 5 %.

    Args:
        task: A bound task.
        predictions: Of k models, on the same rows in any order.
        reference: Position of the model that the others are compared with.
        seed: Of the resampling.
        metric: Name of the metric; the task's default without it.
        resamples: Bootstrap resamples.
        chosen: The reference is the best of these examples, and every verdict counts, not only that on the best.

    Returns:
        One comparison per model, in their order: a is that model, b the reference, which ties with itself.

    Raises:
        DataError: The rows or targets differ, or the metric is not defined on them.
        RecipeError: The task has no such metric.
    """
    side_by_side = measured(task, predictions, seed=seed, metric=metric, resamples=resamples)
    rivals = [at for at in range(len(predictions)) if at != reference]
    num_pairs = len(predictions) * len(rivals) // 2 if chosen else None
    found = corrected([side_by_side.pair(at, reference) for at in rivals], num_pairs=num_pairs)
    own = side_by_side.pair(reference, reference)
    return [*found[:reference], replace(own, p_corrected=1.0), *found[reference:]]


def corrected(comparisons: Sequence[Comparison], *, num_pairs: int | None = None) -> list[Comparison]:
    """Let the verdicts of several comparisons go by Holm's p-values: false ones in at most 5 % of such families.

    Args:
        comparisons: What is said.
        num_pairs: What could have been said, where these were picked from more.
    """
    p_values = holm([one.p_value for one in comparisons], num=num_pairs)
    return [
        replace(one, p_corrected=p, verdict="tie" if p >= SIGNIFICANT else one.verdict)
        for one, p in zip(comparisons, p_values, strict=True)
    ]


def holm(p_values: Sequence[float], *, num: int | None = None) -> list[float]:
    """Correct p-values for their number: the smallest by m, the next by m - 1, and so on, never falling.

    Args:
        p_values: Of tests that are looked at together.
        num: m, where these are the smallest of more; how many they are without it.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = (len(p_values) if num is None else num) - np.arange(len(p_values))
    raised = np.minimum(np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors), 1.0)
    back = np.empty(len(p_values))
    back[order] = raised
    return [float(p) for p in back]


@dataclass(frozen=True)
class SideBySide:
    """One metric of k models on the same examples and the same resamples, from which any two are compared.

    Shape:
        values: float64 (k,), on all examples.
        replicates: float64 (k, R), on each resample.
        hits: bool (k, N), where the metric is a plain share of right examples without groups; else None.
        spread: float64 (k,), variance of the value that comes from seeds; 0 for a single seed, which shows none.
        seeds: int64 (k,), how many seeds a value is the mean of.
    """

    metric: MetricSpec
    values: np.ndarray
    replicates: np.ndarray
    hits: np.ndarray | None
    drawn: bootstrap.Design
    spread: np.ndarray
    seeds: np.ndarray

    def pair(self, a: int, b: int) -> Comparison:
        """Compare two of the models."""
        difference = float(self.values[a] - self.values[b])
        replicates = self.replicates[a] - self.replicates[b]
        finite = replicates[np.isfinite(replicates)]
        low, high, p_value = _judged(difference, finite, self.freedom(finite, a, b), units=self.drawn.freedom)
        n = len(self.drawn.unit_of)
        if self.hits is not None and self.seeds[a] == self.seeds[b] == 1:
            only_a, only_b = int((self.hits[a] & ~self.hits[b]).sum()), int((self.hits[b] & ~self.hits[a]).sum())
            low, high, p_value = _exact(low, high, only_a, only_b, n)
        verdict = _verdict(low, high, p_value, higher_is_better=self.metric.higher_is_better)
        values = float(self.values[a]), float(self.values[b])
        return Comparison(self.metric.name, *values, difference, low, high, p_value, n, verdict)

    def freedom(self, replicates: np.ndarray, *models: int) -> float:
        """Return degrees of freedom of a spread from examples and from a few seeds (Welch, Satterthwaite)."""
        of_seeds = [(float(self.spread[at]), int(self.seeds[at]) - 1) for at in models if self.spread[at] > 0]
        if not of_seeds:
            return self.drawn.freedom
        whole = max(float(replicates.var()), sum(part for part, _ in of_seeds))
        of_examples = whole - sum(part for part, _ in of_seeds)
        parts = [(of_examples, self.drawn.freedom), *of_seeds]
        return whole**2 / sum(part**2 / freedom for part, freedom in parts)

    def means(self, members: Sequence[Sequence[int]], *, seed: int) -> SideBySide:
        """Return the means of several models each, such as the seeds of one recipe, on the same examples.

        Resamples are of two levels: the examples, shared by all, and within each mean S - 1 of its S models, whose
        mean spreads by s² / S. What examples do to one seed and not to another is in both, and is taken out of the
        second (two-way analysis of variance).

        Args:
            members: Positions of the models behind each mean.
            seed: Of the resampling of models.
        """
        replicates, spread = [], []
        for number, rows in enumerate(members):
            own = self.replicates[list(rows)]  # (S, R)
            moved, variance = _seed_noise(self.values[list(rows)], own, runtime.rng(seed, "seeds", number))
            replicates.append(own.mean(axis=0) + moved)
            spread.append(variance)
        return SideBySide(
            self.metric,
            np.array([self.values[list(rows)].mean() for rows in members]),
            np.stack(replicates),
            None if self.hits is None else self.hits[[rows[0] for rows in members]],
            self.drawn,
            np.array(spread),
            np.array([len(rows) for rows in members]),
        )


def measured(
    task: Task,
    predictions: Sequence[Predictions],
    *,
    seed: int,
    metric: str | None = None,
    resamples: int = 1000,
    names: Sequence[str] = (),
) -> SideBySide:
    """Measure several models on the same examples and on the same resamples of them.

    Args:
        task: A bound task.
        predictions: On the same rows in any order.
        seed: Of the resampling, stratified and grouped as in `evaluation.metrics`.
        metric: Name of the metric; the task's default without it.
        resamples: Bootstrap resamples.
        names: What errors call the models; by their position without it.

    Raises:
        DataError: The rows or targets differ, or the metric is not defined on them.
        RecipeError: The task has no such metric.
    """
    spec = _spec(task, metric)
    sides, targets = _aligned(predictions, names or [f"model {at}" for at in range(len(predictions))])
    of = [measures.measure(task.kind, side.values, targets, only=(spec.name,)) for side in sides]
    values = np.array([one(np.ones((len(targets), 1)))[spec.name][0] for one in of])
    if not np.isfinite(values).all():
        raise DataError(f"{spec.name} is not defined on these {len(targets)} examples", "compare by another metric")
    drawn = bootstrap.design(task.kind, targets, sides[0].groups)
    blocks = [
        np.stack([one(w)[spec.name] for one in of]) for w in bootstrap.weights(drawn, seed=seed, resamples=resamples)
    ]  # (k, R') each
    hits = None if sides[0].groups is not None else _hits(spec.name, sides, targets)
    replicates = np.concatenate(blocks, axis=1)
    return SideBySide(spec, values, replicates, hits, drawn, np.zeros(len(sides)), np.ones(len(sides), dtype=np.int64))


def _seed_noise(values: np.ndarray, replicates: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return what other seeds would have done to the mean, beyond what examples do to it, and the variance s² / S.

    Shape:
        values: float64 (S,). replicates: float64 (S, R). Returns float64 (R,).
    """
    num, resamples = replicates.shape
    variance = float(values.var(ddof=1)) / num if num > 1 else 0.0
    if variance <= bootstrap.EPS:
        return np.zeros(resamples), 0.0
    centred = replicates - replicates.mean(axis=1, keepdims=True)
    own = float((centred - centred.mean(axis=0)).var(axis=1).sum()) / (num - 1) / num
    picked = (values - values.mean())[draw.integers(0, num, (num - 1, resamples))].mean(axis=0)
    return picked * np.sqrt(max(variance - own, 0.0) / variance), variance


def _spec(task: Task, metric: str | None) -> MetricSpec:
    specs = {spec.name: spec for spec in task.metrics()}
    name = metric or default_metric(task).name
    if name not in specs:
        raise RecipeError(f"unknown metric {name!r}", closest(name, specs))
    return specs[name]


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    Args:
        only_a: Examples that only the first model got right.
        only_b: Examples that only the second one got right.

    Example:
        >>> mcnemar(5, 0)
        0.0625
    """
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue)


def _aligned(predictions: Sequence[Predictions], names: Sequence[str]) -> tuple[list[Predictions], np.ndarray]:
    """Put all predictions in the order of their rows, which have to be the same, with the same targets."""
    first, sides = predictions[0], []
    for side, name in zip(predictions, names, strict=True):
        common = len(np.intersect1d(first.index, side.index))
        if not common == len(first.index) == len(side.index):
            problem = (
                f"{names[0]} has predictions for {len(first.index)} examples and {name} for {len(side.index)}, "
                f"{common} of them the same; expected the same examples"
            )
            raise DataError(problem, "predict with both models on the same split")
        sides.append(side.take(np.argsort(side.index, kind="stable")))
    targets = checked(sides[0], names[0])
    for side, name in zip(sides[1:], names[1:], strict=True):
        others = checked(side, name)
        if not np.array_equal(targets, others):
            raise DataError(
                f"{names[0]} and {name} have different targets for {int((targets != others).sum())} "
                f"of {len(targets)} examples",
                "predict with both models on the same data",
            )
    return sides, targets


def _judged(difference: float, replicates: np.ndarray, freedom: float, *, units: int) -> tuple[float, float, float]:
    """Return the wider of the percentile and Student's interval, and Student's p-value, from the bootstrap's spread.

    With very few units nothing can be told: the exact test, too, needs six discordant examples for p < 0.05.
    """
    from scipy.stats import t

    spread = float(replicates.std()) if len(replicates) > 1 else 0.0
    if units < FEWEST or spread <= bootstrap.EPS:
        clear = units >= FEWEST and abs(difference) > bootstrap.EPS
        return difference, difference, 0.0 if clear else 1.0
    low, high = bootstrap.percentile(replicates)
    half = float(t.ppf(0.5 + bootstrap.LEVEL / 2, freedom)) * spread
    return min(low, difference - half), max(high, difference + half), float(2 * t.sf(abs(difference) / spread, freedom))


def _hits(name: str, sides: Sequence[Predictions], targets: np.ndarray) -> np.ndarray | None:
    """Say what each model got right, (k, N), where the metric is a plain share of right examples."""
    if name == "accuracy":
        return np.stack([side.values.argmax(axis=1) == targets for side in sides])
    if name == "subset_accuracy":
        return np.stack([((side.values >= measures.THRESHOLD) == targets).all(axis=1) for side in sides])
    return None


def _exact(low: float, high: float, only_a: int, only_b: int, n: int) -> tuple[float, float, float]:
    """Take the wider of the bootstrap's interval and that of Agresti and Min (2005), which holds for few discordant."""
    total = n + 2
    centre = (only_a - only_b) / total
    spread = np.sqrt(max(only_a + only_b + 1 - (only_a - only_b) ** 2 / total, 0.0)) / total
    half = 1.959964 * float(spread)
    return min(low, centre - half), max(high, centre + half), mcnemar(only_a, only_b)


def _verdict(low: float, high: float, p_value: float, *, higher_is_better: bool) -> Verdict:
    if low <= 0 <= high or p_value >= SIGNIFICANT:
        return "tie"
    return "a" if (low > 0) == higher_is_better else "b"
