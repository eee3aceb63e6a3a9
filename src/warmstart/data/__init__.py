"""CONTRACT of data: what a reader returns and what every later stage may rely on.

A reader is a frozen dataclass with `matches(path) -> bool` and `read(path) -> Dataset`. It lists; it never decodes.
A dataset is columns, so a million examples cost a million short strings and not a million objects. Inputs stay what
the reader found (a path, bytes, an array, a picture) until a transform turns them into tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
TargetKind = Literal["single", "multi", "scalar", "vector", "none"]

Input: TypeAlias = "Path | bytes | np.ndarray | Image"
"""What a reader may put into `Dataset.inputs`: a file, its bytes, an (H, W) or (H, W, 3|4) uint8 array, a picture."""


@dataclass(frozen=True)
class Example:
    """One row of a dataset, as a reader found it."""

    id: str
    """Unique in its dataset and stable between runs: the relative path, or the table's row."""
    input: Input
    target: object | None = None
    """A class name, a tuple of class names, a float, a tuple of floats, or None."""
    group: str | None = None
    """Examples of one group (a patient, a film roll) must not be on both sides of a split."""


@dataclass(frozen=True)
class Quarantined:
    """A file that was set aside, and why. It is named in the report and never silently dropped."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Examples as columns of equal length; `dataset[i]` is an `Example`.

    Shape:
        targets: `single` → int64 (N,) indices into `class_names`; `multi` → bool (N, C); `scalar` → float64 (N,);
        `vector` → float64 (N, K); `none` → None.
    """

    ids: Sequence[str]
    inputs: Sequence[Input]
    kind: TargetKind = "none"
    targets: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    """Names of the C classes; for `vector` targets the names of the K columns."""
    groups: np.ndarray | None = None
    """str (N,), or None when the data has no groups."""
    given_split: np.ndarray | None = None
    """str (N,) of 'train', 'val', 'test' as the data says, or None when it does not say."""
    name: str = "data"
    quarantined: tuple[Quarantined, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """Things a reader decided and a person may want to know, such as ignored files."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Example:
        group = None if self.groups is None else str(self.groups[row])
        return Example(self.ids[row], self.inputs[row], self._target(row), group)

    def _target(self, row: int) -> object | None:
        if self.targets is None:
            return None
        value = self.targets[row]
        match self.kind:
            case "single":
                return self.class_names[int(value)]
            case "multi":
                return tuple(name for name, on in zip(self.class_names, value, strict=True) if on)
            case "scalar":
                return float(value)
            case _:
                return tuple(float(v) for v in value)

    def take(self, rows: np.ndarray) -> Dataset:
        """Return the dataset of these rows, in this order.

        Shape:
            rows: int64 (M,) or bool (N,).
        """
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)

        def pick(column: np.ndarray | None) -> np.ndarray | None:
            return None if column is None else column[rows]

        # Columns that are built on demand (paths, memory-mapped pixels) know how to stay so.
        lazy = getattr(self.inputs, "take", None)
        return replace(
            self,
            ids=[self.ids[int(row)] for row in rows],
            inputs=lazy(rows) if lazy else [self.inputs[int(row)] for row in rows],
            targets=pick(self.targets),
            groups=pick(self.groups),
            given_split=pick(self.given_split),
        )


@dataclass(frozen=True)
class Splits:
    """Which rows of a dataset are train, val and test.

    Shape:
        train, val, test: int64, disjoint, sorted row numbers. `val` may be empty when `folds` select by
        cross-validation; `test` may be empty when the user has none to give.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    fingerprint: str
    """Hash of ids, targets and assignment: equal fingerprints mean equal splits of equal data."""
    origin: str = ""
    """How the splits came to be, in a sentence for the report."""
    folds: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    """(train, val) row pairs for selection on small data; empty when `val` is big enough to select on."""

    def rows(self, split: SplitName) -> np.ndarray:
        """Return the row numbers of one split."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


@dataclass(frozen=True)
class Batch:
    """What a model is fed.

    Shape:
        inputs: uint8 (B, 3, H, W) pictures in RGB, or the (B, …) hidden values of a cached prefix.
        targets: int64 (B,), or float32 (B, C) or (B, K).
        index: int64 (B,), the rows of the dataset.
    """

    inputs: Tensor
    targets: Tensor
    index: Tensor

    def to(self, device: torch.device) -> Batch:
        """Move inputs and targets to a device; the index stays where it is."""
        return Batch(self.inputs.to(device, non_blocking=True), self.targets.to(device, non_blocking=True), self.index)


@runtime_checkable
class Reader(Protocol):
    """Turns files into a dataset. The fields of the class are its options."""

    def matches(self, path: Path) -> bool:
        """Say from names alone whether this reader can read `path`."""
        ...

    def read(self, path: Path) -> Dataset:
        """List the examples without decoding any.

        Raises:
            DataError: The files cannot be a data set; all problems are listed together.
        """
        ...
