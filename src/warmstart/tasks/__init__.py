"""CONTRACT of tasks: what the targets mean: head, loss, prediction, metrics. A task never sees backbone or optimizer.

A task file holds the options (`TaskOptions`). Binding them to the training examples gives the `Task` that everything
else works with: it knows the classes, their weights, the link, and the scale of the targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from warmstart.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from warmstart.data import Dataset, SplitName, TargetKind

Link: TypeAlias = Literal["softmax", "sigmoid", "identity"]


@dataclass(frozen=True)
class Metric:
    """A number from predictions, with its count and its 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    n: int
    split: SplitName | str


@dataclass(frozen=True)
class MetricSpec:
    """One metric of a task: its name and which way is up."""

    name: str
    higher_is_better: bool = True


@dataclass(frozen=True)
class Predictions:
    """What a model said about N examples, as numpy on the CPU.

    Shape:
        outputs: float32 (N, C) or (N, K): raw outputs of the head.
        values: what `Task.predict` makes of them: float32 (N, C) probabilities, or (N, K) numbers in target units.
        targets: as in `Dataset.targets`, or None.
        index: int64 (N,), rows of the dataset.
    """

    outputs: np.ndarray
    values: np.ndarray
    index: np.ndarray
    targets: np.ndarray | None = None
    groups: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Predictions:
        """Return the predictions of these positions, in this order.

        Shape:
            rows: int64 (M,) or bool (N,), positions in these predictions, not rows of the dataset.
        """
        targets = None if self.targets is None else self.targets[rows]
        groups = None if self.groups is None else self.groups[rows]
        return Predictions(self.outputs[rows], self.values[rows], self.index[rows], targets, groups)


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Join predictions, such as the out-of-fold predictions of cross-validation, in the order of the dataset's rows."""
    columns = {
        name: None if any(getattr(part, name) is None for part in parts) else
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("outputs", "values", "index", "targets", "groups")
    }  # fmt: skip
    joined = Predictions(**columns)  # type: ignore[arg-type]
    return joined.take(np.argsort(joined.index, kind="stable"))


@runtime_checkable
class Task(Protocol):
    """What the targets of one data set mean: options bound to training examples."""

    @property
    def kind(self) -> TargetKind:
        """Return the kind of targets, as in `Dataset.kind`."""
        ...

    @property
    def link(self) -> Link:
        """Say how outputs become predictions; it also names the solver of the linear head on cached features."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name the outputs: the C classes or the K columns; empty for scalar targets."""
        ...

    @property
    def num_outputs(self) -> int:
        """Count the outputs of the head: C, or K."""
        ...

    @property
    def output_weights(self) -> np.ndarray | None:
        """Weights of the classes in the loss, float64 (C,), for solvers; None when all are 1."""
        ...

    def head(self, dim: int, *, seed: int = 0) -> nn.Module:
        """Build a new head: a linear layer with the task's initialisation, from the seed alone."""
        ...

    def targets(self, dataset: Dataset) -> np.ndarray:
        """Return targets as the loss wants them: int64 (N,), or float32 (N, C), or standardised float32 (N, K)."""
        ...

    def soft_targets(self, targets: np.ndarray) -> np.ndarray:
        """Return what the solver of the head fits, float32 (N, C): one-hot or multi-hot, smoothed; or the numbers."""
        ...

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar; the mean over micro-batches is the loss of the batch."""
        ...

    def predict(self, output: Tensor) -> Tensor:
        """Turn raw outputs into probabilities (B, C) or numbers in target units (B, K)."""
        ...

    def metrics(self) -> Sequence[MetricSpec]:
        """Name the metrics; the first one is the default, by which candidates are selected."""
        ...

    def to_json(self) -> dict[str, object]:
        """Return the bound state, JSON-ready; `TaskOptions.restore` is its inverse."""
        ...


@runtime_checkable
class TaskOptions(Protocol):
    """What a task file holds. The fields of the class are its options."""

    def check(self, dataset: Dataset) -> None:
        """Refuse targets that this task cannot learn, naming all problems.

        Raises:
            DataError: Too few classes, NaN in targets, the wrong kind of target.
        """
        ...

    def bind(self, dataset: Dataset) -> Task:
        """Return the task for these training examples: classes, their weights, target scale.

        Args:
            dataset: Training examples only, since their statistics become part of the task.
        """
        ...

    def restore(self, facts: dict[str, object]) -> Task:
        """Rebuild a bound task from `Task.to_json`, without data."""
        ...


def values(task: Task, outputs: np.ndarray) -> np.ndarray:
    """Return what `Task.predict` makes of raw outputs, as arrays; a task with `predict_arrays` needs no torch for it.

    Shape:
        outputs: float32 (N, C) → float32 (N, C).
    """
    own = getattr(task, "predict_arrays", None)
    if own is not None:
        found: np.ndarray = own(outputs)
        return found
    import torch

    return task.predict(torch.from_numpy(outputs)).numpy()


def for_dataset(dataset: Dataset) -> str:
    """Choose the task from the kind of targets.

    Raises:
        DataError: The data has no targets.
    """
    if dataset.kind == "none" or dataset.targets is None:
        raise no_targets(dataset)
    return "classification" if dataset.kind in ("single", "multi") else "regression"


def cast(dataset: Dataset, task: str) -> Dataset:
    """Read targets the way the named task wants them where that loses nothing, else return the data as it is.

    Class names that are all numbers become numbers for regression; numbers become classes for classification when
    there are at most 20 distinct ones, each at least twice.
    """
    assert dataset.targets is not None
    if task == "regression" and dataset.kind == "single":
        numbers = as_numbers(dataset.class_names)
        if numbers is not None:
            return replace(dataset, kind="scalar", targets=numbers[dataset.targets], class_names=())
    if task == "classification" and dataset.kind == "scalar":
        levels, inverse, counts = np.unique(dataset.targets, return_inverse=True, return_counts=True)
        if len(levels) <= 20 and counts.min() >= 2 and np.isfinite(levels).all():
            names = tuple(f"{level:g}" for level in levels)
            return replace(dataset, kind="single", targets=inverse.astype(np.int64), class_names=names)
    return dataset


def as_numbers(names: Sequence[str]) -> np.ndarray | None:
    """Read class names as finite numbers, or return None when one of them is not."""
    try:
        numbers = np.array([float(name) for name in names])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def no_targets(dataset: Dataset) -> DataError:
    """Say that there is nothing to learn, and how to name the targets."""
    problem = f"{dataset.name} has {len(dataset)} examples and no targets (expected a class or a number for each)"
    return DataError(problem, "one folder per class, or --target-column NAME for a table")
