"""CONTRACT of tasks: what the targets mean: head, loss, prediction, metrics. A task never sees backbone or optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

    from warmstart.data import Dataset, SplitName


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


@runtime_checkable
class Task(Protocol):
    """What the targets mean. The fields of the class are its options."""

    link: ClassVar[Literal["softmax", "sigmoid", "identity"]]
    """How outputs become predictions; it also names the solver of the linear head on cached features."""

    def check(self, dataset: Dataset) -> None:
        """Refuse targets that this task cannot learn, naming all problems.

        Raises:
            DataError: Too few classes, NaN in targets, the wrong kind of target.
        """
        ...

    def head(self, dim: int, dataset: Dataset) -> nn.Module:
        """Build a new head for these targets: a linear layer with the task's initialisation."""
        ...

    def targets(self, dataset: Dataset) -> np.ndarray:
        """Return targets as the loss wants them: int64 (N,), or float32 (N, C) or (N, K)."""
        ...

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        ...

    def predict(self, output: Tensor) -> Tensor:
        """Turn raw outputs into probabilities (B, C) or numbers in target units (B, K)."""
        ...

    def metrics(self) -> Sequence[MetricSpec]:
        """Name the metrics; the first one is the default, by which candidates are selected."""
        ...
