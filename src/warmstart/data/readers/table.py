"""A table with one row per picture: CSV, TSV, JSON lines or Parquet."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from warmstart.data import Dataset, Input, SplitName, columns, files, images
from warmstart.data.columns import Table
from warmstart.data.targets import Targets, TargetType, infer, vector
from warmstart.errors import DataError, closest, listed

IMAGE_NAMES = (
    "image",
    "file",
    "path",
    "filename",
    "file_name",
    "filepath",
    "image_path",
    "img",
    "image_file",
    "picture",
)
TARGET_NAMES = ("label", "labels", "target", "targets", "class", "category", "y")
SPLIT_NAMES = ("split", "subset", "fold", "set")
SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
LOOKED_AT = 50
"""Rows that are looked at to guess which column holds pictures."""


@dataclass(frozen=True)
class TableReader:
    """Reads a table whose rows name a picture (a path relative to the table, or its bytes), a target and more."""

    image_column: str | None = None
    """Column of picture paths; None takes the only one whose cells look like pictures."""
    target_column: str | None = None
    """Column of targets, or several with commas between; None takes `label`, `class` …, or the only one left."""
    group_column: str | None = None
    """Column of groups that must stay on one side of a split, such as a patient."""
    split_column: str | None = None
    """Column of train, val, test; None takes `split` when it holds nothing else."""
    id_column: str | None = None
    """Column of unique ids; None takes the picture's path."""
    separator: str | None = None
    """Splits a target cell into several labels, such as `|`."""
    target_type: TargetType = "auto"
    """`classes` or `numbers`; `auto` takes numbers with a fraction, or many different integers, for regression."""

    def matches(self, path: Path) -> bool:
        """Say whether the suffix is a table's."""
        return path.is_file() and path.suffix.lower() in columns.SUFFIXES

    def read(self, path: Path) -> Dataset:
        """Read the table; whether its pictures exist is checked, what is in them is not.

        Raises:
            DataError: Unknown columns, missing targets, repeated ids, splits that overlap, missing pictures.
        """
        table = columns.read_table(path)
        image = self.image_column or _guess_image(table)
        cells = table.column(image, f"--image-column {image}")
        split = self.split_column or _guess_split(table, {image})
        wanted = self._target_columns(table, {image, split or "", self.group_column or "", self.id_column or ""})
        given = _splits(table, split) if split else None
        ids = _ids(table, self.id_column, cells)
        _check_unique(table, ids, given)
        inputs = _inputs(table, image, cells)
        found = self._targets(table, wanted)
        used = {image, split, self.group_column, self.id_column, *wanted}
        spare = [name for name in table.columns if name not in used]
        notes = [f"pictures are in column {image!r}", found.note, f"splits are in column {split!r}" if split else ""]
        notes.append(f"columns that are not used: {listed(spare)}" if spare else "")
        return Dataset(
            ids,
            inputs,
            found.kind,
            found.values,
            found.class_names,
            groups=_groups(table, self.group_column) if self.group_column else None,
            given_split=given,
            name=path.stem,
            notes=(*table.notes, *(note for note in notes if note)),
        )

    def _target_columns(self, table: Table, taken: set[str]) -> list[str]:
        if self.target_column is None:
            return _guess_target(table, taken)
        if self.target_column in table.columns:
            return [self.target_column]
        names = [name.strip() for name in self.target_column.split(",")]
        for name in names:
            table.column(name, f"--target-column {self.target_column}")
        return names

    def _targets(self, table: Table, names: list[str]) -> Targets:
        if not names:
            return Targets("none", None, note="no column of targets: pictures without targets")
        if len(names) > 1:
            cells = [table.columns[name] for name in names]
            return vector(cells, names, target_type=self.target_type, where=table.where)
        return infer(
            table.columns[names[0]],
            name=names[0],
            separator=self.separator,
            target_type=self.target_type,
            where=table.where,
        )


def _guess_image(table: Table) -> str:
    looks = [name for name, cells in table.columns.items() if _look_like_pictures(cells)]
    named = [name for name in table.columns if name.lower() in IMAGE_NAMES]
    for found in (looks, [name for name in looks if name in named], [] if looks else named):
        if len(found) == 1:
            return found[0]
    raise DataError(
        f"cannot tell which column of {table.path} holds the pictures, it has {listed(list(table.columns))}",
        f"--image-column {(looks or named or list(table.columns))[0]}",
    )


def _look_like_pictures(cells: list[object]) -> bool:
    seen = [cell for cell in cells[:LOOKED_AT] if cell not in (None, "")]
    return bool(seen) and all(
        isinstance(cell, bytes)
        or (isinstance(cell, dict) and "bytes" in cell)
        or (isinstance(cell, str) and PurePosixPath(cell).suffix.lower() in images.SUFFIXES)
        for cell in seen
    )


def _guess_split(table: Table, taken: set[str]) -> str | None:
    for name, cells in table.columns.items():
        called_so = name.lower() in SPLIT_NAMES and name not in taken
        if called_so and all(isinstance(cell, str) and cell.strip().lower() in SPLIT_WORDS for cell in cells):
            return name
    return None


