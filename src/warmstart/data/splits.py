"""Train, val and test: honoured when the data says, else stratified, group-aware and fixed by the seed.

Rows are put into the order of their ids first, so the order in which files were listed changes nothing.

Without groups, rows are ordered by stratum, shuffled inside, and taken at equal steps: the share of every stratum is
exact to one example. With groups, each group in turn goes where it keeps Σ (count / share) smallest over all strata
(least chi-square distance from the wanted proportions), big groups first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from warmstart import runtime
from warmstart.data import SPLITS, Dataset, Splits
from warmstart.errors import DataError, listed

VAL_FRACTION = 0.2
TEST_FRACTION = 0.2
NUM_FOLDS = 5
MIN_VAL = 100
"""A smaller val cannot tell candidates apart: 0.9 ± 0.06 at 100 examples."""
MIN_VAL_PER_CLASS = 5
NUM_BINS = 10
"""Quantile bins that stand for the strata of a number."""


@dataclass(frozen=True)
class _Rows:
    """A dataset in the order of its ids, as splitting sees it.

    Shape:
        order: int64 (N,), rows of the dataset; stratum: int64 (N,); labels: int64 pairs (M, 2) of (position, label);
        groups: int64 (N,) or None. All but `order` are by position in `order`.
    """

    order: np.ndarray
    stratum: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None
    must_learn: bool
    """True when train needs every label (classes), False for bins of numbers."""


def make(
    dataset: Dataset, *, val_fraction: float | None = None, test_fraction: float | None = None, seed: int
) -> Splits:
    """Split a dataset.

    Splits that the data gives are honoured: val is taken from train where none is given, and no test is made where
    train and val are given, unless `test_fraction` asks for it. When val would be too small to select on, it stays
    empty and `folds` are given instead.

    Args:
        dataset: What to split.
        val_fraction: Share of what is not test; None takes 0.2.
        test_fraction: Share of all examples; None takes 0.2, or nothing where the data has its own splits.
        seed: Equal seeds and equal data give equal splits.

    Raises:
        DataError: No examples, one class, a class with one example, too few groups, a share that is no fraction, a
            given split without train, or classes outside train that train does not have.
    """
    val_share = _fraction("val_fraction", val_fraction, VAL_FRACTION)
    given = _given(dataset)
    test_share = _fraction("test_fraction", test_fraction, 0.0 if given else TEST_FRACTION)
    if not len(dataset):
        raise DataError(f"{dataset.name} has no examples, nothing can be split", "check the path and the table")
    rows = _canonical(dataset)
    part = np.zeros(len(dataset), np.int8)  # 0 train, 1 val, 2 test, by row of the dataset
    if given:
        assert dataset.given_split is not None
        part = np.array([SPLITS.index(name) for name in dataset.given_split.tolist()], np.int8)
        _check_given(dataset, part)
    else:
        _check_possible(dataset, rows, val_share > 0, test_share > 0)
    origin = [f"given: {', '.join(given)}" if given else _how(rows)]
    if test_share > 0 and "test" not in given:
        part = _carve(rows, part, 2, test_share, runtime.rng(seed, "split", "test"))
        origin.append(f"test is {test_share:.0%} of {'train' if given else 'all'}")
    folds: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    if "val" not in given and val_share > 0:
        if is_small(dataset, num_val=round(val_share * int((part == 0).sum()))):
            folds = _folds(rows, part, runtime.rng(seed, "split", "folds"))
            origin.append(f"val would be too small to select on: {len(folds)}-fold cross-validation on train")
        else:
            part = _carve(rows, part, 1, val_share, runtime.rng(seed, "split", "val"))
            origin.append(f"val is {val_share:.0%} of {'train' if given else 'the rest'}")
    train, val, test = (np.flatnonzero(part == at) for at in range(3))
    mark = fingerprint(dataset, train=train, val=val, test=test)
    return Splits(train, val, test, mark, "; ".join(origin), folds)


def is_small(dataset: Dataset, *, num_val: int) -> bool:
    """Say whether a val of this size is too small to select on: under 100 examples, or under 5 per class on average."""
    num_classes = len(dataset.class_names) if dataset.kind in ("single", "multi") else 0
    return num_val < max(MIN_VAL, MIN_VAL_PER_CLASS * num_classes)


def fingerprint(dataset: Dataset, *, train: np.ndarray, val: np.ndarray, test: np.ndarray) -> str:
    """Hash ids, targets and assignment, independent of the order of the rows.

    Returns:
        32 hexadecimal characters; equal fingerprints mean equal splits of equal data.
    """
    part = np.full(len(dataset), -1, np.int8)
    for at, rows in enumerate((train, val, test)):
        part[rows] = at
    order = _by_id(dataset)
    ids = "".join(f"{len(dataset.ids[row])}:{dataset.ids[row]}" for row in order)
    targets = b"" if dataset.targets is None else np.ascontiguousarray(dataset.targets[order]).tobytes()
    return runtime.digest(ids, dataset.kind, "\n".join(dataset.class_names), targets, part[order].tobytes())


def _by_id(dataset: Dataset) -> np.ndarray:
    return np.array(sorted(range(len(dataset)), key=dataset.ids.__getitem__), np.int64)


def _fraction(name: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if not 0.0 <= value < 1.0:
        raise DataError(f"data.{name}={value}, expected at least 0 and less than 1", f"data.{name}={default or 0.2}")
    return float(value)


def _given(dataset: Dataset) -> list[str]:
    """Name the splits that the data gives; train alone is no split."""
    if dataset.given_split is None:
        return []
    there = set(dataset.given_split.tolist())
    if not there - {"train"}:
        return []
    if "train" not in there:
        raise DataError(
            f"{dataset.name} gives {listed(sorted(there))}, but no train", "call the examples to learn from train"
        )
    return [name for name in SPLITS if name in there]


def _canonical(dataset: Dataset) -> _Rows:
    order = _by_id(dataset)
    stratum, labels = _strata(dataset, order)
    groups = None
    if dataset.groups is not None:
        groups = np.unique(dataset.groups[order], return_inverse=True)[1].astype(np.int64)
    return _Rows(order, stratum, labels, groups, dataset.kind in ("single", "multi"))


def _strata(dataset: Dataset, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give every row one stratum, by which rows are ordered, and the labels that groups are balanced on."""
    count = len(order)
    if dataset.targets is None:
        return np.zeros(count, np.int64), _pairs(np.zeros(count, np.int64))
    targets = dataset.targets[order]
    if dataset.kind == "single":
        return targets, _pairs(targets)
    if dataset.kind == "multi":
        rarest_first = np.argsort(targets.sum(axis=0), kind="stable")
        return _combinations(targets[:, rarest_first]), np.argwhere(targets)
    columns = targets.reshape(count, -1)  # (N, K)
    bins = np.stack([_bins(column) for column in columns.T], axis=1)
    offset = np.arange(bins.shape[1]) * NUM_BINS
    pairs = np.stack([np.repeat(np.arange(count), bins.shape[1]), (bins + offset).ravel()], axis=1)
    return _combinations(bins), pairs


