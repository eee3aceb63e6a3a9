"""What is wrong with the data before anything is learned from it.

Exact copies and groups that stand on both sides of a split make every later number a lie, so they stop a run until a
person decides. Everything else is reported and left as it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from warmstart.data import SPLITS, Dataset, Quarantined, SplitName, Splits, duplicates, label_errors
from warmstart.data.audit_report import MIN_CLASS, AuditReport, findings, presence
from warmstart.data.duplicates import NearPairs
from warmstart.data.label_errors import LabelIssue
from warmstart.data.scan import Scan
from warmstart.data.splits import fingerprint

CONFLICT_FRACTION = 0.05
"""Copies whose regression targets differ by more than this part of the targets' standard deviation disagree."""


def overlaps(dataset: Dataset, splits: Splits | None, scan: Scan) -> AuditReport:
    """Check only what can stop a run, exact copies and groups across splits, and what costs nothing.

    Its `near` is empty and its `label_issues` are None; it takes milliseconds where `audit` takes seconds.

    Args:
        dataset: What to check.
        splits: None when there are none yet.
        scan: Of this dataset.
    """
    assert len(scan) == len(dataset), "the scan is of another dataset"
    split_of = _split_of(len(dataset), splits)
    first = duplicates.first_copies(scan.pixel_hash, scan.readable)
    return _report(dataset, scan, split_of, first, None, None)


def audit(
    dataset: Dataset,
    splits: Splits | None,
    scan: Scan,
    *,
    features: np.ndarray | None = None,
    seed: int = 0,
    workers: int = 1,
) -> AuditReport:
    """Check a dataset and its splits.

    Args:
        dataset: What to check; unreadable examples may still be in it, and are left out of every comparison.
        splits: None when there are none yet: then nothing is across, and nothing blocks.
        scan: Of this dataset.
        features: Pooled features of a frozen backbone, a row per example; they confirm near-duplicates and suspect
            labels. Without them there are no suspected label errors.
        seed: Of folds and background samples.
        workers: Threads; the report does not depend on them.

    Shape:
        features: float (N, D).
    """
    assert len(scan) == len(dataset), "the scan is of another dataset"
    split_of = _split_of(len(dataset), splits)
    readable = scan.readable
    first = duplicates.first_copies(scan.pixel_hash, readable)
    near = duplicates.near_pairs(
        scan.thumbnails,
        features=features,
        parts=split_of + 1,
        valid=readable & (first == np.arange(len(first))),
        seed=seed,
        workers=workers,
    )
    issues = None if features is None else _label_issues(dataset, features, readable, split_of, first, seed)
    return _report(dataset, scan, split_of, first, near, issues)


def _report(
    dataset: Dataset,
    scan: Scan,
    split_of: np.ndarray,
    first: np.ndarray,
    searched: NearPairs | None,
    issues: tuple[LabelIssue, ...] | None,
) -> AuditReport:
    near = NearPairs.joined([]) if searched is None else searched
    exact, readable = _groups_of(first), scan.readable
    report = AuditReport(
        dataset=dataset,
        split_of=split_of,
        first_copy=first,
        exact=exact,
        conflicts=_conflicts(dataset, exact, near),
        near=near,
        searched=searched is not None,
        near_test_rows=_leaked_test(first, near, split_of),
        leaked_groups=_leaked_groups(dataset, split_of),
        quarantined=dataset.quarantined + _unreadable(dataset, scan),
        notes=dataset.notes + tuple(f"{dataset.ids[row]} {note}" for row, note in scan.notes.items()),
        tiny_classes=_tiny(dataset, split_of),
        imbalance=_imbalance(dataset, split_of),
        sizes=_common([f"{width} × {height}" for width, height in scan.sizes[readable].tolist()]),
        modes=_common([mode.decode() for mode in scan.rows["mode"][readable].tolist()]),
        label_issues=issues,
    )
    return replace(report, findings=findings(report))


def quarantine(dataset: Dataset, scan: Scan) -> Dataset:
    """Return the dataset without the examples that cannot be read; they stand in `quarantined`, with the reason."""
    if not scan.errors:
        return dataset
    return replace(dataset.take(scan.readable), quarantined=dataset.quarantined + _unreadable(dataset, scan))


def drop_test(splits: Splits, report: AuditReport) -> Splits:
    """Remove from test what also stands in train or val, and from val (and the val side of folds) what is in train.

    Copies and shared groups are removed alike; train keeps everything.
    """
    keep_val = ~_shared(report, splits.val, splits.train)
    keep_test = ~_shared(report, splits.test, np.concatenate([splits.train, splits.val]))
    val, test = splits.val[keep_val], splits.test[keep_test]
    folds = tuple((train, held[~_shared(report, held, train)]) for train, held in splits.folds)
    dropped = f"{len(splits.test) - len(test)} test and {len(splits.val) - len(val)} val images"
    return replace(
        splits,
        val=val,
        test=test,
        folds=folds,
        fingerprint=fingerprint(report.dataset, train=splits.train, val=val, test=test),
        origin=f"{splits.origin}; {dropped} that also stand in another split were dropped".removeprefix("; "),
    )


