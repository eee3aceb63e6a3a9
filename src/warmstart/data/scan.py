"""One pass over the files: what each picture is, what it looks like, and why it cannot be read.

Every file is read and decoded once, by threads, and remembered by (absolute path, size, time of change), so a second
run asks the file system and nothing else. Errors are not remembered: a permission or a half-copied file may heal.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from warmstart import runtime
from warmstart.data import Dataset, Input, images
from warmstart.data.alignment import SIDE

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1
"""Part of what is remembered; another way to hash or to shrink needs another number."""
CHUNK = 64
"""Pictures per task of the pool."""
SMALL_PIXELS = 96 * 96
"""Smaller pictures are decoded by one thread: two spent 1.6 times the processor time fighting for the interpreter."""
SHARD_ROWS = 16_384
"""Rows per remembered file: what a killed scan of a million files has to repeat."""
MAX_SHARDS = 64
"""More shards of one folder are merged into one."""
LIMIT_BYTES = 4 << 30
"""What all scans together may remember, about four million pictures; the oldest leave first."""
CHECKSUM_BYTES = 16
SETTLED_SECONDS = 2.0
"""A file changed more recently is not remembered: it could change again within one tick of the clock."""
ROW = np.dtype(
    [
        ("content", "u1", 16),
        ("pixels", "u1", 16),
        ("thumbnail", "u1", (SIDE, SIDE)),
        ("width", "<i4"),
        ("height", "<i4"),
        ("file_bytes", "<i8"),
        ("mode", "S8"),
        ("format", "S5"),
    ]
)
STORED = np.dtype([("key", "u1", 16), ("facts", ROW)])
SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """What was found in each example, as columns in the order of the dataset.

    Shape:
        rows: structured `ROW` (N,); zeros where the picture cannot be read.
    """

    rows: np.ndarray
    errors: Mapping[int, str] = field(default_factory=dict)
    """Row → why its picture cannot be read."""
    notes: Mapping[int, str] = field(default_factory=dict)
    """Row → what is odd about a picture that can be read, such as a PNG named .jpg."""
    decoded: int = 0
    """Pictures that this scan decoded; the others were remembered."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def readable(self) -> np.ndarray:
        """Which pictures can be read, bool (N,)."""
        mask = np.ones(len(self.rows), bool)
        mask[list(self.errors)] = False
        return mask

    @property
    def content_hash(self) -> np.ndarray:
        """uint8 (N, 16): hash of the file's bytes."""
        return np.asarray(self.rows["content"])

    @property
    def pixel_hash(self) -> np.ndarray:
        """uint8 (N, 16): hash of the decoded, upright RGB pixels and their size."""
        return np.asarray(self.rows["pixels"])

    @property
    def thumbnails(self) -> np.ndarray:
        """uint8 (N, 32, 32): the whole picture in grey, squashed to a square."""
        return np.asarray(self.rows["thumbnail"])

    @property
    def sizes(self) -> np.ndarray:
        """int32 (N, 2): width and height in pixels, upright."""
        return np.stack([self.rows["width"], self.rows["height"]], 1)

    def take(self, rows: np.ndarray) -> Scan:
        """Return the scan of `dataset.take(rows)`."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows

        def pick(texts: Mapping[int, str]) -> dict[int, str]:
            return {new: texts[old] for new, old in enumerate(rows.tolist()) if old in texts}

        return Scan(self.rows[rows], pick(self.errors), pick(self.notes), self.decoded)


def scan(
    dataset: Dataset,
    *,
    max_pixels: int = images.MAX_PIXELS,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Look at every picture of a dataset once.

    Args:
        dataset: Files, bytes, arrays or pictures.
        max_pixels: Larger pictures are errors, and are not decoded.
        workers: Threads; the result does not depend on them.
        progress: Called with (pictures done, pictures in all), the remembered ones included.
    """
    memory = _Memory.of(dataset.inputs)
    rows = np.zeros(len(dataset), ROW)
    known = memory.fill(rows)
    known &= rows["width"].astype(np.int64) * rows["height"] <= max_pixels
    todo = np.flatnonzero(~known)
    errors: dict[int, str] = {}
    done = len(dataset) - len(todo)
    for part in _looked_at(dataset.inputs, todo, max_pixels, workers):
        rows[part.rows] = part.facts
        errors |= part.errors
        memory.add(part)
        done += len(part.rows)
        if progress is not None:
            progress(done, len(dataset))
    memory.flush()
    return Scan(rows, errors, _wrong_names(dataset.inputs, rows), len(todo))


