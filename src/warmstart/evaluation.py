"""From predictions to metrics with intervals, tables and curves. Numpy only: models have done their part before.

Every function takes a bound task and `Predictions` with targets, and never looks at a model or a file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from warmstart import bootstrap, calibrate
from warmstart import metrics as measures
from warmstart.errors import DataError, TrainingError
from warmstart.tasks import Metric, MetricSpec, Predictions, Task

RANKED_CELLS = 2_000_000_000
"""Examples × classes × resamples that metrics which sort may cost (some ten seconds); fewer resamples beyond it."""
FEWEST = 100


@dataclass(frozen=True)
class ClassRow:
    """How one class did; a metric that its examples do not define is None."""

    name: str
    support: int
    """Examples of the class."""
    predicted: int
    """Examples that were said to be of it."""
    precision: Metric | None
    recall: Metric | None
    f1: Metric | None


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram."""

    low: float
    high: float
    """Confidences in (low, high]."""
    confidence: float
    """Mean confidence in the bin."""
    accuracy: float
    """Share that was right; for labels, the share that was on."""
    count: int


@dataclass(frozen=True)
class Calibration:
    """Reliability and expected calibration error before and after temperature scaling."""

    temperature: float | None
    before: tuple[Bin, ...]
    after: tuple[Bin, ...]
    ece_before: Metric
    ece_after: Metric


def metrics(
    task: Task,
    predictions: Predictions,
    *,
    split: str,
    seed: int,
    resamples: int = 1000,
    only: Collection[str] | None = None,
) -> list[Metric]:
    """Compute the task's metrics, each with its 95 % interval.

    Resampling is stratified by class and draws whole groups. A metric that these examples do not define (AUROC with
    one class) is left out.

    Args:
        task: A bound task.
        predictions: With targets.
        split: Name for the result: `val`, `test`, or words such as `test without near-duplicates`.
        seed: Of the resampling; equal seeds give equal intervals.
        resamples: Bootstrap resamples.
        only: Names of the metrics that are wanted; all without it.

    Returns:
        In the order of `task.metrics()`.

    Raises:
        DataError: There is no example, or there are no targets.
        TrainingError: Predictions are NaN or infinite.
    """
    targets = checked(predictions, split)
    names = [spec.name for spec in task.metrics() if only is None or spec.name in only]
    point = measures.measure(task.kind, predictions.values, targets, only=names)(np.ones((len(targets), 1)))
    drawn = bootstrap.design(task.kind, targets, predictions.groups)
    replicates = _replicates(task, predictions, drawn, names=names, seed=seed, resamples=resamples)
    found = []
    for name in names:
        if name in point and np.isfinite(point[name][0]):
            rests_on = _rests_on(task, name, targets, drawn)
            value = float(point[name][0])
            low, high = bootstrap.interval(
                value, replicates[name], scale=measures.scale(name), n=rests_on, freedom=drawn.freedom
            )
            found.append(Metric(name, value, min(low, value), max(high, value), len(targets), split))
    return found


def per_class(
    task: Task, predictions: Predictions, *, split: str, seed: int, resamples: int = 1000
) -> tuple[ClassRow, ...]:
    """Return precision, recall and F1 of every class with intervals; empty for regression.

    Raises:
        DataError: There is no example, or there are no targets.
    """
    if task.link == "identity":
        return ()
    targets = checked(predictions, split)
    counts = measures.class_counts(task.kind, predictions.values, targets)
    drawn = bootstrap.design(task.kind, targets, predictions.groups)
    point = counts(np.ones((len(targets), 1)))
    blocks = [counts(weights).scores() for weights in bootstrap.weights(drawn, seed=seed, resamples=resamples)]
    replicates = {name: np.concatenate([block[name] for block in blocks], axis=1) for name in blocks[0]}  # (C, R)
    rests_on = {"precision": point.predicted, "recall": point.support, "f1": point.support}
    scores = point.scores()

    def cell(name: str, row: int) -> Metric | None:
        n = int(rests_on[name][row, 0])
        if n == 0:
            return None
        value = float(scores[name][row, 0])
        low, high = bootstrap.interval(value, replicates[name][row], scale="share", n=n, freedom=drawn.freedom)
        return Metric(name, value, min(low, value), max(high, value), n, split)

    return tuple(
        ClassRow(
            class_name,
            int(point.support[row, 0]),
            int(point.predicted[row, 0]),
            *(cell(name, row) for name in ("precision", "recall", "f1")),
        )
        for row, class_name in enumerate(task.class_names)
    )


