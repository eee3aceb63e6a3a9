"""A model that can be used: weights, task and transform together, from a folder and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from warmstart import durable, plugins, runtime, tasks
from warmstart.cache import Cache
from warmstart.data import Dataset, Input
from warmstart.errors import CheckpointError, RunError
from warmstart.heads import Solved
from warmstart.models import Card, weights
from warmstart.models.lazy import LazyBackbone
from warmstart.progress import Advance
from warmstart.tasks import Predictions, Task

if TYPE_CHECKING:
    import torch
    from torch import nn

    from warmstart.data.transforms import Augment, Transform
    from warmstart.extract import Extracted
    from warmstart.models import Backbone
    from warmstart.models.model import Model
    from warmstart.runtime import Device

FORMAT = 2
BATCH = 32
HEAD, FACTS = "head.safetensors", "model.json"
COPY_AGAIN = "copy the folder again from where it was made"


@dataclass(frozen=True)
class Framing:
    """How a picture becomes the square that the backbone sees."""

    image_size: int
    resize: int | None = None
    fit: Literal["crop", "squash", "pad"] = "crop"

    def plain(self, card: Card) -> Transform:
        """Return the transform of validation and prediction for the weights of a card.

        Raises:
            RecipeError: A size that the weights do not take.
        """
        from warmstart.data import transforms

        whole = transforms.for_eval(card.spec, image_size=self.image_size, resize=self.resize, fit=self.fit)
        squares = tuple(replace(self, image_size=part.image_size).plain(part.card) for part in card.parts)
        return transforms.SideBySide(squares) if squares else whole

    def augmented(self, card: Card, augment: Augment) -> Transform:
        """Return the transform of training pictures for the weights of a card.

        Raises:
            RecipeError: A size that the weights do not take.
        """
        from warmstart.data import transforms

        size, resize, fit = self.image_size, self.resize, self.fit
        whole = transforms.for_train(card.spec, image_size=size, resize=resize, fit=fit, augment=augment)
        inside = tuple(replace(self, image_size=part.image_size).augmented(part.card, augment) for part in card.parts)
        return transforms.SideBySide(inside) if inside else whole


class Frozen:
    """A backbone as its source gave it, and a solved head on its features; a network when something asks for one."""

    def __init__(self, backbone: LazyBackbone, head: Solved) -> None:
        self.backbone = backbone
        self.head = head
        self._model: Model | None = None

    @property
    def built(self) -> bool:
        """Say whether there is a network, which somebody may have changed."""
        return self._model is not None

    def get(self) -> Model:
        """Return the model, built at the first call."""
        if self._model is None:
            from warmstart.models.model import Model

            backbone = self.backbone.get()
            device = next(cast("nn.Module", backbone).parameters()).device
            self._model = Model(backbone, self.head.to_module()).eval().to(device)
        return self._model


@dataclass(frozen=True)
class TrainedModel:
    """A fine-tuned model with everything that prediction needs.

    Example:
        >>> model = load("runs/demo/weights")  # doctest: +SKIP
        >>> model.predict(["new/0001.jpg"])  # doctest: +SKIP
        ['defective']
    """

    held: Model | Frozen
    """The network, or what it is built from when it is first used."""
    card: Card
    """Of the backbone as it is now: its hash is that of the tuned weights."""
    task: Task
    task_name: str
    framing: Framing
    temperature: float = 1.0
    """Outputs are divided by it before they become probabilities; fitted on val."""

    @property
    def model(self) -> Model:
        """Return the network."""
        return self.held.get() if isinstance(self.held, Frozen) else self.held

    @property
    def frozen(self) -> Frozen | None:
        """Return what the network would be built from, as long as it is not, and nobody can have changed it."""
        return self.held if isinstance(self.held, Frozen) and not self.held.built else None

    @property
    def built(self) -> bool:
        """Say whether the network is in memory."""
        return self.frozen is None or self.frozen.backbone.built

    @property
    def _backbone(self) -> Backbone | LazyBackbone:
        return self.model.backbone if self.frozen is None else self.frozen.backbone

    def transform(self) -> Transform:
        """Return the transform of a picture for prediction."""
        return self.framing.plain(self.card)

    def predictions(
        self,
        dataset: Dataset,
        rows: np.ndarray,
        *,
        cache: Cache,
        workers: int = 2,
        device: torch.device | Device = "cpu",
        content_hashes: Sequence[bytes] | None = None,
        progress: Advance | None = None,
    ) -> tuple[Predictions, Extracted]:
        """Predict rows of a dataset; features come from the cache where they are known.

        Raises:
            DataError: A picture cannot be read.
        """
        from warmstart import extract

        found = extract.extract(
            dataset,
            rows,
            backbone=self._backbone,
            card=self.card,
            cut=self.model.num_groups if self.frozen is None else self.frozen.backbone.num_groups,
            transform=self.transform(),
            cache=cache,
            workers=workers,
            device=device,
            content_hashes=content_hashes,
            progress=progress,
        )
        features = np.asarray(found.values)
        outputs = apply_head(self.model.head, features) if self.frozen is None else self.frozen.head.outputs(features)
        targets = None if dataset.targets is None else dataset.targets[rows]
        groups = None if dataset.groups is None else dataset.groups[rows]
        return Predictions(outputs, self.values(outputs), rows, targets, groups), found

    def values(self, outputs: np.ndarray) -> np.ndarray:
        """Turn raw outputs (N, C) into calibrated probabilities, or numbers in target units."""
        return tasks.values(self.task, outputs / np.float32(self.temperature))

    def predict_proba(self, inputs: Sequence[Input | str] | np.ndarray) -> np.ndarray:
        """Predict pictures given as paths, bytes, arrays or PIL images.

        Shape:
            Returns float32 (N, C) probabilities, or (N, K) numbers for a regression.
        """
        return self.values(apply_head(self.model.head, self.features(inputs)))

    def features(self, inputs: Sequence[Input | str] | np.ndarray) -> np.ndarray:
        """Compute features of pictures, without the cache.

        Shape:
            Returns float32 (N, D).
        """
        import torch

        from warmstart.data import loading, read

        dataset = read.from_arrays(_as_inputs(inputs))
        parts = [np.arange(at, min(at + BATCH, len(dataset))) for at in range(0, len(dataset), BATCH)]
        device = next(self.model.parameters()).device
        found = [np.zeros((0, self.model.backbone.dim), np.float32)]
        with torch.inference_mode():
            for pixels, _ in loading.batches(
                dataset, parts, self.transform(), seed=0, epoch=0, workers=runtime.num_cpus()
            ):
                found.append(self.model.backbone.features(pixels.to(device)).pooled.float().cpu().numpy())
        return np.concatenate(found)

    def predict(self, inputs: Sequence[Input | str] | np.ndarray) -> list[object]:
        """Predict class names, tuples of them (multi-label), numbers or tuples of numbers."""
        return [self.word(row) for row in self.predict_proba(inputs)]

    def word(self, values: np.ndarray) -> object:
        """Say one row of values in the terms of the targets."""
        match self.task.kind:
            case "single":
                return self.task.class_names[int(values.argmax())]
            case "multi":
                return tuple(name for name, value in zip(self.task.class_names, values, strict=True) if value >= 0.5)
            case "scalar":
                return float(values[0])
            case _:
                return tuple(float(value) for value in values)

    def told(self, values: np.ndarray) -> dict[str, object]:
        """Say one row of values as `prediction`, and for classes `confidence` and `probabilities`."""
        word = self.word(values)
        if self.task.kind not in ("single", "multi"):
            return {"prediction": word}
        probabilities = dict(zip(self.task.class_names, map(float, values), strict=True))
        sure = {"confidence": float(values.max())} if self.task.kind == "single" else {}
        return {"prediction": word, **sure, "probabilities": probabilities}

    def identity(self) -> str:
        """Hash all that a prediction depends on: backbone, head, task, temperature and framing."""
        said = json.dumps([self.task.to_json(), asdict(self.framing), self.temperature], sort_keys=True)
        if self.frozen is not None:
            tensors, head = str(self.card.weights_hash), weights.arrays_hash(self.frozen.head.arrays())
        else:
            tensors = weights.backbone_hash(self.model.backbone)
            head = weights.weights_hash(self.model.head.state_dict())
        return runtime.digest(tensors, head, said)

    def save(self, folder: Path | str) -> Path:
        """Write the model as a folder of safetensors and JSON; the backbone in it can go on the shelf as it is."""
        target = Path(folder)
        weights.save_backbone(self._backbone, self.card, target)
        durable.write_bytes(target / HEAD, _packed(self.model.head if self.frozen is None else self.frozen.head))
        facts = {
            "format": FORMAT,
            "task": {"name": self.task_name, **self.task.to_json()},
            "framing": asdict(self.framing),
            "temperature": self.temperature,
            "identity": self.identity(),
        }
        durable.write_json(target / FACTS, facts)
        return target


def load(folder: Path | str, *, build: bool = True) -> TrainedModel:
    """Load a model from the folder that `save` or a run wrote; a run folder is understood too.

    Args:
        folder: Where it is.
        build: Whether the network is built now; else when it is first used, from the same folder. Every file is read
            and checked now in both cases.

    Raises:
        RunError: There is no model here.
        CheckpointError: Files are corrupt or do not belong together.
    """
    target = Path(folder)
    target = target / "weights" if (target / "weights" / FACTS).exists() else target
    if not (target / FACTS).exists():
        raise RunError(f"no model in {folder} (expected {FACTS})", "warmstart run DATA --out DIR makes one")
    facts = durable.read_json(target / FACTS, fix=COPY_AGAIN, error=CheckpointError)
    backbone = weights.open_folder(target)
    try:
        name, task, framing, temperature = _described(facts)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{target / FACTS} does not describe a model: {error}", COPY_AGAIN) from error
    assert backbone.card.dim is not None, "the card of a saved backbone is complete"
    frozen = Frozen(backbone, _head(target / HEAD, backbone.card.dim, task.num_outputs))
    model = TrainedModel(frozen, backbone.card, task, name, framing, temperature)
    if facts.get("identity") != model.identity():
        raise CheckpointError(f"{target} was changed after it was saved (by {HEAD} or {FACTS})", COPY_AGAIN)
    if build:
        frozen.get()
    return model


def _head(path: Path, dim: int, num_outputs: int) -> Solved:
    """Read a linear head.

    Raises:
        SourceError: There is no such file.
        CheckpointError: A pickle, a damaged file, or tensors of another module.
    """
    wanted = {"mean": (dim,), "scale": (dim,), "linear.weight": (num_outputs, dim), "linear.bias": (num_outputs,)}
    found = weights.load_arrays(path)
    if {name: array.shape for name, array in found.items()} != wanted:
        from warmstart.models.model import LinearHead

        weights.load_tensors_into(LinearHead(dim, num_outputs), path)  # says what differs
    return Solved.from_arrays(found)


def _packed(head: Solved | nn.Module) -> bytes:
    """Return a head as a safetensors file."""
    from safetensors.numpy import save

    arrays = head.arrays() if isinstance(head, Solved) else _arrays(head)
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})  # else it writes them transposed


def _arrays(head: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in head.state_dict().items()}


def _described(facts: dict[str, object]) -> tuple[str, Task, Framing, float]:
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']}, and this version reads {FORMAT}")
    described = dict(facts["task"])  # type: ignore[call-overload]
    name = str(described.pop("name"))
    task: Task = plugins.load("task", name)().restore(described)
    return name, task, Framing(**facts["framing"]), float(facts["temperature"])  # type: ignore[arg-type]


def apply_head(head: object, features: np.ndarray) -> np.ndarray:
    """Apply a torch head to features in one go: (N, D) → float32 (N, C).

    A linear one is applied as `Solved` is, so that what a model says does not depend on whether it was built.
    """
    import torch

    from warmstart.models.model import LinearHead

    assert isinstance(head, torch.nn.Module)
    if isinstance(head, LinearHead):
        return Solved.from_arrays(_arrays(head)).outputs(np.asarray(features, np.float32))
    with torch.inference_mode():
        return head.eval()(torch.from_numpy(np.array(features, np.float32))).numpy()


def _as_inputs(inputs: Sequence[Input | str] | np.ndarray) -> Sequence[Input] | np.ndarray:
    if isinstance(inputs, np.ndarray):
        return inputs
    return [Path(item) if isinstance(item, str) else item for item in inputs]
