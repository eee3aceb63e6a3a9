"""Durable files: written aside, flushed, renamed, and the folder flushed, so a reader sees the old file or the new one.

Every byte that the project writes passes `_write`, and every rename and flush its neighbours: three places where a test
can fail the k-th operation.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from warmstart.errors import RunError, WarmstartError

CHUNK = 1 << 22


@dataclass(frozen=True)
class Written:
    """What a write left on disk: the hash of its bytes, and how many there are."""

    sha256: str
    num_bytes: int


def write(path: Path, chunks: Iterable[bytes | memoryview]) -> Written:
    """Write a file whole or not at all, and return when it would survive a power cut.

    Raises:
        RunError: The file system refused: no room, no permission, an I/O error. The old file is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = _write_aside(aside, chunks)
        _rename(aside, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise _refused(path, error) from error
    return written


def write_bytes(path: Path, data: bytes) -> Written:
    """Write bytes as `write` does."""
    return write(path, [data])


def write_text(path: Path, text: str) -> Written:
    """Write UTF-8 text as `write` does."""
    return write(path, [text.encode()])


def write_json(path: Path, value: object) -> Written:
    """Write JSON as `write` does, indented for a person; NaN and infinity as Python's `json` spells them."""
    return write_text(path, json.dumps(value, indent=1) + "\n")


def append(path: Path, lines: Iterable[str]) -> None:
    """Add lines and flush them. A torn last line, left by a kill, is cut off first.

    Raises:
        RunError: The file system refused.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        created = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.lseek(descriptor, _cut_torn_line(descriptor), os.SEEK_SET)
            _write(descriptor, "".join(f"{line}\n" for line in lines).encode())
            _sync(descriptor)
        finally:
            os.close(descriptor)
        if created:
            _sync_folder(path.parent)
    except OSError as error:
        raise _refused(path, error) from error


def read_json(path: Path, *, fix: str, error: type[WarmstartError] = RunError) -> dict[str, object]:
    """Read a JSON object.

    Args:
        path: The file.
        fix: The second line of the error.
        error: The class of the error.

    Raises:
        WarmstartError: No such file, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror}", fix) from cause
    except ValueError as cause:
        raise error(f"{path} is not JSON ({cause})", fix) from cause
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {type(value).__name__}, expected an object", fix)
    return value


def sha256(path: Path) -> str:
    """Hash a file's bytes without holding them in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a file that may be gone already, and flush its folder.

    Raises:
        RunError: The file system refused.
    """
    try:
        path.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise _refused(path, error) from error


def rename(old: Path, new: Path) -> None:
    """Rename within a folder and flush it.

    Raises:
        RunError: The file system refused.
    """
    try:
        _rename(old, new)
        _sync_folder(new.parent)
    except OSError as error:
        raise _refused(new, error) from error


def sweep(folder: Path) -> None:
    """Remove what killed writers left aside, in this folder and below. The caller holds the folder's lock."""
    for left in folder.rglob(".*.tmp"):
        left.unlink(missing_ok=True)


def _write_aside(aside: Path, chunks: Iterable[bytes | memoryview]) -> Written:
    state, total = hashlib.sha256(), 0
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for chunk in _joined(chunks):
            _write(descriptor, chunk)
            state.update(chunk)
            total += len(chunk)
        _sync(descriptor)
    finally:
        os.close(descriptor)
    return Written(state.hexdigest(), total)


def _joined(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Join small chunks: a checkpoint of a thousand small tensors is a few writes, not a thousand."""
    small = bytearray()
    for chunk in chunks:
        if len(chunk) < CHUNK // 4:
            small += chunk
        if len(small) >= CHUNK // 4 or len(chunk) >= CHUNK // 4:
            yield bytes(small)
            small.clear()
        if len(chunk) >= CHUNK // 4:
            yield chunk
    yield bytes(small)


def _write(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[:CHUNK]) :]


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _rename(old: Path, new: Path) -> None:
    old.replace(new)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # other systems cannot open a folder
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _cut_torn_line(descriptor: int) -> int:
    """Truncate after the last newline and return the length of what stays."""
    end = position = os.lseek(descriptor, 0, os.SEEK_END)
    keep = 0
    while position and not keep:
        start = max(0, position - 4096)
        os.lseek(descriptor, start, os.SEEK_SET)
        found = os.read(descriptor, position - start).rfind(b"\n")
        keep, position = (start + found + 1 if found >= 0 else 0), start
    if keep < end:
        os.ftruncate(descriptor, keep)
    return keep


def _refused(path: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write {path}: {error.strerror or error}",
        f"make room or give permission in {path.parent}, then repeat the command; it goes on where it stopped",
    )
