"""A space of the cache: rows by key, whatever shards they lie in."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import numpy as np

from warmstart import durable, shards
from warmstart.errors import CacheError, RunError
from warmstart.shards import KEY, Shard

log = logging.getLogger(__name__)

IN_MEMORY_BYTES = 256 * 2**20
"""Rows up to this size are handed out as one array; above, they stay memory-mapped."""


class Rows:
    """Rows that stay in memory-mapped shards until they are asked for; indexing returns a copy.

    Shape:
        float32 (N, …). Index with an int, a slice, or an int64 or bool array.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, held: tuple[Shard, ...], shard: np.ndarray, row: np.ndarray) -> None:
        self._held = held
        self._shard = shard
        self._row = row

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, then the shape of one."""
        return (len(self._row), *self._held[0].shape) if self._held else (0,)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return int(np.prod(self.shape, dtype=np.int64)) * 4

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(index, int | np.integer):
            return np.array(self._held[self._shard[index]].values[self._row[index]])
        return _gather(self._held, self._shard[index], self._row[index], self.shape[1:])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def load(self) -> np.ndarray | Rows:
        """Return one array when the rows are small (`IN_MEMORY_BYTES`), else the rows as they are."""
        return self[:] if self.nbytes <= IN_MEMORY_BYTES else self


class Space:
    """The rows of one function of pictures. Several processes may fill it at the same time.

    Args:
        folder: Where its shards lie; made when the first row is written.
        description: What it holds, for people.
    """

    def __init__(self, folder: Path, description: str = "") -> None:
        self.folder = folder
        self.description = description
        self._shards: list[Shard] = []
        self._keys = np.empty(0, KEY)  # sorted
        self._shard = np.empty(0, np.int64)
        self._row = np.empty(0, np.int64)
        shards.sweep(folder)
        for index in sorted(folder.glob("*.index")):
            self._open(index)
        self._reindex()

    def __len__(self) -> int:
        return len(np.unique(self._keys))

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Say which rows are here and whole; damaged ones are forgotten, logged, and count as missing.

        Args:
            keys: Keys of the rows.

        Returns:
            bool (N,), True where the row can be read.

        Shape:
            keys: S16 (N,).
        """
        while True:
            at, found = self._locate(keys)
            bad = {
                number: self._shards[number].damaged(self._row[at[found]][self._shard[at[found]] == number])
                for number in np.unique(self._shard[at[found]]).tolist()
            }
            bad = {number: rows for number, rows in bad.items() if len(rows)}
            if not bad:
                return found
            for number, rows in bad.items():
                log.warning("cache: %d damaged rows in %s are computed again", len(rows), self._shards[number].path)
                self._shards[number].drop(rows)
            self._reindex()

    def rows(self, keys: np.ndarray) -> Rows:
        """Return the rows of these keys, in this order; `find` has said that they are here.

        Shape:
            keys: S16 (N,).
        """
        at, found = self._locate(keys)
        assert found.all(), "rows are asked for after `find`"
        shard = self._shard[at]
        for number in np.unique(shard).tolist():
            self._shards[number].touch()
        return Rows(tuple(self._shards), shard, self._row[at])

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Write rows; on a disk that takes no more they are kept in memory, with a warning, while memory lasts.

        Shape:
            keys: S16 (N,). values: float32 (N, …).

        Raises:
            CacheError: Neither the disk nor the memory takes them.
        """
        try:
            shard = shards.write(self.folder, keys, values)
            self._describe()
        except RunError as error:
            shard = _in_memory(keys, values, error)
        self._shards.append(shard)
        self._reindex()

    def _open(self, index: Path) -> None:
        try:
            shard = shards.read(index)
        except (shards.DamagedError, OSError) as error:
            log.warning("cache: %s is damaged and computed again: %s", index, str(error))
            with contextlib.suppress(OSError):
                shards.remove(index)
        else:
            self._shards.append(shard)

    def _reindex(self) -> None:
        sizes = [len(shard.keys) for shard in self._shards]
        keys = np.concatenate([shard.keys for shard in self._shards]) if sizes else np.empty(0, KEY)
        order = np.argsort(keys, kind="stable")
        order = order[keys[order] != shards.DROPPED]
        self._keys = keys[order]
        self._shard = np.repeat(np.arange(len(sizes)), sizes)[order]
        self._row = np.concatenate([np.arange(size) for size in sizes] or [np.empty(0, np.int64)])[order]

    def _locate(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where each key stands in the sorted keys, and whether it does."""
        at = np.searchsorted(self._keys, keys)
        found = at < len(self._keys)
        found[found] = self._keys[at[found]] == keys[found]
        return at, found

    def _describe(self) -> None:
        path = self.folder / "space.json"
        if not path.exists():
            with contextlib.suppress(RunError):  # it is for people only
                durable.write_json(path, {"description": self.description})


def size_text(num_bytes: int) -> str:
    """Write a number of bytes for people.

    Example:
        >>> size_text(3 * 2**30)
        '3.0 GiB'
    """
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _gather(held: tuple[Shard, ...], shard: np.ndarray, row: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Copy rows out of shards, in order: one slice where they stand side by side, one indexed read per shard else."""
    numbers = np.unique(shard).tolist()
    if len(numbers) == 1 and (np.diff(row) == 1).all():
        return np.array(held[numbers[0]].values[row[0] : row[-1] + 1])
    out = np.empty((len(row), *shape), np.float32)
    for number in numbers:
        here = shard == number
        out[here] = held[number].values[row[here]]
    return out


def _in_memory(keys: np.ndarray, values: np.ndarray, error: RunError) -> Shard:
    import psutil  # type: ignore[import-untyped]

    free = int(psutil.virtual_memory().available)
    if values.nbytes > free:
        raise CacheError(
            f"the cache takes no more ({error.problem}), and {size_text(values.nbytes)} do not fit "
            f"in {size_text(free)} of free memory",
            "set WARMSTART_CACHE to a folder on a larger disk",
        ) from error
    log.warning("cache: %s; %s are kept in memory and lost at the end", error.problem, size_text(values.nbytes))
    rows = np.ascontiguousarray(values, np.float32)
    return Shard(keys.copy(), np.zeros(len(keys), np.uint32), shape=rows.shape[1:], values=rows)
