"""From files to sealed splits: read, scan, set aside what cannot be read, split, and refuse what is not honest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from warmstart import plugins, tasks
from warmstart.data import Dataset, Splits
from warmstart.data import audit as auditing
from warmstart.data import read as reading
from warmstart.data import scan as scanning
from warmstart.data import splits as splitting
from warmstart.data.audit_report import AuditReport
from warmstart.data.targets import TargetType
from warmstart.errors import DataError, RunError
from warmstart.heads import Fold
from warmstart.session import Session
from warmstart.tasks import Task

TARGET_TYPES: dict[str, TargetType] = {"classification": "classes", "regression": "numbers"}


@dataclass(frozen=True)
class Prepared:
    """Data that is ready to learn from.

    Shape:
        targets: what the loss wants for every row of the dataset (`Task.targets`).
    """

    dataset: Dataset
    splits: Splits
    scan: scanning.Scan
    task: Task
    task_name: str
    targets: np.ndarray
    report: AuditReport

    @property
    def folds(self) -> tuple[Fold, ...]:
        """Return (train, val) rows to select by: the one split, or the folds of small data."""
        return self.splits.folds or ((self.splits.train, self.splits.val),)

    @property
    def hashes(self) -> list[bytes]:
        """Return the content hash of every example, as the scan found it."""
        return [row.tobytes() for row in self.scan.content_hash]

    @property
    def seen(self) -> np.ndarray:
        """Return the rows that selection may look at: train and val."""
        return np.union1d(self.splits.train, self.splits.val)

    @property
    def everything(self) -> np.ndarray:
        """Return all rows."""
        return np.arange(len(self.dataset))


def prepare(session: Session, source: Dataset | None = None) -> Prepared:
    """Read, scan, split, bind the task, and stop when test examples are also in train.

    Raises:
        DataError: The data cannot be learned from, or its splits overlap and nobody said what to do about it.
        RunError: The run folder was begun on other data.
    """
    recipe = session.recipe
    dataset = source or read(session)
    with session.stage("scan") as advance:
        scan = scanning.scan(dataset, workers=session.workers, progress=advance)
        dataset, scan = auditing.quarantine(dataset, scan), scan.take(scan.readable)
    with session.stage("split"):
        task_name = str(session.decide("task.name", lambda: (tasks.for_dataset(dataset), f"targets: {dataset.kind}")))
        dataset = tasks.cast(dataset, task_name)
        options = plugins.load("task", task_name)(**recipe.task.options)
        options.check(dataset)
        splits = splitting.make(
            dataset,
            val_fraction=recipe.data.val_fraction,
            test_fraction=recipe.data.test_fraction,
            seed=recipe.seed,
        )
        splits, report = settle_overlaps(session, dataset, splits, scan)
        _same_data(session, splits)
    task = options.bind(dataset.take(splits.train))
    return Prepared(dataset, splits, scan, task, task_name, task.targets(dataset), report)


def read(session: Session) -> Dataset:
    """Read the data that the recipe names."""
    data = session.recipe.data
    if data.path is None:
        raise DataError("no data was named", "warmstart run DATA (a folder of images, or a table)")
    with session.stage("read"):
        return reading.read(
            Path(data.path),
            reader=data.reader,
            image_column=data.image_column,
            target_column=data.target_column,
            group_column=data.group_column,
            split_column=data.split_column,
            id_column=data.id_column,
            separator=data.separator,
            target_type=TARGET_TYPES.get(session.recipe.task.name or ""),
        )


def settle_overlaps(
    session: Session, dataset: Dataset, splits: Splits, scan: scanning.Scan
) -> tuple[Splits, AuditReport]:
    """Find exact copies and shared groups across splits; stop, drop them from test, or allow them, as told."""
    report = auditing.overlaps(dataset, splits, scan)
    blocking = report.blocking()
    if blocking is None or session.recipe.data.duplicates == "allow":
        return splits, report
    if session.recipe.data.duplicates == "stop":
        raise blocking
    dropped = auditing.drop_test(splits, report)
    return dropped, auditing.overlaps(dataset, dropped, scan)


def audited(session: Session, data: Prepared, features: np.ndarray | None) -> Prepared:
    """Audit again with features, which confirm near-duplicates and suspect labels.

    Shape:
        features: float32 (N, D), a row for every example; None where no backbone is at hand.
    """
    with session.stage("audit"):
        report = auditing.audit(
            data.dataset, data.splits, data.scan, features=features, seed=session.recipe.seed, workers=session.workers
        )
    return replace(data, report=report)


def _same_data(session: Session, splits: Splits) -> None:
    """Refuse to go on with a run that began on other data."""
    known = session.folder.stage("data")
    if known is None:
        session.folder.finish_stage("data", {"fingerprint": splits.fingerprint}, seconds=0.0)
    elif known["fingerprint"] != splits.fingerprint:
        raise RunError(
            f"{session.folder.path} was begun on other data (splits {known['fingerprint']}, now {splits.fingerprint})",
            "--out NEW for another run, or --overwrite to begin again",
        )
