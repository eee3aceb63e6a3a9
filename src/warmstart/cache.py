"""Content-addressed store of features and prefix activations: what is frozen is computed once per example.

A space is one function of pictures: these weights, this transform, this cut. It is a folder named by the hash of all
that, and a row in it is named by the content of the picture. So nothing ever has to be invalidated: other weights are
another space, another picture is another row, and a hundred new pictures are a hundred new rows.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from warmstart import runtime, shards
from warmstart.errors import CacheError, RecipeError
from warmstart.spaces import Space, size_text

DEFAULT_LIMIT_BYTES = 20 * 2**30
SPARE_BYTES = 16 * 2**20
UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


@dataclass(frozen=True)
class SpaceInfo:
    """What one space holds. `used` is when it was last used, in seconds since 1970."""

    name: str
    description: str
    num_rows: int
    num_bytes: int
    used: float


@dataclass(frozen=True)
class CacheInfo:
    """What the cache holds, and how much it may hold."""

    root: Path
    limit_bytes: int
    num_bytes: int
    num_rows: int
    spaces: tuple[SpaceInfo, ...]


class Cache:
    """The store: `root/features`, `root/engines` and `root/backbones`, and a limit on their bytes.

    Args:
        root: Where it lies; `WARMSTART_CACHE`, else the user's cache folder.
        limit_bytes: How much it may hold; `WARMSTART_CACHE_LIMIT`, else 20 GiB.

    Raises:
        RecipeError: The limit in the environment is no size.
    """

    def __init__(self, root: Path | None = None, limit_bytes: int | None = None) -> None:
        self.root = runtime.cache_root() if root is None else root
        stated = os.environ.get("WARMSTART_CACHE_LIMIT")
        default = parse_size(stated, name="WARMSTART_CACHE_LIMIT") if stated else DEFAULT_LIMIT_BYTES
        self.limit_bytes = default if limit_bytes is None else limit_bytes

    @property
    def features(self) -> Path:
        """Folder of the spaces."""
        return self.root / "features"

    @property
    def engines(self) -> Path:
        """Folder of exported prefixes and of what was measured on them."""
        return self.root / "engines"

    @property
    def backbones(self) -> Path:
        """Folder of what is known of backbones, and of weights that were kept frozen."""
        return self.root / "backbones"

    def space(self, *, weights: str, transform: str, cut: int, description: str = "") -> Space:
        """Open the space of one function of pictures.

        Args:
            weights: Identity of the network: its tensors, its structure and how it normalises pixels.
            transform: Complete description of the transform.
            cut: Where the frozen prefix ends.
            description: What it is, for people.
        """
        return Space(self.features / runtime.digest(weights, transform, cut, "<f4", shards.FORMAT), description)

    def reserve(self, num_bytes: int) -> None:
        """Make room: what was used longest ago leaves first, and never what this process holds.

        Raises:
            CacheError: The limit or the disk leaves less than `num_bytes`.
        """
        items = sorted(self._items())
        held = sum(size for _, size, path in items if shards.in_use(path))
        if held + num_bytes > self.limit_bytes:
            raise CacheError(
                f"{size_text(num_bytes)} must be cached and {size_text(held)} are in use, "
                f"but the cache in {self.root} may hold {size_text(self.limit_bytes)}",
                f"--cache-limit {_round_up(held + num_bytes)}",
            )
        total = sum(size for _, size, _ in items)
        for _, size, path in items:
            if total + num_bytes <= self.limit_bytes and self._free() >= num_bytes + SPARE_BYTES:
                return
            if not shards.in_use(path) and _delete(path):
                total -= size
        free = self._free()
        if free < num_bytes + SPARE_BYTES:
            raise CacheError(
                f"{size_text(num_bytes)} must be cached, but the disk of {self.root} has only {size_text(free)}",
                "make room there, or set WARMSTART_CACHE to a folder on a larger disk",
            )

    def info(self) -> CacheInfo:
        """Count what is there."""
        spaces = tuple(_space_info(folder) for folder in sorted(self.features.glob("*/")))
        engines = sum(size for _, size, _ in self._items() if size) - sum(space.num_bytes for space in spaces)
        total = sum(space.num_bytes for space in spaces) + max(engines, 0)
        return CacheInfo(self.root, self.limit_bytes, total, sum(space.num_rows for space in spaces), spaces)

    def clear(self) -> int:
        """Delete all spaces and engines, and what is remembered of files and backbones; downloaded weights stay.

        Returns:
            The bytes that were there.
        """
        total = 0
        for folder in (self.features, self.engines, self.backbones, self.root / "scan"):
            total += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder, ignore_errors=True)
        return total

    def _items(self) -> list[tuple[int, int, Path]]:
        """List what can leave: (last used, bytes, path) of every shard, every engine and all kept weights."""
        found = []
        others = (*self.engines.glob("*.onnx"), *self.backbones.glob("*.safetensors"))
        for path in (*self.features.glob("*/*.index"), *others):
            with contextlib.suppress(OSError):
                stat = path.stat()
                values = shards.values_path(path)
                size = stat.st_size + (values.stat().st_size if path.suffix == ".index" else 0)
                found.append((stat.st_mtime_ns, size, path))
        return found

    def _free(self) -> int:
        folder = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.exists())
        return shutil.disk_usage(folder).free


def parse_size(text: str, *, name: str) -> int:
    """Read a size such as `20GiB`, `500 MB` or `1000000`.

    Args:
        text: What the user wrote.
        name: The option or variable, as the user knows it.

    Raises:
        RecipeError: It is no size.

    Example:
        >>> parse_size("2 GiB", name="--cache-limit")
        2147483648
    """
    compact = text.strip().lower().replace(" ", "")
    number = compact.rstrip("kmgtib")
    unit = compact[len(number) :].removesuffix("b")
    try:
        size = int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = -1
    if size < 0:
        raise RecipeError(f"{name}={text!r} is no size", f"{name}=20GiB")
    return size


def _space_info(folder: Path) -> SpaceInfo:
    rows, size, used = 0, 0, 0.0
    for index in folder.glob("*.index"):
        with contextlib.suppress(OSError):
            rows += shards.count_rows(index)
            size += index.stat().st_size + shards.values_path(index).stat().st_size
            used = max(used, index.stat().st_mtime)
    try:
        description = str(json.loads((folder / "space.json").read_text("utf-8"))["description"])
    except (OSError, ValueError, KeyError, TypeError):
        description = ""
    return SpaceInfo(folder.name, description, rows, size, used)


def _delete(path: Path) -> bool:
    try:
        shards.remove(path) if path.suffix == ".index" else path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _round_up(num_bytes: int) -> str:
    return f"{-(-num_bytes // 2**30)}GiB"
