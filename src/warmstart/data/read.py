"""From a path, or from arrays, to a dataset: the right reader is found by looking at names alone."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from warmstart import plugins, runtime
from warmstart.data import Dataset, Input, Reader, archive, files
from warmstart.data.targets import Targets, TargetType, infer, multi, single, vector
from warmstart.errors import DataError, RecipeError, closest, listed

if TYPE_CHECKING:
    from PIL.Image import Image

    ArrayLike = np.ndarray | Sequence[Path | str | bytes | np.ndarray | Image]


def read(
    path: Path | str,
    *,
    reader: str | Reader | None = None,
    image_column: str | None = None,
    target_column: str | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    id_column: str | None = None,
    separator: str | None = None,
    target_type: TargetType | None = None,
) -> Dataset:
    """Read a folder, a table or an archive of them.

    Args:
        path: A folder, a table, or a .zip or .tar of one, which is unpacked into the cache.
        reader: Name of a reader, or one with its options set; None takes the one that matches.
        image_column: See the `table` reader, as for all that follow.
        target_column: Column of targets, or several with commas between.
        group_column: Column of groups.
        split_column: Column of splits.
        id_column: Column of unique ids.
        separator: Splits a target cell into several labels.
        target_type: `classes` or `numbers`; has no effect on readers whose targets are classes anyway.

    Raises:
        DataError: The path does not exist, no reader matches, or the files cannot be a data set.
        RecipeError: Unknown reader, or an option that the matching reader does not have.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"{path} does not exist", _nearby(place))
    if place.is_file() and archive.is_archive(place):
        place = _unpacked(place)
    options = {
        "image_column": image_column,
        "target_column": target_column,
        "group_column": group_column,
        "split_column": split_column,
        "id_column": id_column,
        "separator": separator,
        "target_type": target_type,
    }
    chosen = reader if isinstance(reader, Reader) else _reader(place, reader, {k: v for k, v in options.items() if v})
    return chosen.read(place)


def from_arrays(
    inputs: ArrayLike,
    targets: Sequence[object] | np.ndarray | None = None,
    *,
    ids: Sequence[str] | None = None,
    groups: Sequence[object] | np.ndarray | None = None,
    name: str = "arrays",
) -> Dataset:
    """Make a dataset of what is in memory.

    Args:
        inputs: An array of pictures, or a list of arrays, PIL pictures, paths or bytes.
        targets: Class names or integers; lists of class names or a bool table for several labels; floats for
            regression, a float table for a vector; None without targets.
        ids: Unique names; None numbers the examples.
        groups: What must stay on one side of a split.
        name: Name of the dataset in reports.

    Raises:
        DataError: Columns of unequal length, repeated ids, missing targets, or inputs of another kind.

    Shape:
        inputs: uint8 or uint16 (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, H, W, 4).
        targets: (N,), bool (N, C) or float (N, K).
    """
    column = _array_inputs(inputs)
    names = [f"{row:06d}" for row in range(len(column))] if ids is None else [str(name) for name in ids]
    lengths = {"targets": targets, "ids": ids, "groups": groups}
    uneven = [f"{len(own)} {what}" for what, own in lengths.items() if own is not None and len(own) != len(column)]
    if uneven:
        raise DataError(f"{len(column)} inputs, but {listed(uneven)}", "give one of each for every input")
    if len(set(names)) < len(names):
        repeated = [own for own, count in Counter(names).items() if count > 1]
        raise DataError(f"duplicate ids: {listed(repeated)}", "give every input its own id, or no ids")
    found = _array_targets(targets)
    return Dataset(
        names,
        column,
        found.kind,
        found.values,
        found.class_names,
        groups=None if groups is None else np.array([str(group) for group in groups]),
        name=name,
        notes=(found.note,) if found.note else (),
    )


