"""Long columns of inputs that cost little: paths built on demand, pixels that stay in their memory-mapped file."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import overload

import numpy as np

from warmstart.data import Input, Quarantined
from warmstart.data.images import SUFFIXES


@dataclass(frozen=True)
class Paths(Sequence[Path]):
    """Paths under one folder, kept as short strings and built when they are asked for."""

    root: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, row: int) -> Path: ...

    @overload
    def __getitem__(self, row: slice) -> Paths: ...

    def __getitem__(self, row: int | slice) -> Path | Paths:
        return Paths(self.root, self.names[row]) if isinstance(row, slice) else self.root / self.names[row]

    def take(self, rows: np.ndarray) -> Paths:
        """Return the paths of these rows, still as strings."""
        return Paths(self.root, [self.names[int(row)] for row in rows])


@dataclass(frozen=True)
class Stack(Sequence[Input]):
    """Arrays of pictures, end to end; a row is a view, so memory-mapped pixels are read when they are used.

    Shape:
        parts: each (N_i, H, W) or (N_i, H, W, 3).
    """

    parts: tuple[np.ndarray, ...]
    ends: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(accumulate(len(part) for part in self.parts)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @overload
    def __getitem__(self, row: int) -> Input: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[Input]: ...

    def __getitem__(self, row: int | slice) -> Input | Sequence[Input]:
        if isinstance(row, slice):
            return [self[at] for at in range(*row.indices(len(self)))]
        row = row + len(self) if row < 0 else row
        if not 0 <= row < len(self):
            raise IndexError(row)
        part = bisect_right(self.ends, row)
        start = self.ends[part - 1] if part else 0
        return self.parts[part][row - start]


@dataclass
class Listing:
    """What a folder holds, found without opening a file."""

    names: list[str] = field(default_factory=list)
    """Pictures, as posix paths relative to the folder; unsorted."""
    others: int = 0
    """Files that are no pictures by their suffix."""
    unnamed: list[Quarantined] = field(default_factory=list)
    """Pictures whose file name is not text."""


def list_pictures(folder: Path, prefix: str = "") -> Listing:
    """List the pictures under a folder, nested folders included, hidden ones left out.

    Args:
        folder: Where to look.
        prefix: Put before every name, such as `train/`.
    """
    found = Listing()
    for path, name in _walk(str(folder), prefix, frozenset()):
        if not _is_picture(name):
            found.others += 1
        elif _is_text(name):
            found.names.append(name)
        else:
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            found.unnamed.append(
                Quarantined(shown, os.fsencode(path).decode("utf-8", "backslashreplace"), "file name is not UTF-8")
            )
    return found


def folders(folder: Path) -> list[str]:
    """Return the names of the visible folders in a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _walk(folder: str, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, str]]:
    below = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                below.append((entry.path, f"{prefix}{entry.name}/"))
            else:
                yield entry.path, prefix + entry.name
    above |= {os.path.realpath(folder)}
    for path, name in below:
        if os.path.realpath(path) not in above:  # a link that points upwards has no end
            yield from _walk(path, name, above)


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 a million Path objects take seconds


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
