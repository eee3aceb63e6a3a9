"""CIFAR-10 and CIFAR-100 in their published binary versions (Krizhevsky 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from warmstart.data import Dataset, files
from warmstart.errors import DataError

PIXELS = 3 * 32 * 32
TEN = "cifar-10-batches-bin"
HUNDRED = "cifar-100-binary"
URL = "https://www.cs.toronto.edu/~kriz"


@dataclass(frozen=True)
class _Layout:
    train: tuple[str, ...]
    test: str
    names: str
    num_labels: int
    """Bytes of labels before the pixels of a record."""
    label: int
    """Which of them is the target."""


@dataclass(frozen=True)
class Cifar:
    """Reads data_batch_*.bin of CIFAR-10 or train.bin of CIFAR-100; pixels stay in their memory-mapped files."""

    labels: Literal["fine", "coarse"] = "fine"
    """Which labels of CIFAR-100: 100 fine or 20 coarse classes. Has no effect on CIFAR-10."""

    def matches(self, path: Path) -> bool:
        """Say whether the files of a published version are here, the pickled one included, which `read` refuses."""
        return path.is_dir() and (_binary(path) is not None or _pickled(path))

    def read(self, path: Path) -> Dataset:
        """Map the files; the published train and test splits are kept.

        Raises:
            DataError: The pickled version, a missing or cut file, labels without a name.
        """
        folder = _binary(path)
        if folder is None:
            raise _refuse_pickle(path)
        layout = self._layout(folder)
        class_names = tuple(_lines(folder / layout.names))
        records = [_records(folder / name, layout.num_labels) for name in (*layout.train, layout.test)]
        targets = np.concatenate([part[:, layout.label] for part in records]).astype(np.int64)
        if len(targets) and targets.max() >= len(class_names):
            raise DataError(
                f"label {targets.max()} has no name in {folder / layout.names} ({len(class_names)} names)",
                f"download the files again from {URL}/cifar.html",
            )
        pixels = [part[:, layout.num_labels :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for part in records]
        stems = [Path(name).stem for name in (*layout.train, layout.test)]
        return Dataset(
            [f"{stem}/{row:05d}" for stem, part in zip(stems, records, strict=True) for row in range(len(part))],
            files.Stack(tuple(pixels)),
            "single",
            targets,
            class_names,
            given_split=np.repeat(["train"] * len(layout.train) + ["test"], [len(part) for part in records]),
            name="cifar-10" if layout.num_labels == 1 else f"cifar-100-{self.labels}",
        )

    def _layout(self, folder: Path) -> _Layout:
        if _is_hundred(folder):
            label = ("coarse", "fine").index(self.labels)
            return _Layout(("train.bin",), "test.bin", f"{self.labels}_label_names.txt", 2, label)
        batches = sorted(path.name for path in folder.glob("data_batch_*.bin"))
        return _Layout(tuple(batches), "test_batch.bin", "batches.meta.txt", 1, 0)


def _is_hundred(folder: Path) -> bool:
    return (folder / "train.bin").is_file() and (folder / "fine_label_names.txt").is_file()


def _binary(path: Path) -> Path | None:
    for folder in (path, path / TEN, path / HUNDRED):
        if (folder / "data_batch_1.bin").is_file() or _is_hundred(folder):
            return folder
    return None


def _pickled(path: Path) -> bool:
    for folder in (path, path / "cifar-10-batches-py", path / "cifar-100-python"):
        ten = (folder / "data_batch_1").is_file() and (folder / "batches.meta").is_file()
        hundred = (folder / "train").is_file() and (folder / "meta").is_file()
        if ten or hundred:
            return True
    return False


def _refuse_pickle(path: Path) -> DataError:
    return DataError(
        f"{path} is the pickled version of CIFAR, and a pickle can run code; expected the binary version",
        f"download {URL}/cifar-10-binary.tar.gz or {URL}/cifar-100-binary.tar.gz and unpack it",
    )


def _records(path: Path, num_labels: int) -> np.ndarray:
    size = num_labels + PIXELS
    if not path.is_file():
        raise DataError(f"{path} is missing", f"download the archive again from {URL}/cifar.html")
    if path.stat().st_size % size or not path.stat().st_size:
        raise DataError(
            f"{path} has {path.stat().st_size} bytes, which is no whole number of {size}-byte records",
            f"download the archive again from {URL}/cifar.html",
        )
    return np.memmap(path, np.uint8, "r").reshape(-1, size)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path} is missing, so the classes have no names", f"download it again from {URL}/cifar.html")
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


PLUGIN = Cifar
