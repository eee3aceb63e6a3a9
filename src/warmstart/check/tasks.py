"""What every task must keep of the contract in `warmstart.tasks`, on made-up targets of every kind that it accepts."""

from __future__ import annotations

import json
import math

import numpy as np
import torch
from torch import Tensor

from warmstart import evaluation, runtime
from warmstart.data import Dataset, TargetKind
from warmstart.errors import DataError
from warmstart.tasks import Predictions, Task, TaskOptions

NUM_EXAMPLES, DIM, NUM_CLASSES = 48, 32, 4
SHARPNESS = 8.0
"""Outputs of a model that is always right lie this far from those that are wrong."""


def check_task(options: TaskOptions) -> None:
    """Raise AssertionError unless a task keeps its contract on every kind of targets that it accepts.

    A fresh head starts at the loss of knowing nothing; predictions are probabilities or numbers in target units; every
    metric can be computed and is best for a model that is right; `restore(to_json())` is the same task; gradients flow;
    micro-batches add up to their batch.

    Args:
        options: With any options.
    """
    assert isinstance(options, TaskOptions), f"{options!r} lacks a member of the TaskOptions protocol"
    accepted = [dataset for dataset in datasets() if _accepts(options, dataset)]
    name = type(options).__name__
    assert accepted, f"{name} accepts no kind of targets (tried {[dataset.kind for dataset in datasets()]})"
    for dataset in accepted:
        task, where = options.bind(dataset), f"{name} on {dataset.kind} targets"
        assert isinstance(task, Task), f"{where}: bind gives no Task, but {type(task).__name__}"
        assert task.kind == dataset.kind, f"{where}: the bound task says that its kind is {task.kind}"
        targets = task.targets(dataset)
        _check_shapes(task, dataset, targets, where)
        _check_start(task, targets, where)
        _check_gradients(task, targets, where)
        _check_micro_batches(task, targets, where)
        _check_predictions(task, targets, dataset, where)
        _check_metrics(task, targets, dataset, where)
        _check_restored(options, task, targets, where)


def datasets() -> tuple[Dataset, ...]:
    """Make a data set of each kind of targets, without pictures."""
    rng = runtime.rng(0, "check targets")
    names = tuple("abcd")
    numbers = rng.normal(7.0, 3.0, (NUM_EXAMPLES, 2))
    targets: dict[TargetKind, tuple[np.ndarray, tuple[str, ...]]] = {
        "single": (np.minimum(np.arange(NUM_EXAMPLES) % 7, NUM_CLASSES - 1), names),
        "multi": (rng.random((NUM_EXAMPLES, NUM_CLASSES)) < 0.5, names),
        "scalar": (numbers[:, 0], ()),
        "vector": (numbers, ("x", "y")),
    }
    ids = [str(row) for row in range(NUM_EXAMPLES)]
    inputs = [b""] * NUM_EXAMPLES
    return tuple(Dataset(ids, inputs, kind, values, classes) for kind, (values, classes) in targets.items())


def _accepts(options: TaskOptions, dataset: Dataset) -> bool:
    try:
        options.check(dataset)
    except DataError:
        return False
    return True


def _check_shapes(task: Task, dataset: Dataset, targets: np.ndarray, where: str) -> None:
    """Targets, soft targets and the head agree on how many examples and outputs there are."""
    assert len(targets) == len(dataset), f"{where}: {len(targets)} targets for {len(dataset)} examples"
    soft, wanted = task.soft_targets(targets), (len(dataset), task.num_outputs)
    assert soft.shape == wanted, f"{where}: soft targets are {soft.shape}, expected {wanted}"
    if task.link == "softmax":
        assert np.allclose(soft.sum(axis=1), 1.0), f"{where}: soft targets do not sum to 1"
    first, again = (task.head(DIM, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[n], again[n]) for n in first), f"{where}: heads of one seed differ"
    outputs = task.head(DIM)(_features())
    assert outputs.shape == wanted, f"{where}: the head gives {tuple(outputs.shape)}, expected {wanted}"


def _check_start(task: Task, targets: np.ndarray, where: str) -> None:
    """A fresh head knows nothing, and the loss says so: ln C, ln 2, or the variance of standardised targets."""
    loss = task.loss(task.head(DIM)(_features()), torch.from_numpy(targets)).item()
    if task.link == "identity":
        mean, variance = float(targets.mean()), float(targets.var())
        assert abs(mean) < 0.01, f"{where}: targets have mean {mean:.3f}, expected 0"
        assert abs(variance - 1) < 0.01, f"{where}: targets have variance {variance:.3f}, expected 1"
        # The absolute error of a standard normal variable is 0.8, Huber's is 0.36.
        assert 0.25 < loss < 1.1, f"{where}: the loss starts at {loss:.3f}, expected 1 (0.8 for l1, 0.36 for huber)"
        return
    known = math.log(task.num_outputs) if task.link == "softmax" else math.log(2) * _label_weight(task, targets)
    assert abs(loss / known - 1) < 0.05, f"{where}: the loss starts at {loss:.3f}, expected {known:.3f}"


def _label_weight(task: Task, targets: np.ndarray) -> float:
    """Return the mean weight of a label in the loss; positive labels may weigh more."""
    weights = task.output_weights
    return 1.0 if weights is None else float(np.where(targets > 0, weights, 1.0).mean())


