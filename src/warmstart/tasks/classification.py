"""Classification: one class per example (softmax, cross-entropy), or any number of labels (sigmoid, binary one)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from warmstart.data import TargetKind
from warmstart.errors import SHOWN, DataError, RecipeError
from warmstart.tasks import Link, MetricSpec, no_targets

if TYPE_CHECKING:
    from torch import Tensor, nn

    from warmstart.data import Dataset

ClassWeights: TypeAlias = Literal["none", "balanced"]
TOP_K = 5
INIT_STD = 0.01
"""Small enough that the loss of a fresh head starts at ln C for any usual backbone, and not 0, so that the first
gradient already reaches the backbone."""


@dataclass(frozen=True)
class Classification:
    """Classes: exactly one per example, or any number of labels; the data decides which."""

    label_smoothing: float = 0.0
    """Share of the target taken from the true class and spread over all (Szegedy et al., arXiv 1512.00567)."""
    class_weights: ClassWeights = "none"
    """`balanced` gives each class the same total weight in the loss, and selects by balanced accuracy."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            problem = f"label_smoothing is {self.label_smoothing} (expected at least 0 and less than 1)"
            raise RecipeError(problem, "task.label_smoothing=0.1")

    def check(self, dataset: Dataset) -> None:
        """Refuse targets that are no classes, or classes that cannot be learned.

        Raises:
            DataError: No targets, numbers, fewer than two classes, a class with fewer than two examples.
        """
        if dataset.kind == "none" or dataset.targets is None:
            raise no_targets(dataset)
        if dataset.kind in ("scalar", "vector"):
            raise DataError(_numbers(dataset), "--task regression")
        problems = list(_label_problems(dataset) if dataset.kind == "multi" else _class_problems(dataset))
        if problems:
            more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise DataError("; ".join(problems[:SHOWN]) + more, "add examples, or leave these classes out of the data")

    def bind(self, dataset: Dataset) -> Classes:
        """Return the task for these training examples."""
        weights = _balanced(dataset) if self.class_weights == "balanced" else None
        return Classes(dataset.kind, dataset.class_names, self.label_smoothing, weights)

    def restore(self, facts: dict[str, object]) -> Classes:
        """Rebuild a bound task from `Classes.to_json`."""
        known = {field.name: facts[field.name] for field in fields(Classes)}
        for key in ("class_names", "weights"):
            known[key] = None if known[key] is None else tuple(known[key])  # type: ignore[arg-type]
        return Classes(**known)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Classes:
    """Classification of one data set."""

    kind: TargetKind
    class_names: tuple[str, ...]
    label_smoothing: float = 0.0
    weights: tuple[float, ...] | None = None
    """Of each class in the loss. For `multi`, of each label's positive examples against its negative ones."""

    @property
    def link(self) -> Link:
        """Softmax for one class per example, sigmoid for labels."""
        return "sigmoid" if self.kind == "multi" else "softmax"

    @property
    def num_outputs(self) -> int:
        """Count the classes."""
        return len(self.class_names)

    @property
    def output_weights(self) -> np.ndarray | None:
        """Return the class weights as an array, or None."""
        return None if self.weights is None else np.array(self.weights)

    def head(self, dim: int, *, seed: int = 0) -> nn.Module:
        """Build a linear head with weights N(0, 0.01²) and zero bias, so that the loss starts at ln C."""
        return small_head(dim, self.num_outputs, seed)

    def targets(self, dataset: Dataset) -> np.ndarray:
        """Return int64 (N,) classes, or float32 (N, C) labels."""
        assert dataset.targets is not None
        return dataset.targets.astype(np.float32 if self.kind == "multi" else np.int64)

    def soft_targets(self, targets: np.ndarray) -> np.ndarray:
        """Return one-hot or multi-hot targets, smoothed as in the loss."""
        multi = self.kind == "multi"
        hot = targets if multi else np.eye(self.num_outputs, dtype=np.float32)[targets]
        return hot * (1 - self.label_smoothing) + self.label_smoothing / (2 if multi else self.num_outputs)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return cross-entropy, or binary cross-entropy averaged over labels.

        Class weights multiply and are not divided out by the batch's own sum, so micro-batches add up exactly;
        their mean over the training examples is 1.
        """
        from torch.nn import functional

        weights = None if self.weights is None else output.new_tensor(self.weights)
        if self.kind == "multi":
            smoothed = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
            return functional.binary_cross_entropy_with_logits(output, smoothed, pos_weight=weights)
        total = functional.cross_entropy(
            output, targets, weight=weights, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return total / len(output)

    def predict(self, output: Tensor) -> Tensor:
        """Return probabilities (B, C)."""
        return output.sigmoid() if self.kind == "multi" else output.softmax(dim=-1)

    def predict_arrays(self, outputs: np.ndarray) -> np.ndarray:
        """Do the same to arrays, without torch."""
        if self.kind == "multi":
            return np.exp(-np.logaddexp(outputs.dtype.type(0), -outputs))
        exponents = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        found: np.ndarray = exponents / exponents.sum(axis=-1, keepdims=True)
        return found

    def metrics(self) -> Sequence[MetricSpec]:
        """Name the metrics: accuracy first (balanced when weights are), or mean average precision for labels."""
        averages = [f"{name}_{how}" for name in ("precision", "recall", "f1") for how in ("macro", "micro", "weighted")]
        if self.kind == "multi":
            higher = ["average_precision", "auroc", "f1_micro", "f1_macro", "subset_accuracy"]
            higher += [name for name in averages if name not in higher]
            lower = ["hamming_loss", "log_loss", "brier", "ece"]
        else:
            first = ["accuracy", "balanced_accuracy"]
            top = [f"top_{TOP_K}_accuracy"] if self.num_outputs > TOP_K else []
            higher = [
                *(first if self.weights is None else reversed(first)),
                *top,
                *averages,
                "auroc",
                "average_precision",
            ]
            lower = ["log_loss", "brier", "ece"]
        return (*(MetricSpec(name) for name in higher), *(MetricSpec(name, False) for name in lower))

    def to_json(self) -> dict[str, object]:
        """Return the bound state, JSON-ready."""
        return asdict(self)


def small_head(dim: int, num_outputs: int, seed: int) -> nn.Module:
    """Build a linear head whose first outputs are near 0, drawn from its own generator."""
    import torch

    from warmstart.models.model import LinearHead
    from warmstart.runtime import seed_of

    generator = torch.Generator().manual_seed(seed_of(seed, "head"))
    with torch.random.fork_rng(devices=[]):  # nn.Linear draws from the global generator, which is not ours to move
        head = LinearHead(dim, num_outputs)
    with torch.no_grad():
        head.linear.weight.normal_(0.0, INIT_STD, generator=generator)
        head.linear.bias.zero_()
    return head


def _numbers(dataset: Dataset) -> str:
    assert dataset.targets is not None
    if dataset.kind == "vector":
        return (
            f"targets of {dataset.name} are {dataset.targets.shape[1]} numbers each, and classification needs classes"
        )
    distinct = len(np.unique(dataset.targets))
    return f"targets of {dataset.name} are numbers ({distinct} distinct ones), and classification needs classes"


def _class_problems(dataset: Dataset) -> Iterator[str]:
    assert dataset.targets is not None
    counts = np.bincount(dataset.targets, minlength=len(dataset.class_names))
    present = np.flatnonzero(counts)
    if len(present) < 2:
        count = f"only one class ({dataset.class_names[present[0]]!r})" if len(present) else "no class"
        yield f"{dataset.name} has {count} in {len(dataset)} examples, expected at least 2"
    for row in np.flatnonzero(counts == 0):
        yield f"class {dataset.class_names[row]!r} has no example, expected at least 2"
    for row in np.flatnonzero(counts == 1):
        where = dataset.ids[int(np.flatnonzero(dataset.targets == row)[0])]
        yield f"class {dataset.class_names[row]!r} has 1 example ({where}), expected at least 2"


def _label_problems(dataset: Dataset) -> Iterator[str]:
    assert dataset.targets is not None
    if not dataset.class_names:
        yield f"{dataset.name} has no label in {len(dataset)} examples, expected at least 1"
    for name, count in zip(dataset.class_names, dataset.targets.sum(axis=0), strict=True):
        if count < 2:
            yield f"label {name!r} is on in {int(count)} of {len(dataset)} examples, expected at least 2"
        elif count > len(dataset) - 2:
            yield f"label {name!r} is on in {int(count)} of {len(dataset)} examples, expected at least 2 without it"


def _balanced(dataset: Dataset) -> tuple[float, ...]:
    """Weigh classes by N / (C n_c), and positive labels by negatives / positives; 1 where a class has no example."""
    assert dataset.targets is not None
    if dataset.kind == "multi":
        on = dataset.targets.sum(axis=0).astype(np.float64)
        return tuple(float(w) for w in np.where(on > 0, (len(dataset) - on) / np.maximum(on, 1), 1.0))
    counts = np.bincount(dataset.targets, minlength=len(dataset.class_names)).astype(np.float64)
    num_present = max(int((counts > 0).sum()), 1)
    return tuple(float(w) for w in np.where(counts > 0, len(dataset) / (num_present * np.maximum(counts, 1)), 1.0))


PLUGIN = Classification