def _array_inputs(inputs: ArrayLike) -> Sequence[Input]:
    if isinstance(inputs, np.ndarray):
        if inputs.ndim not in (3, 4):
            raise DataError(
                f"inputs of shape {inputs.shape}, expected (N, H, W) or (N, H, W, 1 to 4)",
                "inputs[None] for one picture",
            )
        return files.Stack((inputs,))
    column = [Path(item) if isinstance(item, str) else item for item in inputs]
    wrong = [f"{row}: {type(item).__name__}" for row, item in enumerate(column) if not _is_input(item)]
    if wrong:
        raise DataError(
            f"{len(wrong)} inputs are no path, bytes, array or picture ({listed(wrong)})", "np.asarray(input)"
        )
    return column


def _is_input(value: object) -> bool:
    if isinstance(value, (Path, bytes, np.ndarray)):
        return True
    from PIL.Image import Image

    return isinstance(value, Image)


def _array_targets(targets: Sequence[object] | np.ndarray | None) -> Targets:
    if targets is None:
        return Targets("none", None)
    if isinstance(targets, np.ndarray) and targets.ndim == 2:
        if targets.dtype == np.bool_:
            return Targets("multi", targets.copy(), tuple(str(at) for at in range(targets.shape[1])))
        names = [str(at) for at in range(targets.shape[1])]
        return vector([list(column) for column in targets.T], names, target_type="numbers")
    values = list(targets)
    if values and all(isinstance(value, (bool, np.bool_, int, np.integer)) for value in values):
        return single([str(value).lower() for value in values])
    if values and all(_is_names(value) for value in values):
        return multi([[str(item) for item in _items(value)] for value in values])
    return infer(values, name="targets", target_type="numbers" if _are_floats(values) else "auto")


def _items(value: object) -> Iterable[object]:
    assert isinstance(value, (list, tuple, set))
    return value


def _is_names(value: object) -> bool:
    return isinstance(value, (list, tuple, set)) and all(isinstance(item, str) for item in value)


def _are_floats(values: list[object]) -> bool:
    return bool(values) and all(isinstance(value, (int, float, np.integer, np.floating)) for value in values)


def _reader(path: Path, name: str | None, options: dict[str, str]) -> Reader:
    name = name or _matching(path)
    plugin = plugins.load("reader", name)
    known = {field.name for field in dataclasses.fields(plugin)}
    strangers = [option for option in options if option not in known and option != "target_type"]
    if strangers:
        shown = listed([f"--{option.replace('_', '-')}" for option in strangers])
        raise RecipeError(
            f"{shown} has no effect on {path}, which is read as {name}",
            f"leave it out, or give a table ({listed(sorted(known))} are the options of {name})"
            if known
            else "leave it out",
        )
    made = plugin(**{option: value for option, value in options.items() if option in known})
    assert isinstance(made, Reader)
    return made


def _matching(path: Path) -> str:
    """Name the reader for a path; one for any folder gives way to one that recognises more."""
    found = [name for name in plugins.names("reader") if plugins.load("reader", name)().matches(path)]
    special = [name for name in found if not getattr(plugins.load("reader", name), "general", False)]
    choice = special or found
    if not choice:
        raise DataError(
            f"cannot tell how to read {path}, expected a folder of pictures, a .csv, .tsv, .jsonl or .parquet table, "
            "or a .zip or .tar of one",
            f"--reader NAME, one of {listed(plugins.names('reader'))}",
        )
    if len(choice) > 1:
        raise DataError(f"{path} can be read in more than one way: {listed(choice)}", f"--reader {choice[0]}")
    return choice[0]


def _nearby(path: Path) -> str:
    try:
        beside = [entry.name for entry in os.scandir(path.parent)]
    except OSError:
        return f"{path.parent} does not exist either"
    return closest(path.name, beside) if beside else f"{path.parent} is empty"


def _unpacked(path: Path) -> Path:
    """Unpack an archive into the cache, once, and step into its only folder."""
    facts = path.stat()
    key = runtime.digest(str(path.resolve()), facts.st_size, facts.st_mtime_ns)
    folder = runtime.cache_root() / "unpacked" / key
    if not folder.is_dir():
        partial = folder.with_name(f"{key}.{os.getpid()}.part")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            archive.safe_extract(path, partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    inside = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    if len(inside) != 1:
        return folder
    only = inside[0]
    is_split_or_table = only.is_dir() or only.suffix.lower() in (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
    return only if is_split_or_table else folder