def _check_gradients(task: Task, targets: np.ndarray, where: str) -> None:
    """The loss is a finite scalar whose gradient reaches every parameter of the head, and the backbone behind it."""
    head, features = task.head(DIM), _features().requires_grad_()
    loss = task.loss(head(features), torch.from_numpy(targets))
    assert loss.ndim == 0, f"{where}: the loss has shape {tuple(loss.shape)}, not that of a scalar"
    assert loss.isfinite(), f"{where}: the loss is {loss.item()}"
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in (*head.named_parameters(), ("features", features)):
        gradient = parameter.grad
        assert gradient is not None, f"{where}: no gradient reaches {name}"
        assert gradient.isfinite().all(), f"{where}: the gradient of {name} is not finite"
        assert gradient.any(), f"{where}: the gradient of {name} is 0 everywhere"


def _check_micro_batches(task: Task, targets: np.ndarray, where: str) -> None:
    """The loss of a batch is the mean of its parts, weighted by their sizes; the last part is smaller."""
    outputs, wanted = torch.randn(NUM_EXAMPLES, task.num_outputs, generator=_generator()), torch.from_numpy(targets)
    whole = task.loss(outputs, wanted)
    parts = [slice(at, at + 13) for at in range(0, NUM_EXAMPLES, 13)]
    losses = [task.loss(outputs[part], wanted[part]) * len(outputs[part]) / NUM_EXAMPLES for part in parts]
    added = torch.stack(losses).sum()
    assert torch.allclose(whole, added, rtol=1e-5), (
        f"{where}: the loss of a batch is {whole.item():.6f}, and its micro-batches add up to {added.item():.6f}"
    )


def _check_predictions(task: Task, targets: np.ndarray, dataset: Dataset, where: str) -> None:
    """Predictions are probabilities, which sum to 1 where classes exclude each other, or numbers in target units."""
    values = task.predict(torch.randn(NUM_EXAMPLES, task.num_outputs, generator=_generator()))
    assert values.isfinite().all(), f"{where}: predictions are not finite"
    if task.link == "identity":
        told = task.predict(torch.from_numpy(targets)).numpy()
        assert dataset.targets is not None
        wanted = dataset.targets.reshape(told.shape)
        assert np.allclose(told, wanted, atol=1e-4), f"{where}: predict does not turn targets back into their units"
        return
    assert ((values >= 0) & (values <= 1)).all(), f"{where}: predictions are no probabilities"
    if task.link == "softmax":
        sums = values.sum(dim=1)
        assert torch.allclose(sums, torch.ones_like(sums)), f"{where}: probabilities sum to {sums[0].item():.4f}, not 1"


def _check_metrics(task: Task, targets: np.ndarray, dataset: Dataset, where: str) -> None:
    """Every metric has one name, can be computed, and is better for a right model than for a wrong one."""
    specs = task.metrics()
    names = [spec.name for spec in specs]
    assert names, f"{where}: no metrics"
    assert len(set(names)) == len(names), f"{where}: metrics share names: {names}"
    right, wrong = (_values(task, _outputs(task, targets, sign), dataset, where) for sign in (1.0, -1.0))
    for spec in specs:
        a, b = right[spec.name], wrong[spec.name]
        assert math.isfinite(a) and math.isfinite(b), f"{where}: {spec.name} is {a} and {b}, expected numbers"
        better = a >= b if spec.higher_is_better else a <= b
        assert better, f"{where}: {spec.name} is {a:.3f} for a right model and {b:.3f} for a wrong one"


def _values(task: Task, outputs: Tensor, dataset: Dataset, where: str) -> dict[str, float]:
    values = task.predict(outputs).numpy()
    predictions = Predictions(outputs.numpy(), values, np.arange(NUM_EXAMPLES), dataset.targets)
    found = {m.name: m.value for m in evaluation.metrics(task, predictions, split="val", seed=0, resamples=2)}
    absent = [spec.name for spec in task.metrics() if spec.name not in found]
    assert not absent, f"{where}: nothing computes the metrics {absent}"
    return found


def _outputs(task: Task, targets: np.ndarray, sign: float) -> Tensor:
    """Make the outputs of a model that is always right, or with the other sign always wrong."""
    soft = torch.from_numpy(np.asarray(task.soft_targets(targets), dtype=np.float32))
    return sign * soft if task.link == "identity" else sign * SHARPNESS * (soft - 0.5)


def _check_restored(options: TaskOptions, task: Task, targets: np.ndarray, where: str) -> None:
    """`restore(to_json())` predicts and loses the same, through real JSON and without data."""
    facts = json.loads(json.dumps(task.to_json()))
    restored = options.restore(facts)
    assert json.loads(json.dumps(restored.to_json())) == facts, f"{where}: restore(to_json()) says other facts"
    for what in ("kind", "link", "class_names", "num_outputs"):
        before, after = getattr(task, what), getattr(restored, what)
        assert before == after, f"{where}: {what} is {after!r} after restore(to_json()), and was {before!r}"
    outputs, wanted = torch.randn(NUM_EXAMPLES, task.num_outputs, generator=_generator()), torch.from_numpy(targets)
    same = torch.equal(task.predict(outputs), restored.predict(outputs))
    assert same, f"{where}: predictions differ after restore(to_json())"
    same = torch.equal(task.loss(outputs, wanted), restored.loss(outputs, wanted))
    assert same, f"{where}: the loss differs after restore(to_json())"


def _features() -> Tensor:
    return torch.randn(NUM_EXAMPLES, DIM, generator=_generator())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
