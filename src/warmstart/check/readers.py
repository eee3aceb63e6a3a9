"""What every reader must keep of the contract in `warmstart.data`, on files that it says it can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np

from warmstart.data import SPLITS, Dataset, Reader, images


def check_reader(reader: Reader, path: Path) -> None:
    """Raise AssertionError unless a reader keeps its contract on these files.

    It recognises them; it lists without decoding, twice in the same order; columns are equally long and of their
    declared types; ids are unique; its first and last pictures can be opened; rows can be taken out of it.

    Args:
        reader: With any options.
        path: Files that it can read, with pictures that can be decoded.
    """
    assert isinstance(reader, Reader), f"{reader!r} lacks a member of the Reader protocol"
    where = f"{type(reader).__name__} on {path.name}"
    assert reader.matches(path), f"{where}: matches says no"
    decoding = AssertionError(f"{where}: read decodes pictures, and should only list them")
    with mock.patch("PIL.Image.open", side_effect=decoding), mock.patch("PIL.Image.fromarray", side_effect=decoding):
        dataset, again = reader.read(path), reader.read(path)
    assert len(dataset), f"{where}: no examples"
    _check_columns(dataset, where)
    _check_targets(dataset, where)
    assert list(dataset.ids) == list(again.ids), f"{where}: a second read gives other ids, or another order"
    for what in ("targets", "groups", "given_split"):
        same = _equal(getattr(dataset, what), getattr(again, what))
        assert same, f"{where}: a second read gives other {what}"
    for row in (0, len(dataset) - 1):
        images.open_picture(dataset.inputs[row])
    _check_take(dataset, where)


def _check_columns(dataset: Dataset, where: str) -> None:
    """Columns are as long as the ids, which are unique; splits are of the three names."""
    count = len(dataset.ids)
    columns: dict[str, Sequence[object] | np.ndarray | None] = {
        "inputs": dataset.inputs,
        "targets": dataset.targets,
        "groups": dataset.groups,
        "given_split": dataset.given_split,
    }
    for name, column in columns.items():
        rows = count if column is None else len(column)
        assert rows == count, f"{where}: {name} has {rows} rows for {count} ids"
    names = [str(one) for one in dataset.ids]
    assert len(set(names)) == count, f"{where}: {count - len(set(names))} ids are there more than once"
    if dataset.given_split is not None:
        odd = set(dataset.given_split.tolist()) - set(SPLITS)
        assert not odd, f"{where}: given_split holds {sorted(odd)}, expected {', '.join(SPLITS)}"


def _check_targets(dataset: Dataset, where: str) -> None:
    """Targets have the type and shape that their kind declares, and classes are among the named ones."""
    kind, targets, num_classes = dataset.kind, dataset.targets, len(dataset.class_names)
    if kind == "none":
        assert targets is None, f"{where}: the kind is none, and there are targets"
        return
    assert targets is not None, f"{where}: the kind is {kind}, and there are no targets"
    width = () if kind in ("single", "scalar") else (num_classes,)
    shape = (len(dataset), *width)
    assert targets.shape == shape, f"{where}: {kind} targets are {targets.shape}, expected {shape}"
    wanted = {"single": np.int64, "multi": np.bool_}.get(kind, np.float64)
    assert targets.dtype == wanted, f"{where}: {kind} targets are {targets.dtype}, expected {np.dtype(wanted)}"
    if kind == "single":
        low, high = int(targets.min()), int(targets.max())
        assert low >= 0 and high < num_classes, f"{where}: targets {low} to {high} for {num_classes} class names"
    if kind in ("single", "multi"):
        assert len(set(dataset.class_names)) == num_classes, f"{where}: classes share names: {dataset.class_names}"


def _check_take(dataset: Dataset, where: str) -> None:
    """Rows that are taken out keep what belongs to them."""
    rows = np.arange(len(dataset))[::-1]
    taken = dataset.take(rows)
    for at in (0, len(dataset) - 1):
        before, after = dataset[int(rows[at])], taken[at]
        kept = (before.id, before.target, before.group) == (after.id, after.target, after.group)
        assert kept, f"{where}: take mixes rows up ({before.id} became {after.id})"
        same = images.content_hash(before.input) == images.content_hash(after.input)
        assert same, f"{where}: take gives {after.id} the picture of another row"


def _equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