def _pairs(labels: np.ndarray) -> np.ndarray:
    return np.stack([np.arange(len(labels)), labels], axis=1)  # (N, 2)


def _combinations(table: np.ndarray) -> np.ndarray:
    """Number the different rows in lexicographic order, so rows that share their first columns are neighbours."""
    return np.unique(table.astype(np.int64), axis=0, return_inverse=True)[1].reshape(-1)


def _bins(values: np.ndarray) -> np.ndarray:
    edges = np.quantile(values, np.linspace(0, 1, NUM_BINS + 1)[1:-1])
    return np.searchsorted(np.unique(edges), values, side="right")


def _check_possible(dataset: Dataset, rows: _Rows, wants_val: bool, wants_test: bool) -> None:
    parts = 1 + wants_val + wants_test
    if len(dataset) < parts or len(dataset) < 2:
        raise DataError(f"{dataset.name} has {len(dataset)} examples, too few to split", "add examples")
    if dataset.kind == "single":
        _check_classes(dataset)
    if rows.groups is not None and parts > 1:
        num_groups = int(rows.groups.max()) + 1
        if num_groups < parts:
            raise DataError(
                f"{num_groups} groups cannot fill {parts} splits, a group must not be on both sides",
                "name a finer group column, or set data.test_fraction=0",
            )


