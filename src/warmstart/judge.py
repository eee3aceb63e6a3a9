"""Test once: the kept model is saved, loaded back, checked against its own val metric, and only then sees test."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from warmstart import calibrate, evaluation, predicted, trained, tune
from warmstart.errors import RunError, TrainingError
from warmstart.extract import Extracted
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.tasks import Metric, Predictions
from warmstart.trained import TrainedModel
from warmstart.tune import Trial

TOLERANCE = 0.005
"""How far the metric of the saved weights may lie from the reported one: engines round differently, nothing else."""


@dataclass(frozen=True)
class Judged:
    """The kept model and what it came to."""

    model: TrainedModel
    split: str
    """`test`, or `val` where no test was opened."""
    predictions: Predictions
    metrics: tuple[Metric, ...]
    openings: int
    extracted: tuple[Extracted, ...] = ()


def save(session: Session, data: Prepared, winner: Trial) -> TrainedModel:
    """Fit the temperature on val, write the weights, and prove that what was written is what was validated.

    Raises:
        TrainingError: The saved weights do not give the metric that was reported.
    """
    val = winner.val
    assert val.targets is not None
    session.seal_stop()
    temperature = calibrate.fit_temperature(val.outputs, val.targets, link=data.task.link)
    model = replace(winner.trained, temperature=temperature or 1.0)
    with session.stage("save"):
        folder = model.save(session.folder.path / "weights")
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            session.folder.add_file(f"weights/{file.relative_to(folder).as_posix()}")
        saved = trained.load(folder, build=model.built)
    record(session, data, "val", calibrate.scaled(val, model.temperature, link=data.task.link))
    if not data.splits.folds:
        with session.stage("validate"):
            again, _ = predictions(session, data, saved, data.splits.val)
            before, after = tune.point(data, val), tune.point(data, again)
            if abs(before - after) > TOLERANCE * max(1.0, abs(before)):
                raise TrainingError(
                    f"the saved weights give {after:.4f} on val, and {before:.4f} was reported",
                    "this is a fault of warmstart; keep the run folder and report it",
                )
    return saved


def record(session: Session, data: Prepared, split: str, found: Predictions) -> None:
    """Leave predictions in the run folder, for `warmstart compare`."""
    predicted.save(
        session.folder,
        split,
        found,
        task=data.task,
        task_name=data.task_name,
        ids=data.dataset.ids,
        hashes=data.scan.content_hash,
    )


def predictions(
    session: Session, data: Prepared, model: TrainedModel, rows: np.ndarray
) -> tuple[Predictions, Extracted]:
    """Predict rows with a loaded model, through the cache."""
    return model.predictions(
        data.dataset,
        rows,
        cache=session.cache,
        workers=session.workers,
        content_hashes=data.hashes,
        device=session.recipe.device,
    )


def validated(session: Session, data: Prepared, winner: Trial, model: TrainedModel) -> Judged:
    """Judge on val; test stays sealed."""
    val = calibrate.scaled(winner.val, model.temperature, link=data.task.link)
    metrics = evaluation.metrics(data.task, val, split="val", seed=session.recipe.seed)
    return Judged(model, "val", val, tuple(metrics), 0)


def test_once(session: Session, data: Prepared, winner: Trial, *, again: bool = False) -> Judged:
    """Open test with the saved weights and record it; without a test split, judge on val.

    Raises:
        RunError: Test was opened before with other weights.
    """
    model = save(session, data, winner)
    if not len(data.splits.test):
        return validated(session, data, winner, model)
    assert model.card.weights_hash is not None
    openings = session.folder.open_test(model.identity(), again=again)
    with session.stage("test"):
        found, extracted = predictions(session, data, model, data.splits.test)
        metrics = test_metrics(data, found, seed=session.recipe.seed)
        record(session, data, "test", found)
    session.folder.record_test(model.identity(), {metric.name: metric.value for metric in metrics})
    return Judged(model, "test", found, tuple(metrics), openings, (extracted,))


def test_metrics(data: Prepared, found: Predictions, *, seed: int) -> list[Metric]:
    """Return the metrics of test, and once more without its near-duplicates where it has any."""
    metrics = evaluation.metrics(data.task, found, split="test", seed=seed)
    near = np.isin(found.index, data.report.near_test_rows)
    if near.any() and not near.all():
        metrics += evaluation.metrics(data.task, found.take(~near), split="test without near-duplicates", seed=seed)
    return metrics


def reopen(session: Session, data: Prepared, *, split: str, again: bool) -> Judged:
    """Judge the model of a finished run on one of its splits; an opening of test is recorded.

    Raises:
        RunError: Test was opened with other weights and `again` was not said; or there is no such split.
    """
    model = trained.load(session.folder.path, build=False)
    rows = data.splits.test if split == "test" else data.splits.val
    if split not in ("val", "test") or not len(rows):
        raise RunError(f"this run has no {split} split", "--split val, or --split test, whichever the report lists")
    openings = session.folder.open_test(model.identity(), again=again) if split == "test" else 0
    found, extracted = predictions(session, data, model, rows)
    record(session, data, split, found)
    seed = session.recipe.seed
    metrics = (
        test_metrics(data, found, seed=seed)
        if split == "test"
        else evaluation.metrics(data.task, found, split=split, seed=seed)
    )
    if split == "test":
        session.folder.record_test(model.identity(), {metric.name: metric.value for metric in metrics})
    return Judged(model, split, found, tuple(metrics), openings, (extracted,))
