"""Unpacking of archives that come from strangers: nothing is written outside of the folder, and not without end."""

from __future__ import annotations

import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from warmstart.errors import DataError, listed

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_RATIO = 200
"""Unpacked bytes per packed byte; pictures reach 2, tables 20, bombs 1,000 and more."""
SMALL_BYTES = 100_000_000
"""Below this the ratio does not matter."""


@dataclass(frozen=True)
class _Member:
    name: str
    num_bytes: int
    refusal: str | None
    open: Callable[[], AbstractContextManager[IO[bytes]]]


def is_archive(path: Path) -> bool:
    """Say by its name whether a file is an archive that `safe_extract` can unpack."""
    return path.name.lower().endswith(SUFFIXES)


def safe_extract(archive: Path, folder: Path) -> None:
    """Unpack a .zip or .tar into a folder; what its headers say is checked before anything is written.

    Links inside the archive become copies of what they point to. Permissions and owners are not kept.

    Raises:
        DataError: A path that is absolute or climbs out, a link out, a device, a password, damage, or far more bytes
            than an archive of this size can honestly hold.
    """
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as packed:
                _extract(archive, folder, lambda: _zip_members(packed))
        else:
            with tarfile.open(archive) as packed_tar:
                _extract(archive, folder, lambda: _tar_members(packed_tar))
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError) as error:
        raise DataError(f"{archive} is damaged or no archive ({error})", "download or pack it again") from error


def _extract(archive: Path, folder: Path, members: Callable[[], Iterator[_Member]]) -> None:
    _check(archive, members())
    folder.mkdir(parents=True, exist_ok=True)
    left = _allowance(archive)
    for member in members():
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as packed, target.open("wb") as file:
            left -= _copy(packed, file, left)
        if left < 0:
            raise _bomb(archive)


def _check(archive: Path, members: Iterator[_Member]) -> None:
    refused, total = [], 0
    for member in members:
        reason = _climbs(member.name) or member.refusal
        if reason:
            refused.append(f"{member.name}: {reason}")
        total += member.num_bytes
        if total > _allowance(archive):
            raise _bomb(archive)
    if refused:
        raise DataError(
            f"{archive} is refused: {len(refused)} entries would leave its folder or are no files ({listed(refused)})",
            "unpack it yourself after looking at it, and give the folder",
        )


def _climbs(name: str) -> str | None:
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "an absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "a path that climbs out of its folder"
    return "an empty name or a zero byte in it" if "\0" in name or PurePosixPath(name) == PurePosixPath() else None


def _allowance(archive: Path) -> int:
    return max(SMALL_BYTES, archive.stat().st_size * MAX_RATIO)


def _bomb(archive: Path) -> DataError:
    return DataError(
        f"{archive} unpacks to more than {MAX_RATIO} times its {archive.stat().st_size} bytes (a decompression bomb?)",
        "unpack it yourself if you trust it, and give the folder",
    )


def _copy(packed: IO[bytes], file: IO[bytes], limit: int) -> int:
    """Copy until the end or just past the limit: what a header announces is not to be relied on."""
    done = 0
    while done <= limit and (block := packed.read(1 << 20)):
        file.write(block)
        done += len(block)
    return done


def _zip_members(packed: zipfile.ZipFile) -> Iterator[_Member]:
    for info in packed.infolist():
        kind = (info.external_attr >> 16) & 0o170000
        refusal = "it needs a password" if info.flag_bits & 1 else None
        if kind not in (0, 0o100000, 0o040000):
            refusal = "a link or a device"
        if not info.is_dir() or _climbs(info.filename) or refusal:
            yield _Member(info.filename, info.file_size, refusal, partial(packed.open, info))


def _tar_members(packed: tarfile.TarFile) -> Iterator[_Member]:
    for info in packed:
        if info.isdir() and not _climbs(info.name):
            continue
        yield _Member(info.name, info.size, _tar_refusal(info), partial(_tar_open, packed, info))


def _tar_refusal(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        base = PurePosixPath(info.name).parent if info.issym() else PurePosixPath()
        return None if _stays(base, info.linkname) else f"a link out of its folder to {info.linkname}"
    return None if info.isreg() and not info.issparse() else "a device, a pipe or a sparse file"


def _stays(base: PurePosixPath, link: str) -> bool:
    if _climbs(link) == "an absolute path":
        return False
    depth = 0
    for part in (*base.parts, *PurePosixPath(link).parts):
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return True


def _tar_open(packed: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    try:
        file = packed.extractfile(info)
    except (KeyError, RecursionError) as error:
        raise tarfile.TarError(f"{info.name} links to {info.linkname}, which is not in it") from error
    if file is None:
        raise tarfile.TarError(f"{info.name} links to a folder")
    return file