def _shared(report: AuditReport, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mark the rows that have a copy, or a member of their group, among the others."""
    marked = np.isin(report.first_copy[rows], report.first_copy[others])
    groups = report.dataset.groups
    return marked if groups is None else marked | np.isin(groups[rows], groups[others])


def _split_of(count: int, splits: Splits | None) -> np.ndarray:
    split_of = np.full(count, -1, np.int64)
    if splits is not None:
        for index, name in enumerate(SPLITS):
            split_of[splits.rows(name)] = index
    return split_of


def _unreadable(dataset: Dataset, scan: Scan) -> tuple[Quarantined, ...]:
    found = []
    for row, reason in sorted(scan.errors.items()):
        item = dataset.inputs[row]
        found.append(Quarantined(dataset.ids[row], str(item) if isinstance(item, Path) else "", reason))
    return tuple(found)


def _groups_of(first: np.ndarray) -> tuple[tuple[int, ...], ...]:
    copies = np.flatnonzero(first != np.arange(len(first)))
    groups: dict[int, list[int]] = {}
    for row in copies.tolist():
        groups.setdefault(int(first[row]), [int(first[row])]).append(row)
    return tuple(tuple(group) for _, group in sorted(groups.items()))


def _conflicts(dataset: Dataset, exact: tuple[tuple[int, ...], ...], near: NearPairs) -> tuple[tuple[int, ...], ...]:
    if dataset.targets is None:
        return ()
    targets = dataset.targets.reshape(len(dataset), -1)
    allowed = 0.0 if dataset.kind in ("single", "multi") else CONFLICT_FRACTION * targets.std(0)
    pairs = list(zip(near.left.tolist(), near.right.tolist(), strict=True))
    numbers = targets.astype(np.float64)
    return tuple(group for group in [*exact, *pairs] if (np.ptp(numbers[list(group)], axis=0) > allowed).any())


def _leaked_test(first: np.ndarray, near: NearPairs, split_of: np.ndarray) -> np.ndarray:
    present = presence(first, split_of)
    elsewhere = present[:, 0] | present[:, 1]  # train or val
    leaked = elsewhere.copy()
    leaked[near.left[elsewhere[near.right]]] = True
    leaked[near.right[elsewhere[near.left]]] = True
    return np.flatnonzero((split_of == SPLITS.index("test")) & leaked[first])


def _leaked_groups(dataset: Dataset, split_of: np.ndarray) -> tuple[tuple[str, tuple[SplitName, ...]], ...]:
    if dataset.groups is None:
        return ()
    names, group = np.unique(dataset.groups, return_inverse=True)
    present = np.zeros((len(names), len(SPLITS)), bool)
    present[group[split_of >= 0], split_of[split_of >= 0]] = True
    found = np.flatnonzero(present.sum(1) > 1).tolist()
    return tuple(
        (str(names[row]), tuple(split for split, there in zip(SPLITS, present[row], strict=True) if there))
        for row in found
    )


def _class_counts(dataset: Dataset, split_of: np.ndarray) -> np.ndarray | None:
    """Count train examples of each class (all examples when there are no splits)."""
    if dataset.targets is None or dataset.kind not in ("single", "multi"):
        return None
    rows = np.flatnonzero(split_of == 0) if (split_of >= 0).any() else np.arange(len(dataset))
    if dataset.kind == "multi":
        return np.asarray(dataset.targets[rows].sum(0))
    return np.bincount(dataset.targets[rows], minlength=len(dataset.class_names))


def _tiny(dataset: Dataset, split_of: np.ndarray) -> tuple[tuple[str, int], ...]:
    counts = _class_counts(dataset, split_of)
    if counts is None:
        return ()
    order = np.argsort(counts, kind="stable")
    return tuple((dataset.class_names[index], int(counts[index])) for index in order if counts[index] < MIN_CLASS)


def _imbalance(dataset: Dataset, split_of: np.ndarray) -> float | None:
    counts = _class_counts(dataset, split_of)
    if counts is None or not counts.any():
        return None
    return float(counts.max() / counts[counts > 0].min())


def _common(values: list[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _label_issues(
    dataset: Dataset, features: np.ndarray, readable: np.ndarray, split_of: np.ndarray, first: np.ndarray, seed: int
) -> tuple[LabelIssue, ...]:
    if dataset.targets is None:
        return ()
    rows = np.flatnonzero(readable & (split_of != SPLITS.index("test")))
    whole = len(rows) == len(dataset)  # keeps a memory-mapped array mapped
    issues = label_errors.suspected(
        features if whole else features[rows],
        dataset.targets[rows],
        kind=dataset.kind,
        num_classes=len(dataset.class_names),
        seed=seed,
        groups=(first if dataset.groups is None else dataset.groups)[rows],
    )
    return tuple(replace(issue, row=int(rows[issue.row])) for issue in issues)