def confusion(task: Task, predictions: Predictions) -> np.ndarray:
    """Count (true class, predicted class) pairs.

    Shape:
        int64 (C, C), rows are true classes; for labels int64 (C, 2, 2), rows off and on.
    """
    targets = checked(predictions, "these predictions")
    num = task.num_outputs
    if task.kind == "multi":
        said = predictions.values >= measures.THRESHOLD
        cells = [np.bincount(2 * targets[:, c].astype(np.int64) + said[:, c], minlength=4) for c in range(num)]
        return np.stack(cells).reshape(num, 2, 2)
    said = predictions.values.argmax(axis=1)
    return np.bincount(targets * num + said, minlength=num * num).reshape(num, num)


def reliability(task: Task, predictions: Predictions) -> tuple[Bin, ...]:
    """Return the bins that hold predictions: how sure the model was, and how often it was right."""
    targets = checked(predictions, "these predictions")
    confidence, right = measures.confidences(task.kind, predictions.values, targets)
    rows = measures.calibration_bins(confidence).ravel()
    count = np.bincount(rows, minlength=measures.NUM_BINS)
    sure = np.bincount(rows, weights=confidence.ravel(), minlength=measures.NUM_BINS)
    hits = np.bincount(rows, weights=right.ravel(), minlength=measures.NUM_BINS)
    width = 1 / measures.NUM_BINS
    return tuple(
        Bin(b * width, (b + 1) * width, float(sure[b] / count[b]), float(hits[b] / count[b]), int(count[b]))
        for b in np.flatnonzero(count)
    )


def calibration(
    task: Task,
    predictions: Predictions,
    temperature: float | None,
    *,
    split: str,
    seed: int,
    resamples: int = 1000,
) -> Calibration | None:
    """Compare reliability before and after a temperature that was fitted on val; None for regression."""
    if task.link == "identity":
        return None
    after = calibrate.scaled(predictions, temperature, link=task.link)
    (ece_before,) = metrics(task, predictions, split=split, seed=seed, resamples=resamples, only=("ece",))
    (ece_after,) = metrics(task, after, split=split, seed=seed, resamples=resamples, only=("ece",))
    return Calibration(temperature, reliability(task, predictions), reliability(task, after), ece_before, ece_after)


def worst(task: Task, predictions: Predictions, *, limit: int | None = None) -> np.ndarray:
    """Order the mistakes, the most confidently wrong first.

    For classes by the probability of the wrong answer, for labels by the largest error of a label that is wrong, for
    numbers by the largest error in units of its column's mean error (all examples are returned).

    Returns:
        int64 positions in `predictions`, at most `limit`.
    """
    targets = checked(predictions, "these predictions")
    values = predictions.values.astype(np.float64)
    if task.kind == "single":
        badness = np.where(values.argmax(axis=1) == targets, -1.0, values.max(axis=1))
    elif task.kind == "multi":
        wrong = (values >= measures.THRESHOLD) != targets.astype(bool)
        badness = np.where(wrong, np.abs(values - targets), -1.0).max(axis=1)
    else:
        errors = values.reshape(len(values), -1) - targets.reshape(len(values), -1)
        badness = np.abs(errors / np.maximum(np.abs(errors).mean(axis=0), 1e-30)).max(axis=1)
    order = np.argsort(-badness, kind="stable")
    return order[badness[order] >= 0][:limit]


