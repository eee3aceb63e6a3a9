"""Regression: one or several numbers per example, learned in units of the training targets' spread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from warmstart.data import TargetKind
from warmstart.errors import DataError, RecipeError, listed
from warmstart.tasks import Link, MetricSpec, as_numbers, no_targets

if TYPE_CHECKING:
    from torch import Tensor, nn

    from warmstart.data import Dataset

RegressionLoss: TypeAlias = Literal["mse", "l1", "huber"]


@dataclass(frozen=True)
class Regression:
    """Numbers: one per example, or a vector of several."""

    loss: RegressionLoss = "mse"
    """What is minimised: squared error, absolute error, or Huber's mixture of both (less moved by outliers)."""
    delta: float = 1.0
    """Where Huber's loss turns from square to line, in standard deviations of the target; no effect on others."""

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise RecipeError(f"delta is {self.delta} (expected more than 0)", "task.delta=1.0")

    def check(self, dataset: Dataset) -> None:
        """Refuse targets that are no finite numbers, or do not vary.

        Raises:
            DataError: No targets, classes, NaN or infinite targets, a target that is the same everywhere.
        """
        if dataset.kind == "none" or dataset.targets is None:
            raise no_targets(dataset)
        if dataset.kind in ("single", "multi"):
            raise DataError(_not_numbers(dataset), "--task classification")
        problems = list(_number_problems(dataset))
        if problems:
            raise DataError("; ".join(problems), "correct or remove these rows, or name another --target-column")

    def bind(self, dataset: Dataset) -> Numbers:
        """Return the task for these training examples, with the mean and spread of their targets."""
        columns = as_columns(dataset)
        spread = columns.std(axis=0)
        std = np.where(spread > 0, spread, 1.0)
        mean = tuple(float(m) for m in columns.mean(axis=0))
        return Numbers(dataset.kind, dataset.class_names, mean, tuple(float(s) for s in std), self.loss, self.delta)

    def restore(self, facts: dict[str, object]) -> Numbers:
        """Rebuild a bound task from `Numbers.to_json`."""
        known = {field.name: facts[field.name] for field in fields(Numbers)}
        for key in ("class_names", "mean", "std"):
            known[key] = tuple(known[key])  # type: ignore[arg-type]
        return Numbers(**known)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Numbers:
    """Regression on one data set: outputs are in standard deviations from the training mean."""

    kind: TargetKind
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    loss_name: RegressionLoss = "mse"
    delta: float = 1.0

    @property
    def link(self) -> Link:
        """Outputs are the numbers themselves, up to scale."""
        return "identity"

    @property
    def num_outputs(self) -> int:
        """Count the target columns."""
        return len(self.mean)

    @property
    def output_weights(self) -> np.ndarray | None:
        """Return None: standardised columns weigh the same."""
        return None

    def head(self, dim: int, *, seed: int = 0) -> nn.Module:
        """Build a linear head whose first prediction is about the training mean, so that the MSE starts near 1."""
        from warmstart.tasks.classification import small_head

        return small_head(dim, self.num_outputs, seed)

    def targets(self, dataset: Dataset) -> np.ndarray:
        """Return float32 (N, K) in standard deviations from the training mean."""
        return ((as_columns(dataset) - self.mean) / self.std).astype(np.float32)

    def soft_targets(self, targets: np.ndarray) -> np.ndarray:
        """Return the standardised numbers as they are."""
        return targets

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over examples and columns."""
        from torch.nn import functional

        match self.loss_name:
            case "mse":
                return functional.mse_loss(output, targets)
            case "l1":
                return functional.l1_loss(output, targets)
            case "huber":
                return functional.huber_loss(output, targets, delta=self.delta)

    def predict(self, output: Tensor) -> Tensor:
        """Return numbers in target units (B, K)."""
        return output * output.new_tensor(self.std) + output.new_tensor(self.mean)

    def predict_arrays(self, outputs: np.ndarray) -> np.ndarray:
        """Do the same to arrays, without torch."""
        return outputs * np.asarray(self.std, outputs.dtype) + np.asarray(self.mean, outputs.dtype)

    def metrics(self) -> Sequence[MetricSpec]:
        """Name the metrics: RMSE first, since it is in target units."""
        lower = (MetricSpec(name, False) for name in ("rmse", "mse", "mae"))
        return (*lower, MetricSpec("r2"), MetricSpec("spearman"))

    def to_json(self) -> dict[str, object]:
        """Return the bound state, JSON-ready."""
        return asdict(self)


def as_columns(dataset: Dataset) -> np.ndarray:
    """Return targets as float64 (N, K), scalars as one column."""
    assert dataset.targets is not None
    return np.asarray(dataset.targets, dtype=np.float64).reshape(len(dataset), -1)  # (N, K)


def _not_numbers(dataset: Dataset) -> str:
    if dataset.kind == "multi":
        return f"targets of {dataset.name} are sets of labels, and regression needs numbers"
    odd = [name for name in dataset.class_names if as_numbers([name]) is None]
    first = listed([repr(name) for name in odd], 3)
    if not odd:
        return (
            f"targets of {dataset.name} were read as {len(dataset.class_names)} classes, and regression needs numbers"
        )
    return f"targets of {dataset.name} are no numbers ({first}), and regression needs numbers"


def _number_problems(dataset: Dataset) -> Iterator[str]:
    columns = as_columns(dataset)
    bad = np.flatnonzero(~np.isfinite(columns).all(axis=1))
    if len(bad):
        where = listed([dataset.ids[int(row)] for row in bad])
        yield f"{len(bad)} of {len(dataset)} targets are NaN or infinite ({where}), expected finite numbers"
    good = np.delete(columns, bad, axis=0)
    if len(good) < 2:
        yield f"{dataset.name} has {len(good)} examples with a finite target, expected at least 2"
        return
    for k in np.flatnonzero(good.max(axis=0) == good.min(axis=0)):
        name = f"target {dataset.class_names[k]!r}" if dataset.class_names else "the target"
        yield f"{name} is {good[0, k]:g} for every example, expected numbers that vary"


PLUGIN = Regression
