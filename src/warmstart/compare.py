"""Is one model better than another? A paired comparison on the same examples, with an interval and a verdict.

Both models are resampled together, so that what is hard for both cancels. For accuracy the exact test of McNemar (1947)
has to agree, since percentiles of a few discordant examples are too sure of themselves. A tie goes to the cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from warmstart import bootstrap
from warmstart import metrics as measures
from warmstart.errors import DataError, RecipeError, closest
from warmstart.evaluation import checked, default_metric
from warmstart.tasks import Predictions, Task

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
    specs = {spec.name: spec for spec in task.metrics()}
    name = metric or default_metric(task).name
    if name not in specs:
        raise RecipeError(f"unknown metric {name!r}", closest(name, specs))
    a, b, targets = _aligned(a, b)
    of = [measures.measure(task.kind, side.values, targets, only=(name,)) for side in (a, b)]
    value_a, value_b = (float(one(np.ones((len(targets), 1)))[name][0]) for one in of)
    difference = value_a - value_b
    if not np.isfinite(difference):
        raise DataError(f"{name} is not defined on these {len(targets)} examples", "compare by another metric")
    drawn = bootstrap.design(task.kind, targets, a.groups)
    replicates = np.concatenate(
        [of[0](w)[name] - of[1](w)[name] for w in bootstrap.weights(drawn, seed=seed, resamples=resamples)]
    )
    low, high, p_value = _judged(difference, replicates[np.isfinite(replicates)], drawn)
    hits = _hits(name, a, b, targets) if a.groups is None else None
    if hits is not None:
        low, high, p_value = _exact(low, high, *hits, len(targets))
    verdict = _verdict(low, high, p_value, higher_is_better=specs[name].higher_is_better)
    return Comparison(name, value_a, value_b, difference, low, high, p_value, len(targets), verdict)


def cheaper_wins_ties(comparison: Comparison, *, cost_a: float, cost_b: float) -> Literal["a", "b"]:
    """Name the winner; in a tie the one that costs less, and `a` when the costs are equal too."""
    if comparison.verdict != "tie":
        return comparison.verdict
    return "a" if cost_a <= cost_b else "b"


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


def _aligned(a: Predictions, b: Predictions) -> tuple[Predictions, Predictions, np.ndarray]:
    common = len(np.intersect1d(a.index, b.index))
    if not common == len(a.index) == len(b.index):
        problem = (
            f"a has predictions for {len(a.index)} examples and b for {len(b.index)}, {common} of them the same; "
            "expected the same examples"
        )
        raise DataError(problem, "predict with both models on the same split")
    a, b = a.take(np.argsort(a.index, kind="stable")), b.take(np.argsort(b.index, kind="stable"))
    targets, others = checked(a, "a"), checked(b, "b")
    if not np.array_equal(targets, others):
        raise DataError(
            f"a and b have different targets for {int((targets != others).sum())} of {len(targets)} examples",
            "predict with both models on the same data",
        )
    return a, b, targets


def _judged(difference: float, replicates: np.ndarray, drawn: bootstrap.Design) -> tuple[float, float, float]:
    """Return the wider of the percentile and Student's interval, and Student's p-value, from the bootstrap's spread.

    With very few units nothing can be told: the exact test, too, needs six discordant examples for p < 0.05.
    """
    from scipy.stats import t

    freedom = drawn.freedom
    spread = float(replicates.std()) if len(replicates) > 1 else 0.0
    if freedom < FEWEST or spread <= bootstrap.EPS:
        clear = freedom >= FEWEST and abs(difference) > bootstrap.EPS
        return difference, difference, 0.0 if clear else 1.0
    low, high = bootstrap.percentile(replicates)
    half = float(t.ppf(0.5 + bootstrap.LEVEL / 2, freedom)) * spread
    return min(low, difference - half), max(high, difference + half), float(2 * t.sf(abs(difference) / spread, freedom))


def _hits(name: str, a: Predictions, b: Predictions, targets: np.ndarray) -> tuple[int, int] | None:
    """Count what only a and only b got right, where the metric is a plain share of right examples."""
    if name == "accuracy":
        right_a, right_b = (side.values.argmax(axis=1) == targets for side in (a, b))
    elif name == "subset_accuracy":
        right_a, right_b = (((side.values >= measures.THRESHOLD) == targets).all(axis=1) for side in (a, b))
    else:
        return None
    return int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())


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