def _check_classes(dataset: Dataset) -> None:
    assert dataset.targets is not None
    count = np.bincount(dataset.targets, minlength=len(dataset.class_names))
    there = np.flatnonzero(count)
    if len(there) == 1:
        raise DataError(
            f"all {len(dataset)} examples of {dataset.name} are of one class ({dataset.class_names[there[0]]!r})",
            "add examples of at least one other class",
        )
    lonely = [repr(dataset.class_names[at]) for at in np.flatnonzero(count == 1)]
    if lonely:
        raise DataError(
            f"{len(lonely)} classes of {dataset.name} have one example, which cannot be in train and in test "
            f"({listed(lonely)})",
            "add examples to these classes, or remove them",
        )


def _check_given(dataset: Dataset, part: np.ndarray) -> None:
    if dataset.kind != "single":
        return
    assert dataset.targets is not None
    taught = set(dataset.targets[part == 0].tolist())
    strange = [
        f"{dataset.class_names[label]!r} in {SPLITS[at]}"
        for at in (1, 2)
        for label in sorted(set(dataset.targets[part == at].tolist()) - taught)
    ]
    if strange:
        raise DataError(
            f"{len(strange)} classes are not in train ({listed(strange)})",
            "add examples of them to train, or remove them",
        )
    if len(taught) == 1:
        raise DataError(
            f"all {int((part == 0).sum())} train examples of {dataset.name} are of one class "
            f"({dataset.class_names[taught.pop()]!r})",
            "add examples of at least one other class",
        )


def _how(rows: _Rows) -> str:
    return "split at random, stratified" + (", no group on both sides" if rows.groups is not None else "")


