"""What a column of targets means: classes, several labels, or numbers. Pure rules, each with a note that says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from warmstart.data import TargetKind
from warmstart.errors import DataError, listed

TargetType = Literal["auto", "classes", "numbers"]
FEW_CLASSES = 20
"""This many different integers are taken for classes without further question."""
MOSTLY = 0.9
MISSING_WORDS = frozenset({"", "nan", "na", "n/a", "null", "none", "?"})


@dataclass(frozen=True)
class Targets:
    """Targets as a dataset wants them; the shapes are those of `Dataset.targets`."""

    kind: TargetKind
    values: np.ndarray | None
    class_names: tuple[str, ...] = ()
    note: str = ""


def infer(
    values: Sequence[object],
    *,
    name: str,
    separator: str | None = None,
    target_type: TargetType = "auto",
    where: Callable[[int], str] = lambda row: f"row {row + 1}",
) -> Targets:
    """Decide what one column of targets means.

    Lists, or text with a separator, are several labels. Numbers with a fraction are regression. Integers are classes
    when there are at most 20 different ones and each occurs twice on average, or when they are exactly 0 … C-1 with
    five examples each; otherwise they are regression. All other text is classes.

    Args:
        values: The cells.
        name: How the user calls the column; it stands in messages.
        separator: Splits a cell into several labels.
        target_type: Overrules the rule above.
        where: Says where row i is, such as `line 7`.

    Raises:
        DataError: Missing targets, or text among numbers; the places are listed.
    """
    if any(isinstance(value, (list, tuple, set, np.ndarray)) for value in values):
        return _lists(values, name, target_type, where)
    if separator is not None:
        labels = [[label.strip() for label in _text(value).split(separator) if label.strip()] for value in values]
        return multi(labels)
    numbers = [_number(value) for value in values]
    if target_type == "numbers" or (target_type == "auto" and _is_numeric(values, numbers, name, where)):
        return Targets("scalar", _finite(values, numbers, name, where), note=f"column {name!r} is numbers: regression")
    return _classes(values, name, where)


def vector(
    columns: Sequence[Sequence[object]],
    names: Sequence[str],
    *,
    target_type: TargetType = "auto",
    where: Callable[[int], str] = lambda row: f"row {row + 1}",
) -> Targets:
    """Join several target columns: labels when every value is 0 or 1, else a vector of numbers.

    Raises:
        DataError: A value that is missing or not a number.
    """
    parsed = [
        _finite(column, [_number(value) for value in column], name, where)
        for column, name in zip(columns, names, strict=True)
    ]
    table = np.stack(parsed, axis=1)  # (N, K)
    if target_type == "classes" or (target_type == "auto" and bool(np.isin(table, (0.0, 1.0)).all())):
        note = f"columns {listed(list(names))} hold 0 and 1 only: one label each"
        return Targets("multi", table != 0.0, tuple(names), note)
    return Targets("vector", table, tuple(names), f"columns {listed(list(names))} are numbers: regression")


def single(names: Sequence[str]) -> Targets:
    """Number the classes in sorted order; names that are all whole numbers sort as numbers."""
    order = sorted_classes(set(names))
    index = {name: at for at, name in enumerate(order)}
    return Targets("single", np.fromiter((index[name] for name in names), np.int64, len(names)), order)


def multi(labels: Sequence[Sequence[str]]) -> Targets:
    """Mark which labels each example has; an example may have none."""
    order = sorted_classes({label for row in labels for label in row})
    index = {name: at for at, name in enumerate(order)}
    marks = np.zeros((len(labels), len(order)), bool)
    for row, own in enumerate(labels):
        marks[row, [index[label] for label in own]] = True
    return Targets("multi", marks, order)


def sorted_classes(names: set[str]) -> tuple[str, ...]:
    """Sort class names, as numbers when all are whole numbers.

    Example:
        >>> sorted_classes({"10", "9", "1"})
        ('1', '9', '10')
    """
    if all(name.lstrip("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _classes(values: Sequence[object], name: str, where: Callable[[int], str]) -> Targets:
    texts = [_text(value).strip() for value in values]
    missing = [where(row) for row, text in enumerate(texts) if not text]
    if missing:
        raise _missing(missing, name)
    found = single(texts)
    return Targets("single", found.values, found.class_names, f"column {name!r} holds {len(found.class_names)} classes")


def _lists(values: Sequence[object], name: str, target_type: TargetType, where: Callable[[int], str]) -> Targets:
    rows = [list(value) if isinstance(value, (list, tuple, set, np.ndarray)) else None for value in values]
    missing = [where(row) for row, value in enumerate(rows) if value is None]
    if missing:
        raise _missing(missing, name)
    whole = [row for row in rows if row is not None]
    fractions = any(isinstance(item, (float, np.floating)) for row in whole for item in row)
    if target_type == "numbers" or (target_type == "auto" and fractions):
        return _vectors(whole, name, where)
    return multi([[_text(item).strip() for item in row] for row in whole])


def _vectors(rows: Sequence[list[object]], name: str, where: Callable[[int], str]) -> Targets:
    width = len(rows[0])
    uneven = [f"{where(at)} has {len(row)}" for at, row in enumerate(rows) if len(row) != width]
    if uneven:
        raise DataError(
            f"column {name!r} holds lists of {width} numbers, but {listed(uneven)}", "give every row as many numbers"
        )
    columns = [[row[at] for row in rows] for at in range(width)]
    return vector(columns, [f"{name}[{at}]" for at in range(width)], target_type="numbers", where=where)


def _is_numeric(
    values: Sequence[object], numbers: Sequence[float | None], name: str, where: Callable[[int], str]
) -> bool:
    """Say whether a column is regression; refuse one that is numbers with a few words between them."""
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    words = [row for row, number in enumerate(numbers) if number is None and not _is_missing(values[row])]
    if len(known) < MOSTLY * (len(known) + len(words)) or not known:
        return False
    if all(_is_whole(value) for value, number in zip(values, numbers, strict=True) if number is not None):
        distinct = set(known)
        if _are_classes(distinct, len(known)):
            return False
    if words:
        shown = listed([f"{where(row)}: {_text(values[row])!r}" for row in words])
        raise DataError(
            f"column {name!r} is numbers, but not everywhere ({shown})", "correct these, or --task classification"
        )
    return True


def _are_classes(distinct: set[float], count: int) -> bool:
    few = len(distinct) <= FEW_CLASSES and count >= 2 * len(distinct)
    return few or (distinct == set(range(len(distinct))) and count >= 5 * len(distinct))


def _finite(
    values: Sequence[object], numbers: Sequence[float | None], name: str, where: Callable[[int], str]
) -> np.ndarray:
    bad = [row for row, number in enumerate(numbers) if number is None or not math.isfinite(number)]
    words = [row for row in bad if not _is_missing(values[row]) and numbers[row] is None]
    if words:
        shown = listed([f"{where(row)}: {_text(values[row])!r}" for row in words])
        raise DataError(
            f"column {name!r} must be numbers, but is not everywhere ({shown})",
            "correct these, or --task classification",
        )
    if bad:
        raise _missing([where(row) for row in bad], name)
    return np.array(numbers, np.float64)


def _missing(places: list[str], name: str) -> DataError:
    return DataError(
        f"{len(places)} targets in column {name!r} are missing or NaN ({listed(places)})",
        "fill them in, or remove those rows",
    )


def _is_missing(value: object) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or _text(value).strip().lower() in MISSING_WORDS
    )


def _is_whole(value: object) -> bool:
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return True
    return isinstance(value, str) and value.strip().lstrip("+-").isdecimal()


def _number(value: object) -> float | None:
    if isinstance(value, (bool, np.bool_, int, float, np.integer, np.floating)):
        return float(value)
    try:
        return float(value) if isinstance(value, str) and "_" not in value else None
    except ValueError:
        return None


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    return str(value)
