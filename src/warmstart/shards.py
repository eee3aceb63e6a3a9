"""Shard files of the cache: rows of equal shape, an index with a key and a checksum for each, and nothing half-written.

A shard is two files. `NAME.values` holds the rows, little-endian and row-major, ready to be memory-mapped.
`NAME.index` holds a header, the 16-byte key and the CRC-32 of every row, and a hash of itself. The index is renamed
into place last, so a shard exists exactly when all of it does. Nobody writes into a shard that exists, so processes
that fill one space at the same time never meet; the worst they do is to compute a row twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from warmstart import durable
from warmstart.errors import RunError

FORMAT = 1
MAGIC = b"WSSHARD1"
KEY = np.dtype("S16")
"""Keys are compared as 16 raw bytes; numpy pads with zeros, which changes no comparison between equal widths."""
DROPPED = bytes(16)
ABANDONED_SECONDS = 3600.0
"""A file of a living writer grows or gets its index long before this."""

_OPEN: weakref.WeakValueDictionary[Path, Shard] = weakref.WeakValueDictionary()


class DamagedError(Exception):
    """A shard whose files are not what was written."""


class Shard:
    """Rows that one process wrote at one time.

    Args:
        keys: Keys of the rows; `DROPPED` where a row was found damaged.
        crcs: CRC-32 of every row.
        shape: Shape of one row.
        path: The index file, or None when the rows are only in memory.
        values: The rows, when they are only in memory.

    Shape:
        keys: S16 (N,). crcs: uint32 (N,). values: float32 (N, *shape).
    """

    def __init__(
        self,
        keys: np.ndarray,
        crcs: np.ndarray,
        *,
        shape: tuple[int, ...],
        path: Path | None = None,
        values: np.ndarray | None = None,
    ) -> None:
        self.keys = keys
        self.crcs = crcs
        self.shape = shape
        self.path = path
        self._values = values
        self._verified = np.full(len(keys), path is None)

    @property
    def values(self) -> np.ndarray:
        """The rows, mapped from the file at first use; reading only."""
        if self._values is None:
            assert self.path is not None
            shape = (len(self.keys), *self.shape)
            self._values = np.asarray(np.memmap(values_path(self.path), np.dtype("<f4"), mode="r", shape=shape))
        return self._values

    def damaged(self, rows: np.ndarray) -> np.ndarray:
        """Check the rows that nobody in this process has read yet.

        Returns:
            Those of `rows` whose bytes are not the ones that were written.
        """
        todo = np.unique(rows[~self._verified[rows]])
        if not len(todo):
            return todo
        crcs = np.fromiter(_crcs(self.values, todo), np.uint32, len(todo))
        good = crcs == self.crcs[todo]
        self._verified[todo[good]] = True
        return todo[~good]

    def touch(self) -> None:
        """Note that the shard was used now; the ones used longest ago leave first."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                os.utime(self.path, ns=(time.time_ns(),) * 2)

    def drop(self, rows: np.ndarray) -> None:
        """Forget damaged rows, on disk as well where the disk allows it."""
        self.keys[rows] = DROPPED
        if self.path is None:
            return
        with contextlib.suppress(OSError, RunError):
            if (self.keys == DROPPED).all():
                remove(self.path)
            else:
                durable.write_bytes(self.path, _pack(self.keys, self.crcs, self.shape))


def values_path(index: Path) -> Path:
    """Return the values file that belongs to an index file."""
    return index.with_suffix(".values")


def in_use(index: Path) -> bool:
    """Say whether this process holds the shard."""
    return index in _OPEN


def write(folder: Path, keys: np.ndarray, values: np.ndarray) -> Shard:
    """Write rows as a new shard, durably: it is there as a whole or not at all.

    Raises:
        RunError: The disk is full, or not ours to write to; nothing is left behind.
    """
    rows = np.ascontiguousarray(values, np.dtype("<f4"))
    crcs = np.fromiter(_crcs(rows, range(len(rows))), np.uint32, len(rows))
    index = folder / f"{uuid.uuid4().hex}.index"
    try:
        durable.write(values_path(index), [_bytes(rows)])
        durable.write_bytes(index, _pack(keys, crcs, rows.shape[1:]))
    except RunError:
        with contextlib.suppress(OSError):
            remove(index)
        raise
    shard = Shard(keys.copy(), crcs, shape=rows.shape[1:], path=index)
    _OPEN[index] = shard
    return shard


