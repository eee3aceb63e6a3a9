"""What the audit found, as values and as sentences."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from warmstart.data import SPLITS, Dataset, Quarantined, SplitName
from warmstart.data.duplicates import NearPairs
from warmstart.data.label_errors import LabelIssue
from warmstart.errors import DataError

Status = Literal["ok", "note", "warning", "blocking"]

MIN_CLASS = 10
"""A class with fewer train examples is called tiny."""
MAX_IMBALANCE = 10.0
"""Largest class over smallest, from which on imbalance is worth a warning."""
SHOWN = 50
"""Examples that the JSON lists of each finding; counts are always complete."""
FIX = "--duplicates drop-test, or --duplicates allow"


@dataclass(frozen=True)
class Finding:
    """One check: what it found, in a sentence, and where."""

    name: str
    status: Status
    count: int
    """Groups, pairs, files or examples in all."""
    text: str
    across: int | None = None
    """How many of them lie across splits; None where that means nothing."""
    cases: tuple[tuple[int, ...], ...] = ()
    """Rows that belong together, at most `SHOWN` cases, the most telling first."""
    names: tuple[str, ...] = ()
    """Ids or paths with their reason, where there is no picture to show."""

    def to_json(self, ids: Sequence[str]) -> dict[str, object]:
        """Return a JSON-ready dict with ids in the place of rows."""
        cases = [[ids[row] for row in case] for case in self.cases]
        examples: list[list[str]] | list[str] = cases or list(self.names)
        facts: dict[str, object] = {"name": self.name, "status": self.status, "count": self.count, "text": self.text}
        return facts | ({} if self.across is None else {"across": self.across}) | {"examples": examples}


@dataclass(frozen=True)
class AuditReport:
    """Everything the audit found. Rows are rows of `dataset`.

    Shape:
        split_of: int64 (N,), index into `SPLITS`, -1 in none. first_copy: int64 (N,), first row of equal pixels.
        near_test_rows: int64, sorted: rows of test whose copy or near-copy is in train or val.
    """

    dataset: Dataset
    split_of: np.ndarray
    first_copy: np.ndarray
    exact: tuple[tuple[int, ...], ...]
    """Groups of rows with equal pixels."""
    conflicts: tuple[tuple[int, ...], ...]
    """Exact groups and near pairs whose labels disagree."""
    near: NearPairs
    """Pairs of near-copies; of exact copies only the first takes part."""
    searched: bool
    """False when near-copies were not looked for."""
    near_test_rows: np.ndarray
    leaked_groups: tuple[tuple[str, tuple[SplitName, ...]], ...]
    """Groups that stand in more than one split, and in which."""
    quarantined: tuple[Quarantined, ...]
    notes: tuple[str, ...]
    tiny_classes: tuple[tuple[str, int], ...]
    """Classes with fewer than `MIN_CLASS` train examples, and how many they have."""
    imbalance: float | None
    """Examples of the largest class over those of the smallest, in train; None for regression."""
    sizes: tuple[tuple[str, int], ...]
    """Width × height and their counts, most frequent first."""
    modes: tuple[tuple[str, int], ...]
    label_issues: tuple[LabelIssue, ...] | None
    """Suspected label errors in train and val (test stays sealed); None without features."""
    findings: tuple[Finding, ...] = field(default=())

    def blocking(self) -> DataError | None:
        """Return the error that stops a run: exact copies or groups on both sides of a split."""
        problems = _copies_across(self) + _groups_across(self)
        return DataError("; ".join(problems), FIX) if problems else None

    def to_json(self) -> dict[str, object]:
        """Return counts and at most `SHOWN` examples of each finding, ready for report.json."""
        return {
            "examples": len(self.dataset),
            "findings": [finding.to_json(self.dataset.ids) for finding in self.findings],
            "near_test": len(self.near_test_rows),
            "imbalance": self.imbalance,
            "sizes": [list(item) for item in self.sizes[:SHOWN]],
            "modes": [list(item) for item in self.modes],
            "notes": list(self.notes[:SHOWN]),
        }


def presence(first: np.ndarray, split_of: np.ndarray) -> np.ndarray:
    """Say for every first copy in which splits its group stands: bool (N, 3)."""
    present = np.zeros((len(first), len(SPLITS)), bool)
    inside = split_of >= 0
    present[first[inside], split_of[inside]] = True
    return present


def _copies_across(report: AuditReport) -> list[str]:
    """One sentence for each pair of splits that share exact copies; every image counts once."""
    present = presence(report.first_copy, report.split_of)
    told = np.zeros(len(report.dataset), bool)
    sentences = []
    for later, earlier in ((2, 0), (2, 1), (1, 0)):
        here = report.split_of == later
        rows = np.flatnonzero(here & present[report.first_copy, earlier] & ~told)
        told[rows] = True
        if not len(rows):
            continue
        same = report.first_copy == report.first_copy[rows[0]]
        other = int(np.flatnonzero(same & (report.split_of == earlier))[0])
        ids = report.dataset.ids
        verb = "is" if len(rows) == 1 else "are"
        sentences.append(
            f"{len(rows)} of {int(here.sum())} {SPLITS[later]} images {verb} also in {SPLITS[earlier]}"
            f" (first: {ids[rows[0]]} = {ids[other]})"
        )
    return sentences


def _groups_across(report: AuditReport) -> list[str]:
    if not report.leaked_groups:
        return []
    count, (name, places) = len(report.leaked_groups), report.leaked_groups[0]
    total = len(np.unique(report.dataset.groups)) if report.dataset.groups is not None else 0
    verb = "stands" if count == 1 else "stand"
    return [f"{count} of {total} groups {verb} in more than one split (first: {name!r} in {' and '.join(places)})"]


def findings(report: AuditReport) -> tuple[Finding, ...]:
    """Say what every check found, each in one sentence."""
    found = [_unreadable_finding(report), _exact_finding(report)]
    if report.searched:
        found.append(_near_finding(report))
    found.append(_conflict_finding(report))
    if report.dataset.groups is not None:
        found.append(_group_finding(report))
    if report.imbalance is not None:
        found += [_tiny_finding(report), _imbalance_finding(report)]
    found.append(_mixed_finding(report))
    if report.label_issues is not None:
        found.append(_label_finding(report))
    return tuple(found)


def _unreadable_finding(report: AuditReport) -> Finding:
    names = tuple(f"{item.path or item.id}: {item.reason}" for item in report.quarantined)
    text = f"{_many(len(names), 'file')} set aside: unreadable" if names else "every file can be read"
    return Finding("unreadable files", "warning" if names else "ok", len(names), text, names=names[:SHOWN])


def _ordered(report: AuditReport, cases: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], int]:
    """Put the cases whose rows, or copies of them, lie in more than one split first; return how many they are."""
    places = presence(report.first_copy, report.split_of) @ np.array([1, 2, 4])  # a bit for each split
    places = places[report.first_copy].tolist()
    seen = [functools.reduce(operator.or_, (places[row] for row in case)) for case in cases]
    across = [case for case, bits in zip(cases, seen, strict=True) if bits.bit_count() > 1]
    within = [case for case, bits in zip(cases, seen, strict=True) if bits.bit_count() <= 1]
    return across + within, len(across)


def _many(count: int, noun: str) -> str:
    """Write a number with its noun: `1 group`, `3 groups`, `2 classes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending}"


def _exact_finding(report: AuditReport) -> Finding:
    cases, across = _ordered(report, report.exact)
    extra = sum(len(case) - 1 for case in cases)
    text = f"{_many(extra, 'image')} with the pixels of another" if cases else "no two images have the same pixels"
    text += f"; {_many(across, 'group')} of copies across splits" if across else ""
    status: Status = "blocking" if across else "note" if cases else "ok"
    return Finding("exact duplicates", status, len(cases), text, across, tuple(cases[:SHOWN]))


def _near_finding(report: AuditReport) -> Finding:
    order = np.argsort(report.near.residual, kind="stable")
    pairs = list(zip(report.near.left[order].tolist(), report.near.right[order].tolist(), strict=True))
    cases, across = _ordered(report, pairs)
    images = len(np.unique(np.concatenate([report.near.left, report.near.right])))
    text = f"{_many(images, 'image')} in {_many(len(cases), 'pair')} of near-copies" if cases else "no near-copies"
    if len(report.near_test_rows):
        text += (
            f"; {_many(len(report.near_test_rows), 'test image')} with a copy or near-copy in train or val:"
            " test metrics are given with and without"
        )
    status: Status = "warning" if across else "note" if cases else "ok"
    return Finding("near-duplicates", status, len(cases), text, across, tuple(cases[:SHOWN]))


def _conflict_finding(report: AuditReport) -> Finding:
    cases, across = _ordered(report, report.conflicts)
    text = f"{_many(len(cases), 'group')} of copies with different labels" if cases else "copies agree in their labels"
    return Finding("conflicting labels", "warning" if cases else "ok", len(cases), text, across, tuple(cases[:SHOWN]))


def _group_finding(report: AuditReport) -> Finding:
    count = len(report.leaked_groups)
    names = tuple(f"{name}: in {' and '.join(places)}" for name, places in report.leaked_groups[:SHOWN])
    text = f"{_many(count, 'group')} in more than one split" if count else "no group stands in more than one split"
    return Finding("group leakage", "blocking" if count else "ok", count, text, count, names=names)


def _tiny_finding(report: AuditReport) -> Finding:
    names = tuple(f"{name}: {count}" for name, count in report.tiny_classes)
    text = (
        f"{_many(len(names), 'class')} with fewer than {MIN_CLASS} train examples"
        if names
        else "every class has enough"
    )
    return Finding("tiny classes", "warning" if names else "ok", len(names), text, names=names[:SHOWN])


def _imbalance_finding(report: AuditReport) -> Finding:
    ratio = report.imbalance or 1.0
    skewed = ratio > MAX_IMBALANCE
    text = f"the largest class has {ratio:.3g} times the train examples of the smallest"
    return Finding("imbalance", "warning" if skewed else "ok", int(skewed), text)


def _mixed_finding(report: AuditReport) -> Finding:
    mixed = int(len(report.sizes) > 1) + int(len(report.modes) > 1)
    names = tuple(f"{name}: {count}" for name, count in (*report.sizes[:10], *report.modes))
    text = f"{_many(len(report.sizes), 'size')}, {_many(len(report.modes), 'colour mode')}"
    return Finding("mixed sizes and modes", "note" if mixed else "ok", mixed, text, names=names)


def _label_finding(report: AuditReport) -> Finding:
    issues = report.label_issues or ()
    rows = list(dict.fromkeys(issue.row for issue in issues))
    text = f"{_many(len(rows), 'doubtful label')} in train and val" if rows else "no label looks wrong"
    return Finding(
        "suspected label errors", "warning" if rows else "ok", len(rows), text, cases=tuple((r,) for r in rows[:SHOWN])
    )