def look(item: Input, *, max_pixels: int = images.MAX_PIXELS) -> np.ndarray:
    """Return what one picture is: a record of `ROW`.

    Raises:
        images.Unreadable: See `images.open_picture`.
    """
    facts = np.zeros((), ROW)
    data = images.read_bytes(item) if isinstance(item, (Path, bytes)) else None
    facts["content"] = _bytes16(images.content_hash(item if data is None else data))
    picture = images.open_picture(item if data is None else data, max_pixels=max_pixels)
    pixels = picture.tobytes()
    facts["pixels"] = _bytes16(blake2b(pixels, digest_size=16, key=b"%dx%d" % picture.size).digest())
    facts["width"], facts["height"] = picture.size
    facts["thumbnail"] = _thumbnail(picture)
    facts["file_bytes"] = len(pixels) if data is None else len(data)
    facts["format"] = "" if data is None else images.sniff(data) or ""
    facts["mode"] = _mode(item, data)
    return facts


@dataclass(frozen=True)
class _Part:
    rows: np.ndarray
    facts: np.ndarray
    errors: dict[int, str]


def _looked_at(inputs: Sequence[Input], todo: np.ndarray, max_pixels: int, workers: int) -> Iterator[_Part]:
    def work(start: int) -> _Part:
        rows = todo[start : start + CHUNK]
        facts, errors = np.zeros(len(rows), ROW), {}
        for place, row in enumerate(rows.tolist()):
            try:
                facts[place] = look(inputs[row], max_pixels=max_pixels)
            except images.Unreadable as error:
                errors[row] = error.reason
        return _Part(rows, facts, errors)

    starts = range(0, len(todo), CHUNK)
    if not starts:
        return
    yield (first := work(0))
    num_pixels = np.mean(first.facts["width"].astype(np.int64) * first.facts["height"])
    with ThreadPoolExecutor(1 if num_pixels < SMALL_PIXELS else max(1, workers)) as pool:
        yield from pool.map(work, starts[1:])


def _thumbnail(picture: Image) -> np.ndarray:
    from PIL.Image import Resampling

    how = Resampling.BOX if min(picture.size) >= SIDE else Resampling.BILINEAR
    return np.asarray(picture.resize((SIDE, SIDE), how, reducing_gap=3.0).convert("L"))