def read(index: Path) -> Shard:
    """Open a shard, or return it when this process has it open; its rows are checked when they are first used.

    Raises:
        DamagedError: The index or the size of the values is not what was written.
    """
    if (known := _OPEN.get(index)) is not None:
        return known
    try:
        data = index.read_bytes()
        size = values_path(index).stat().st_size
    except FileNotFoundError as error:
        raise DamagedError(f"{error.filename} is missing") from error
    keys, crcs, shape = _unpack(data)
    expected = len(keys) * int(np.prod(shape, dtype=np.int64)) * 4
    if size != expected:
        raise DamagedError(f"its values take {size} bytes, its index says {expected}")
    shard = Shard(keys, crcs, shape=shape, path=index)
    _OPEN[index] = shard
    return shard


def count_rows(index: Path) -> int:
    """Count the rows of a shard from the header of its index, 0 where it cannot be read."""
    try:
        with index.open("rb") as handle:
            return int(str(_header(handle.read(4096))[0]["rows"]))
    except (OSError, DamagedError):
        return 0


def remove(index: Path) -> None:
    """Delete a shard, index first, so that it is never there without its values."""
    index.unlink(missing_ok=True)
    values_path(index).unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what killed writers left behind: temporary files, and values whose index never came."""
    now = time.time()
    for path in (*folder.glob(".*.tmp"), *folder.glob("*.values")):
        with contextlib.suppress(OSError):
            orphan = path.suffix == ".tmp" or not path.with_suffix(".index").exists()
            if orphan and now - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def _crcs(values: np.ndarray, rows: Sequence[int] | np.ndarray) -> Iterator[int]:
    data = _bytes(values)
    size = data.nbytes // len(values)
    return (zlib.crc32(data[row * size : (row + 1) * size]) for row in map(int, rows))


def _pack(keys: np.ndarray, crcs: np.ndarray, shape: tuple[int, ...]) -> bytes:
    header = json.dumps({"format": FORMAT, "dtype": "<f4", "shape": list(shape), "rows": len(keys)}).encode()
    body = MAGIC + len(header).to_bytes(4, "little") + header
    body += np.ascontiguousarray(keys, KEY).tobytes() + np.ascontiguousarray(crcs, "<u4").tobytes()
    return body + hashlib.blake2b(body, digest_size=16).digest()


def _unpack(data: bytes) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    if hashlib.blake2b(data[:-16], digest_size=16).digest() != data[-16:]:
        raise DamagedError("its index does not have the hash that it says")
    header, start = _header(data)
    if header["format"] != FORMAT or header["dtype"] != "<f4":
        raise DamagedError(f"its format is {header['format']} {header['dtype']}, expected {FORMAT} <f4")
    rows = int(str(header["rows"]))
    keys = np.frombuffer(data, KEY, rows, start).copy()
    crcs = np.frombuffer(data, np.dtype("<u4"), rows, start + 16 * rows).copy()
    return keys, crcs, tuple(header["shape"])  # type: ignore[arg-type]


def _header(data: bytes) -> tuple[dict[str, object], int]:
    start = len(MAGIC) + 4
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    if data[: len(MAGIC)] != MAGIC or end > len(data):
        raise DamagedError("it is no index of warmstart")
    try:
        header = json.loads(data[start:end])
    except ValueError as error:
        raise DamagedError("its header is no JSON") from error
    if not isinstance(header, dict) or not {"format", "dtype", "shape", "rows"} <= set(header):
        raise DamagedError("its header lacks fields")
    return header, end


def _bytes(values: np.ndarray) -> memoryview:
    return values.reshape(-1).view(np.uint8).data