def without(predictions: Predictions, rows: np.ndarray) -> Predictions:
    """Leave out rows of the dataset, such as test images that have a near-copy in train.

    Shape:
        rows: int64 (M,), rows of the dataset, as in `Predictions.index`.
    """
    return predictions.take(~np.isin(predictions.index, rows))


def constant(task: Task, train_targets: np.ndarray, predictions: Predictions) -> Predictions:
    """Return what the best constant answer would have said: class frequencies, or the mean of train.

    Shape:
        train_targets: as in `Dataset.targets`.
    """
    if task.kind == "single":
        answer = np.bincount(train_targets, minlength=task.num_outputs) / max(len(train_targets), 1)
    else:
        answer = train_targets.reshape(len(train_targets), -1).mean(axis=0, dtype=np.float64)
    values = np.tile(answer.astype(np.float32), (len(predictions.index), 1))
    return replace(predictions, values=values, outputs=values)


def default_metric(task: Task) -> MetricSpec:
    """Return the metric by which candidates are selected: the task's first one."""
    return task.metrics()[0]


def checked(predictions: Predictions, split: str) -> np.ndarray:
    """Return the targets after refusing predictions that cannot be evaluated.

    Raises:
        DataError: There is no example, or there are no targets.
        TrainingError: Predictions are NaN or infinite.
    """
    if len(predictions.index) == 0:
        raise DataError(f"{split} has no example to evaluate on, expected at least 1", "choose another --split")
    if predictions.targets is None:
        raise DataError(f"{split} has no targets to compare with", "name them with --target-column, or use predict")
    bad = np.flatnonzero(~np.isfinite(predictions.values).reshape(len(predictions.index), -1).all(axis=1))
    if len(bad):
        problem = (
            f"{len(bad)} of {len(predictions.index)} predictions on {split} are NaN or infinite "
            f"(first: row {predictions.index[bad[0]]}), expected finite numbers"
        )
        raise TrainingError(problem, "train with a lower optim.lr, or with precision=fp32")
    return predictions.targets


def _replicates(
    task: Task, predictions: Predictions, drawn: bootstrap.Design, *, names: list[str], seed: int, resamples: int
) -> dict[str, np.ndarray]:
    """Compute every metric on every resample, (R,) each; metrics that sort get fewer when there are many classes."""
    assert predictions.targets is not None
    affordable = max(FEWEST, RANKED_CELLS // max(predictions.values.size, 1))
    parts = [
        ([name for name in names if name not in measures.RANKED], resamples),
        ([name for name in names if name in measures.RANKED], min(resamples, affordable)),
    ]
    if parts[1][1] == resamples:
        parts = [(names, resamples)]
    found: dict[str, np.ndarray] = {}
    for wanted, count in parts:
        of = measures.measure(task.kind, predictions.values, predictions.targets, only=wanted)
        blocks = [of(weights) for weights in bootstrap.weights(drawn, seed=seed, resamples=count)]
        found |= {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return found


def _rests_on(task: Task, name: str, targets: np.ndarray, drawn: bootstrap.Design) -> float:
    """Say how many examples a metric rests on when all resamples agree.

    All units for what pools examples. What averages over classes rests on the small ones: C² / Σ 1 / n_c, the number
    at which one share would vary as much as the mean of C shares on n_c units each.
    """
    pooled = name in ("accuracy", "subset_accuracy", "hamming_loss") or name.endswith(("_micro", "_weighted"))
    if pooled or name.startswith("top_") or task.link == "identity":
        return drawn.num_units
    labels = targets[:, None] == np.arange(task.num_outputs) if task.kind == "single" else targets.astype(bool)
    units = np.array([len(np.unique(drawn.unit_of[column])) for column in labels.T])
    units = units[units > 0]
    return float(len(units) ** 2 / (1 / units).sum()) if len(units) else drawn.num_units