def _carve(rows: _Rows, part: np.ndarray, into: int, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Move a share of train into another split."""
    at = np.flatnonzero(part[rows.order] == 0)  # positions that are train so far
    chosen = _choose(rows, at, (1.0 - fraction, fraction), rng) == 1
    part = part.copy()
    part[rows.order[at[chosen]]] = into
    return part


def _folds(rows: _Rows, part: np.ndarray, rng: np.random.Generator) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    at = np.flatnonzero(part[rows.order] == 0)
    units = len(at) if rows.groups is None else len(np.unique(rows.groups[at]))
    count = min(NUM_FOLDS, units)
    if count < 2:
        raise DataError(
            f"{units} {'examples' if rows.groups is None else 'groups'} are left for train, too few for two folds",
            "add examples, or name a finer group column",
        )
    fold = _choose(rows, at, (1.0 / count,) * count, rng)
    pairs = ((np.sort(rows.order[at[fold != own]]), np.sort(rows.order[at[fold == own]])) for own in range(count))
    return tuple((train, val) for train, val in pairs if len(val))


def _choose(rows: _Rows, at: np.ndarray, shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Say for each position in `at` to which share it goes."""
    if rows.groups is None:
        chosen = _systematic(rows.stratum[at], shares, rng)
        if rows.must_learn and len(shares) == 2:
            _leave_one(rows, at, chosen)
        return chosen
    return _greedy(rows, at, shares, rng)


def _systematic(stratum: np.ndarray, shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Deal rows out at equal steps along the order of strata, shuffled inside each."""
    count = len(stratum)
    order = np.lexsort((rng.permutation(count), stratum))
    chosen = np.empty(count, np.int64)
    if len(shares) > 2:  # equal folds
        chosen[order] = (np.arange(count) + int(rng.integers(len(shares)))) % len(shares)
        return chosen
    steps = np.floor(np.arange(count + 1) * shares[1] + rng.random())
    taken = np.diff(steps) > 0
    _at_least_one(taken, rng)
    chosen[order] = taken
    return chosen


def _at_least_one(taken: np.ndarray, rng: np.random.Generator) -> None:
    if not taken.any():
        taken[int(rng.integers(len(taken)))] = True


def _leave_one(rows: _Rows, at: np.ndarray, chosen: np.ndarray) -> None:
    """Give an example of every label back to train where all were taken."""
    share = np.full(len(rows.order), -1, np.int64)
    share[at] = chosen
    place, label = rows.labels.T
    there, taught = np.unique(label[share[place] >= 0]), np.unique(label[share[place] == 0])
    for missing in np.setdiff1d(there, taught):
        share[place[(label == missing) & (share[place] >= 0)][0]] = 0
    chosen[:] = share[at]


def _greedy(rows: _Rows, at: np.ndarray, shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Deal whole groups out, big ones first, each where it disturbs the wanted proportions least."""
    assert rows.groups is not None
    groups, own = np.unique(rows.groups[at], return_inverse=True)
    labels = _group_labels(rows, at, own, len(groups))
    sizes = np.bincount(own)
    share = np.array(shares)
    total = np.zeros(1 + max((int(label.max(initial=-1)) for label, _ in labels), default=-1))
    for label, weight in labels:
        total[label] += weight
    filled = np.zeros((len(share), len(total)))
    size = np.zeros(len(share))
    to = np.zeros(len(groups), np.int64)
    for group in np.lexsort((rng.permutation(len(groups)), -sizes)):
        label, weight = labels[group]
        part, whole = weight / total[label], sizes[group] / len(at)
        cost = ((2 * filled[:, label] + part) * part).sum(axis=1) + (2 * size + whole) * whole
        best = int(np.argmin(cost / share))
        to[group] = best
        filled[best, label] += part
        size[best] += whole
    _fill_empty(to, sizes, len(share))
    if rows.must_learn and len(share) == 2:
        _teach(to, labels, sizes)
    return to[own]


def _group_labels(rows: _Rows, at: np.ndarray, own: np.ndarray, num_groups: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Count the labels of each group: (different labels, how many of each)."""
    position = np.full(len(rows.order), -1, np.int64)
    position[at] = own
    group = position[rows.labels[:, 0]]
    inside = group >= 0
    group, label = group[inside], rows.labels[inside, 1]
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=num_groups))
    pieces = np.split(label[order], ends[:-1])
    return [(found[0], found[1].astype(float)) for found in (np.unique(piece, return_counts=True) for piece in pieces)]


def _fill_empty(to: np.ndarray, sizes: np.ndarray, count: int) -> None:
    """Move the smallest group that can be spared into each part that got none."""
    for part in range(count):
        if not (to == part).any():
            in_part = np.bincount(to, minlength=count)
            spare = np.flatnonzero(in_part[to] > 1)
            if len(spare):
                to[spare[np.argmin(sizes[spare])]] = part


def _teach(to: np.ndarray, labels: list[tuple[np.ndarray, np.ndarray]], sizes: np.ndarray) -> None:
    """Bring labels that only part 1 has back into train, with the smallest group that holds them."""
    while True:
        taught = {label for group in np.flatnonzero(to == 0) for label in labels[group][0].tolist()}
        outside = np.flatnonzero(to == 1)
        missing = Counter(label for group in outside for label in labels[group][0].tolist() if label not in taught)
        if not missing or len(outside) == 1:
            return
        label = min(missing)
        holders = [group for group in outside if label in labels[group][0]]
        to[min(holders, key=lambda group: (sizes[group], group))] = 0
