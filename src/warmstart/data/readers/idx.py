"""MNIST and its relatives (Fashion-MNIST, KMNIST) in the idx files that they are published in, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from warmstart.data import Dataset, files
from warmstart.errors import DataError

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PARTS = {"train": "train", "test": "t10k"}
FIX = "download the file again"


@dataclass(frozen=True)
class Idx:
    """Reads train-images-idx3-ubyte, train-labels-idx1-ubyte and their t10k- twins, with or without .gz."""

    class_names: tuple[str, ...] = ()
    """Names of the classes in order; empty takes Fashion-MNIST's in a folder called so, else digits."""

    def matches(self, path: Path) -> bool:
        """Say whether the training pictures are here."""
        return path.is_dir() and _find(path, "train-images", 3) is not None

    def read(self, path: Path) -> Dataset:
        """Map the files, or unpack them into memory; the published train and test splits are kept.

        Raises:
            DataError: A missing or damaged file, or pictures and labels that differ in number.
        """
        pixels, labels, ids, given = [], [], [], []
        for split, prefix in PARTS.items():
            if split == "test" and _find(path, f"{prefix}-images", 3) is None:
                continue
            images, own = _array(path, f"{prefix}-images", 3), _array(path, f"{prefix}-labels", 1)
            if len(images) != len(own):
                raise DataError(f"{path} has {len(images)} {prefix} pictures, but {len(own)} labels", FIX)
            pixels.append(images)
            labels.append(np.asarray(own).astype(np.int64))
            ids += [f"{prefix}/{row:05d}" for row in range(len(own))]
            given += [split] * len(own)
        targets = np.concatenate(labels)
        return Dataset(
            ids,
            files.Stack(tuple(pixels)),
            "single",
            targets,
            self._names(path, int(targets.max(initial=0)) + 1),
            given_split=np.array(given),
            name=path.resolve().name,
        )

    def _names(self, path: Path, num_classes: int) -> tuple[str, ...]:
        default = FASHION if "fashion" in path.resolve().name.lower() else tuple(map(str, range(num_classes)))
        names = self.class_names or default
        if len(names) < num_classes:
            raise DataError(f"{path} has {num_classes} classes, but {len(names)} class_names", "name every class")
        return names


def _find(folder: Path, stem: str, dims: int) -> Path | None:
    for name in (f"{stem}-idx{dims}-ubyte", f"{stem}.idx{dims}-ubyte"):
        for suffix in ("", ".gz"):
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    return None


def _array(folder: Path, stem: str, dims: int) -> np.ndarray:
    path = _find(folder, stem, dims)
    if path is None:
        raise DataError(f"{folder}/{stem}-idx{dims}-ubyte is missing (with or without .gz)", FIX)
    start = 4 + 4 * dims
    head = _bytes(path, start)
    if len(head) < start or head[:4] != bytes((0, 0, 8, dims)):
        raise DataError(f"{path} is no idx file of unsigned bytes in {dims} dimensions", FIX)
    shape = tuple(int(size) for size in np.frombuffer(head, ">u4", dims, 4))
    size = start + math.prod(shape)
    if path.suffix != ".gz" and path.stat().st_size == size and size > start:
        return np.memmap(path, np.uint8, "r", start, shape)
    data = _bytes(path, size + 1)  # one more than announced, and never more: the header bounds what is unpacked
    if len(data) != size:
        raise DataError(
            f"{path} announces {shape}, {size} bytes, but has {'more' if len(data) > size else len(data)}", FIX
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _bytes(path: Path, size: int) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(size)
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} cannot be unpacked ({error})", FIX) from error


PLUGIN = Idx
