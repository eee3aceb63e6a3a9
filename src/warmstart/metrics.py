"""Metrics as functions of weights on examples, so that a thousand bootstrap resamples are a few matrix products.

`measure` prepares what does not depend on the weights (hits, sorted scores, bins) and returns a function from weights
(N, R) to every metric (R,). Weights of 1 give the plain metric; the counts of a resample give the metric on it.
A metric that is not defined on a resample (AUROC without a negative) is NaN there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from warmstart.data import TargetKind

Measure: TypeAlias = Callable[[np.ndarray], dict[str, np.ndarray]]
NUM_BINS = 15
"""Bins of equal width of the expected calibration error (Guo et al., arXiv 1706.04599)."""
TOP_K = 5
THRESHOLD = 0.5
RANKED = frozenset({"auroc", "average_precision", "spearman"})
"""Metrics that sort examples once per class; they cost the most on resamples."""
AVERAGES = ("macro", "micro", "weighted")
Scale: TypeAlias = Literal["share", "positive", "below_one", "correlation", "bias"]
_SCALES: dict[str, Scale] = {
    **dict.fromkeys(("log_loss", "brier", "mse", "rmse", "mae"), "positive"),
    "r2": "below_one",
    "spearman": "correlation",
    "ece": "bias",
}


def scale(name: str) -> Scale:
    """Say what values a metric takes, which decides the form of its interval; most are shares of 1."""
    return _SCALES.get(name, "share")


def measure(
    kind: TargetKind, values: np.ndarray, targets: np.ndarray, *, only: Collection[str] | None = None
) -> Measure:
    """Prepare the metrics of these predictions.

    Args:
        kind: What the targets are, as in `Dataset.kind`.
        values: Probabilities, or numbers in target units.
        targets: As in `Dataset.targets`.
        only: Names of the metrics that are wanted; all without it.

    Returns:
        A function from weights to metrics by name.

    Shape:
        values: float (N, C) or (N, K). Weights: float64 (N, R). Each metric: float64 (R,).
    """
    wanted = _Wanted(only)
    if kind == "single":
        return _single(values, targets, wanted)
    if kind == "multi":
        return _multi(values, targets.astype(bool), wanted)
    columns = np.asarray(targets, dtype=np.float64).reshape(len(values), -1)  # (N, K)
    return _numbers(np.asarray(values, dtype=np.float64).reshape(len(values), -1), columns, wanted)


@dataclass(frozen=True)
class ClassCounts:
    """Weighted counts per class.

    Shape:
        hits, predicted, support: float64 (C, R): true positives, predicted positives, actual positives.
    """

    hits: np.ndarray
    predicted: np.ndarray
    support: np.ndarray

    def scores(self) -> dict[str, np.ndarray]:
        """Return precision, recall and F1 per class, each (C, R), 0 where the denominator is 0."""
        return {
            "precision": _ratio(self.hits, self.predicted, 0.0),
            "recall": _ratio(self.hits, self.support, 0.0),
            "f1": _ratio(2 * self.hits, self.predicted + self.support, 0.0),
        }


def class_counts(kind: TargetKind, values: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray], ClassCounts]:
    """Prepare hits, predictions and support per class as functions of the weights."""
    num_classes = values.shape[1]
    if kind == "multi":
        said, true = _sparse(values >= THRESHOLD), _sparse(targets.astype(bool))
        hit = _sparse((values >= THRESHOLD) & targets.astype(bool))
    else:
        top = values.argmax(axis=1)
        said, true = _indicator(top, num_classes), _indicator(targets, num_classes)
        hit = _indicator(targets, num_classes, (top == targets).astype(np.float64))
    return lambda weights: ClassCounts(hit @ weights, said @ weights, true @ weights)


def calibration_bins(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence: bin b holds ((b) / 15, (b + 1) / 15], and bin 0 also 0."""
    return np.clip(np.ceil(confidence.astype(np.float64) * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)


def confidences(kind: TargetKind, values: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what calibration compares: the probability of the answer, and whether it was right.

    Returns:
        For `single`, the top probability and whether the class is right, (N, 1) each; for `multi`, every label's
        probability and whether it is on, (N, C) each.
    """
    if kind == "multi":
        return values.astype(np.float64), targets.astype(np.float64)
    return values.max(axis=1, keepdims=True).astype(np.float64), (values.argmax(axis=1) == targets)[:, None] * 1.0


class _Wanted:
    """The names that are wanted: all of them, or a few."""

    def __init__(self, only: Collection[str] | None) -> None:
        self.only = only

    def any(self, *names: str) -> bool:
        return self.only is None or any(name in self.only for name in names)

    def keep(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value for name, value in found.items() if self.any(name)}


def _single(values: np.ndarray, targets: np.ndarray, wanted: _Wanted) -> Measure:
    num_classes = values.shape[1]
    means = {
        "accuracy": (values.argmax(axis=1) == targets).astype(np.float64),
        "log_loss": _surprise(values, targets),
        "brier": _brier(values, targets),
    }
    if num_classes > TOP_K:
        means[f"top_{TOP_K}_accuracy"] = _in_top(values, targets)
    means = wanted.keep(means)
    counts = class_counts("single", values, targets)
    gaps = _calibration_gaps(*confidences("single", values, targets))
    truth = np.arange(num_classes) == targets[:, None]  # (N, C)
    columns = slice(1, 2) if num_classes == 2 else slice(None)  # two classes: the second one is the positive one
    ranks = _Ranking(values[:, columns], truth[:, columns]) if wanted.any("auroc", "average_precision") else None

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(axis=0)
        found = _weighted_means(means, weights, total)
        if wanted.any("balanced_accuracy", *_averaged_names()):
            counted = counts(weights)
            found["balanced_accuracy"] = _mean_where(counted.scores()["recall"], counted.support > 0)
            found |= _averaged(counted)
        if wanted.any("ece"):
            found["ece"] = np.abs(gaps @ weights).sum(axis=0) / total
        return wanted.keep(found | (ranks(weights) if ranks else {}))

    return evaluate


def _multi(values: np.ndarray, targets: np.ndarray, wanted: _Wanted) -> Measure:
    said = values >= THRESHOLD
    clipped = _clipped(values)
    cells = {
        "hamming_loss": said != targets,
        "log_loss": -np.where(targets, np.log(clipped), np.log1p(-clipped)),
        "brier": (values.astype(np.float64) - targets) ** 2,
    }
    means = {name: cell.mean(axis=1) for name, cell in cells.items()}
    means = wanted.keep(means | {"subset_accuracy": (said == targets).all(axis=1).astype(np.float64)})
    counts = class_counts("multi", values, targets)
    gaps = _calibration_gaps(*confidences("multi", values, targets))
    ranks = _Ranking(values, targets) if wanted.any("auroc", "average_precision") else None

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(axis=0)
        found = _weighted_means(means, weights, total)
        if wanted.any(*_averaged_names()):
            found |= _averaged(counts(weights))
        if wanted.any("ece"):
            found["ece"] = np.abs(gaps @ weights).sum(axis=0) / (total * values.shape[1])
        return wanted.keep(found | (ranks(weights) if ranks else {}))

    return evaluate


def _numbers(values: np.ndarray, targets: np.ndarray, wanted: _Wanted) -> Measure:
    errors = values - targets  # (N, K)
    centred = targets - targets.mean(axis=0)  # R² from plain sums loses digits when the mean is far from 0

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(axis=0)
        squares = (errors**2).T @ weights / total  # (K, R)
        variance = (centred**2).T @ weights / total - (centred.T @ weights / total) ** 2
        found = {
            "mse": squares.mean(axis=0),
            "rmse": np.sqrt(squares).mean(axis=0),
            "mae": (np.abs(errors).T @ weights / total).mean(axis=0),
            "r2": 1
            - _ratio(squares, np.where(variance > 1e-12 * (centred**2).mean(axis=0)[:, None], variance, 0.0)).mean(
                axis=0
            ),
        }
        if wanted.any("spearman"):
            columns = [_spearman(values[:, k], targets[:, k], weights) for k in range(values.shape[1])]
            found["spearman"] = np.mean(columns, axis=0)
        return wanted.keep(found)

    return evaluate


class _Ranking:
    """AUROC and average precision, macro-averaged over the columns that have positives (and negatives).

    Only scores at which there is a positive matter to either. Sorted by falling score, a column has G such scores, and
    three sums for each say all: the positives there, the negatives since the last one, the negatives tied with it.
    """

    def __init__(self, scores: np.ndarray, truth: np.ndarray) -> None:
        self.columns = [_ranking_sums(scores[:, c], truth[:, c]) for c in range(scores.shape[1])]

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(axis=0)
        both = [self._column(sums @ weights, total) for sums in self.columns]
        areas, precisions = (np.stack(part) for part in zip(*both, strict=True))  # (C, R)
        return {
            "auroc": _mean_where(areas, ~np.isnan(areas)),
            "average_precision": _mean_where(precisions, ~np.isnan(precisions)),
        }

    @staticmethod
    def _column(sums: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positives, between, tied = np.split(sums, 3)  # (G, R) each
        above = np.cumsum(between, axis=0) + np.cumsum(tied, axis=0) - tied
        hits = np.cumsum(positives, axis=0)
        num_positive = positives.sum(axis=0)
        lost = (positives * (above + tied / 2)).sum(axis=0)
        precision = _ratio(hits, hits + above + tied, 0.0)
        area = 1 - _ratio(lost, num_positive * (total - num_positive))
        return area, _ratio((positives * precision).sum(axis=0), num_positive)


def _ranking_sums(scores: np.ndarray, truth: np.ndarray) -> csr_array:
    """Return the (3 G, N) matrix that sums weights of positives, negatives between, and negatives tied."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    level = np.cumsum(np.r_[True, ranked[1:] != ranked[:-1]][: len(ranked)]) - 1  # (N,) distinct scores, from 0
    positive = truth[order]
    has_positive = np.bincount(level, weights=positive) > 0
    place: np.ndarray = np.cumsum(has_positive) - has_positive  # positive levels before this one
    num_levels = int(has_positive.sum())
    block = np.where(positive, 0, np.where(has_positive[level], 2, 1))
    row = block * num_levels + place[level]
    used = place[level] < num_levels  # negatives below the last positive matter to neither
    return _matrix(row[used], order[used], None, (3 * num_levels, len(scores)))


def _spearman(values: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the correlation of weighted mid-ranks, which is that of the repeated rows for whole weights."""
    left, right = _mid_ranks(values, weights), _mid_ranks(targets, weights)
    total = weights.sum(axis=0)
    left -= (left * weights).sum(axis=0) / total
    right -= (right * weights).sum(axis=0) / total
    together = (left * right * weights).sum(axis=0)
    return _ratio(together, np.sqrt((left**2 * weights).sum(axis=0) * (right**2 * weights).sum(axis=0)))


def _mid_ranks(column: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weight below each example plus half the weight tied with it, (N, R)."""
    _, level = np.unique(column, return_inverse=True)
    mass = _indicator(level, int(level.max()) + 1) @ weights  # (distinct, R)
    return (np.cumsum(mass, axis=0) - mass / 2)[level]


def _averaged_names() -> list[str]:
    return [f"{score}_{how}" for score in ("precision", "recall", "f1") for how in AVERAGES]


def _averaged(counts: ClassCounts) -> dict[str, np.ndarray]:
    """Average over the classes that occur in targets or predictions, as scikit-learn does by default."""
    occurs = counts.predicted + counts.support > 0
    pooled = ClassCounts(*(part.sum(axis=0) for part in (counts.hits, counts.predicted, counts.support)))
    found = {}
    for name, per_class in counts.scores().items():
        found[f"{name}_macro"] = _mean_where(per_class, occurs)
        found[f"{name}_weighted"] = _ratio((per_class * counts.support).sum(axis=0), pooled.support)
    return found | {f"{name}_micro": score for name, score in pooled.scores().items()}


def _weighted_means(columns: dict[str, np.ndarray], weights: np.ndarray, total: np.ndarray) -> dict[str, np.ndarray]:
    if not columns:
        return {}
    sums = np.stack(list(columns.values())) @ weights  # (metrics, R)
    return dict(zip(columns, sums / total, strict=True))


def _surprise(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -np.log(_clipped(values[np.arange(len(targets)), targets]))


def _clipped(values: np.ndarray) -> np.ndarray:
    """Keep probabilities off 0 and 1 by the resolution of their type, so that a log loss is finite."""
    eps = np.finfo(values.dtype).eps
    return np.clip(values, eps, 1 - eps).astype(np.float64)


def _brier(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the squared distance from the truth; for two classes that of one of them, as is usual."""
    truth = np.arange(values.shape[1]) == targets[:, None]
    squared: np.ndarray = ((values.astype(np.float64) - truth) ** 2).sum(axis=1)
    return squared / 2 if values.shape[1] == 2 else squared


def _in_top(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Say whether fewer than k classes come before the true one; ties go to the earlier class, as in argmax."""
    own = values[np.arange(len(targets)), targets][:, None]
    earlier = np.arange(values.shape[1]) < targets[:, None]
    before = (values > own) | ((values == own) & earlier)
    return (before.sum(axis=1) < TOP_K).astype(np.float64)


def _calibration_gaps(confidence: np.ndarray, right: np.ndarray) -> csr_array:
    """Return the (bins, N) matrix whose product with weights is the summed gap of each bin."""
    num_examples, num_columns = confidence.shape
    column = np.repeat(np.arange(num_examples), num_columns)
    gap = (right - confidence).ravel()
    return _matrix(calibration_bins(confidence).ravel(), column, gap, (NUM_BINS, num_examples))


def _indicator(labels: np.ndarray, num_labels: int, data: np.ndarray | None = None) -> csr_array:
    return _matrix(labels, np.arange(len(labels)), data, (num_labels, len(labels)))


def _sparse(marks: np.ndarray) -> csr_array:
    rows, columns = np.nonzero(marks.T)
    return _matrix(rows, columns, None, marks.T.shape)


def _matrix(rows: np.ndarray, columns: np.ndarray, data: np.ndarray | None, shape: tuple[int, int]) -> csr_array:
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(rows)) if data is None else data, (rows, columns)), shape=shape)


def _ratio(top: np.ndarray, bottom: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    """Divide, with a named value where the denominator is 0."""
    shape = np.broadcast_shapes(np.shape(top), np.shape(bottom))
    result = np.full(shape, otherwise)
    np.divide(top, bottom, out=result, where=np.broadcast_to(bottom, shape) != 0)
    return result


def _mean_where(scores: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Average over axis 0 where counted; NaN where nothing is."""
    return _ratio(np.where(counted, scores, 0.0).sum(axis=0), counted.sum(axis=0))