def _guess_target(table: Table, taken: set[str]) -> list[str]:
    left = [name for name in table.columns if name not in taken and not _look_like_pictures(table.columns[name])]
    named = [name for name in left if name.lower() in TARGET_NAMES]
    for found in (named, left):
        if len(found) == 1:
            return found
    if not left:
        return []
    raise DataError(
        f"cannot tell which column of {table.path} holds the targets, it has {listed(named or left)}",
        f"--target-column {(named or left)[0]}",
    )


def _splits(table: Table, name: str) -> np.ndarray:
    cells = [str(cell or "").strip().lower() for cell in table.column(name, f"--split-column {name}")]
    unknown = [
        f"{table.where(row)}: {table.columns[name][row]!r}" for row, cell in enumerate(cells) if cell not in SPLIT_WORDS
    ]
    if unknown:
        raise DataError(
            f"{len(unknown)} cells of split column {name!r} are not train, val or test ({listed(unknown)})",
            closest(str(table.columns[name][cells.index(next(c for c in cells if c not in SPLIT_WORDS))]), SPLIT_WORDS),
        )
    return np.array([SPLIT_WORDS[cell] for cell in cells])


def _groups(table: Table, name: str) -> np.ndarray:
    cells = table.column(name, f"--group-column {name}")
    missing = [table.where(row) for row, cell in enumerate(cells) if cell is None or str(cell).strip() == ""]
    if missing:
        raise DataError(
            f"{len(missing)} cells of group column {name!r} are empty ({listed(missing)})",
            "give every row a group; a row of its own group may carry its id",
        )
    return np.array([str(cell).strip() for cell in cells])


def _ids(table: Table, name: str | None, cells: Sequence[object]) -> list[str]:
    if name is not None:
        return [str(cell) for cell in table.column(name, f"--id-column {name}")]
    return [cell if isinstance(cell, str) else _path_of(cell) or table.where(row) for row, cell in enumerate(cells)]


def _path_of(cell: object) -> str | None:
    path = cell.get("path") if isinstance(cell, dict) else None
    return path if isinstance(path, str) else None


def _check_unique(table: Table, ids: list[str], given: np.ndarray | None) -> None:
    """Refuse repeated ids; one that is in two splits is said so, because that is the worse mistake."""
    count = Counter(ids)
    if len(count) == len(ids):
        return
    places: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        if count[name] > 1:
            places.setdefault(name, []).append(row)
    across = {
        name: rows for name, rows in places.items() if given is not None and len({given[row] for row in rows}) > 1
    }
    if across and given is not None:
        shown = [
            f"{name} in {' and '.join(f'{given[row]} {table.where(row)}' for row in rows)}"
            for name, rows in across.items()
        ]
        raise DataError(
            f"splits overlap: {len(across)} ids are in more than one split ({listed(shown)})",
            "keep each id in one split",
        )
    shown = [f"{name} in {', '.join(table.where(row) for row in rows)}" for name, rows in places.items()]
    raise DataError(
        f"duplicate ids: {len(places)} ids occur more than once ({listed(shown)})",
        "remove the repeated rows, or name a column of unique values with --id-column",
    )


def _inputs(table: Table, name: str, cells: list[object]) -> Sequence[Input]:
    inline = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
    if all(isinstance(cell, bytes) for cell in inline):
        return [cell for cell in inline if isinstance(cell, bytes)]
    paths = [_path_of(cell) or cell for cell in cells]
    empty = [table.where(row) for row, cell in enumerate(paths) if not isinstance(cell, str) or not cell]
    if empty:
        raise DataError(f"{len(empty)} cells of image column {name!r} are empty ({listed(empty)})", "remove those rows")
    found = files.Paths(table.path.parent, [str(cell) for cell in paths])
    _check_present(table, found)
    return found


@dataclass
class _Folders:
    """What is in each folder, listed once: a million calls of `stat` take longer than all the rest."""

    seen: dict[str, frozenset[str]] = field(default_factory=dict)

    def has(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder not in self.seen:
            try:
                self.seen[folder] = frozenset(os.listdir(folder or "/"))  # noqa: PTH208 names only, as strings
            except OSError:
                self.seen[folder] = frozenset()
        return name in self.seen[folder] or os.path.exists(path)  # noqa: PTH110 letter case, or `..` at the end


def _check_present(table: Table, paths: files.Paths) -> None:
    folders = _Folders()
    root = str(paths.root.absolute())
    missing = [
        f"{name} in {table.where(row)}"
        for row, name in enumerate(paths.names)
        if not folders.has(os.path.join(root, name))  # noqa: PTH118 a million Path objects take seconds
    ]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} pictures of {table.path} do not exist ({listed(missing)})",
            f"paths are relative to the table's folder, {paths.root}: move the table, or correct its paths",
        )


PLUGIN = TableReader