def _mode(item: Input, data: bytes | None) -> str:
    """Name how the pixels are stored: Pillow's mode of a file or picture, the shape of an array."""
    if data is not None:
        with images._quiet():
            return images._open(data).mode  # reads the header only
    if isinstance(item, np.ndarray):
        channels = 1 if item.ndim == 2 else item.shape[2]
        return {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    return getattr(item, "mode", "")


def _bytes16(digest: bytes) -> np.ndarray:
    return np.frombuffer(digest, np.uint8)


def _wrong_names(inputs: Sequence[Input], rows: np.ndarray) -> dict[int, str]:
    notes = {}
    for row, found in enumerate(rows["format"].tolist()):
        item = inputs[row]
        if found and isinstance(item, Path) and item.suffix.lower() not in SUFFIXES_OF[found.decode()]:
            notes[row] = f"is a {found.decode()} named {item.suffix or item.name}"
    return notes


@dataclass
class _Memory:
    """What earlier scans found under one folder: shards that are written once and never changed."""

    folder: Path | None
    keys: np.ndarray
    """uint8 (N, 16), zeros for what cannot be remembered."""
    pending: list[np.ndarray] = field(default_factory=list)

    @staticmethod
    def of(inputs: Sequence[Input]) -> _Memory:
        keys = np.zeros((len(inputs), 16), np.uint8)
        paths = {row: os.path.abspath(item) for row, item in enumerate(inputs) if isinstance(item, Path)}  # noqa: PTH100
        if not paths:
            return _Memory(None, keys)
        latest = time.time_ns() - int(SETTLED_SECONDS * 1e9)
        for row, path in paths.items():
            key = _file_key(path, latest)
            if key is not None:
                keys[row] = key
        places = {os.path.dirname(path) for path in paths.values()}  # noqa: PTH120
        return _Memory(runtime.cache_root() / "scan" / runtime.digest(VERSION, os.path.commonpath(places)), keys)

    def fill(self, rows: np.ndarray) -> np.ndarray:
        """Write what is remembered into `rows` and return which rows that are, bool (N,)."""
        stored = [_read_shard(path) for path in self._shards()]
        if not sum(map(len, stored)):
            return np.zeros(len(rows), bool)
        table = np.concatenate(stored)
        table = table[np.argsort(_word(table["key"]), kind="stable")]
        place = np.searchsorted(_word(table["key"]), _word(self.keys)).clip(max=len(table) - 1)
        known = (table["key"][place] == self.keys).all(1) & self.keys.any(1)
        rows[known] = table["facts"][place[known]]
        return np.asarray(known)

    def add(self, part: _Part) -> None:
        """Remember what was found; written when a shard is full."""
        good = np.array([row not in part.errors for row in part.rows.tolist()]) & self.keys[part.rows].any(1)
        if good.any():
            table = np.zeros(int(good.sum()), STORED)
            table["key"], table["facts"] = self.keys[part.rows[good]], part.facts[good]
            self.pending.append(table)
        if sum(map(len, self.pending)) >= SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows as one shard, whole or not at all; a memory that cannot be written is no loss."""
        if self.folder is None or not self.pending:
            return
        table = np.concatenate(self.pending)
        self.pending.clear()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            merged = self._shards() if len(self._shards()) >= MAX_SHARDS else []
            _write_shard(self.folder, np.concatenate([table, *map(_read_shard, merged)]))
            for path in merged:
                path.unlink(missing_ok=True)
            _forget_oldest(self.folder.parent)
        except OSError as error:
            _log.warning("the scan is not remembered: %s", error)

    def _shards(self) -> list[Path]:
        return sorted(self.folder.glob("*.rows")) if self.folder is not None else []


def _file_key(path: str, latest: int) -> np.ndarray | None:
    try:
        facts = os.stat(path)  # noqa: PTH116 a million Path objects take seconds
    except (OSError, ValueError):
        return None
    if facts.st_mtime_ns > latest:
        return None
    text = os.fsencode(path) + b"\0%d\0%d" % (facts.st_size, facts.st_mtime_ns)
    return _bytes16(blake2b(text, digest_size=16).digest())


def _write_shard(folder: Path, table: np.ndarray) -> None:
    data = table.tobytes()
    checksum = _checksum(data)
    part = folder / f"{checksum.hex()}.{os.getpid()}.part"
    try:
        part.write_bytes(checksum + data)
        part.replace(folder / f"{checksum.hex()}.rows")
    finally:
        part.unlink(missing_ok=True)


def _read_shard(path: Path) -> np.ndarray:
    """Read a shard; one that is damaged is as good as an empty one."""
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    sound = len(data) >= CHECKSUM_BYTES and _checksum(data[CHECKSUM_BYTES:]) == data[:CHECKSUM_BYTES]
    return np.frombuffer(data, STORED, offset=CHECKSUM_BYTES) if sound else np.zeros(0, STORED)


def _forget_oldest(root: Path) -> None:
    """Keep the memory of all folders below its limit."""
    facts = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in root.rglob("*.rows"))
    excess = sum(size for _, size, _ in facts) - LIMIT_BYTES
    for _, size, path in facts:
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size


def _checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=CHECKSUM_BYTES, key=b"warmstart scan").digest()


def _word(keys: np.ndarray) -> np.ndarray:
    """First 8 bytes of each key as a number, uint64 (N,)."""
    return np.ascontiguousarray(keys).view("<u8")[:, 0]
