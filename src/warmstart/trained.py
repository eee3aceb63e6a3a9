"""A model that can be used: weights, task and transform together, from a folder and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from warmstart import durable, plugins, runtime
from warmstart.cache import Cache
from warmstart.data import Dataset, Input
from warmstart.errors import CheckpointError, RunError
from warmstart.models import Card
from warmstart.models.model import LinearHead, Model
from warmstart.progress import Advance
from warmstart.tasks import Predictions, Task

if TYPE_CHECKING:
    import torch

    from warmstart.data.transforms import Transform
    from warmstart.extract import Extracted

FORMAT = 1
BATCH = 32
HEAD, FACTS = "head.safetensors", "model.json"
COPY_AGAIN = "copy the folder again from where it was made"


@dataclass(frozen=True)
class Framing:
    """How a picture becomes the square that the backbone sees."""

    image_size: int
    resize: int | None = None
    fit: Literal["crop", "squash", "pad"] = "crop"


@dataclass(frozen=True)
class TrainedModel:
    """A fine-tuned model with everything that prediction needs.

    Example:
        >>> model = load("runs/demo/weights")  # doctest: +SKIP
        >>> model.predict(["new/0001.jpg"])  # doctest: +SKIP
        ['defective']
    """

    model: Model
    card: Card
    """Of the backbone as it is now: its hash is that of the tuned weights."""
    task: Task
    task_name: str
    framing: Framing
    temperature: float = 1.0
    """Outputs are divided by it before they become probabilities; fitted on val."""

    def transform(self) -> Transform:
        """Return the transform of a picture for prediction."""
        from warmstart.data import transforms

        framing = self.framing
        return transforms.for_eval(
            self.model.backbone.spec, image_size=framing.image_size, resize=framing.resize, fit=framing.fit
        )

    def predictions(
        self,
        dataset: Dataset,
        rows: np.ndarray,
        *,
        cache: Cache,
        workers: int = 2,
        device: torch.device | None = None,
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
            backbone=self.model.backbone,
            card=self.card,
            cut=len(self.model.backbone.layer_groups()),
            transform=self.transform(),
            cache=cache,
            workers=workers,
            device=device,
            content_hashes=content_hashes,
            progress=progress,
        )
        outputs = apply_head(self.model.head, np.asarray(found.values))
        targets = None if dataset.targets is None else dataset.targets[rows]
        groups = None if dataset.groups is None else dataset.groups[rows]
        return Predictions(outputs, self.values(outputs), rows, targets, groups), found

    def values(self, outputs: np.ndarray) -> np.ndarray:
        """Turn raw outputs (N, C) into calibrated probabilities, or numbers in target units."""
        import torch

        return self.task.predict(torch.from_numpy(outputs) / self.temperature).numpy()

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
        from warmstart.models import weights

        said = json.dumps([self.task.to_json(), asdict(self.framing), self.temperature], sort_keys=True)
        return runtime.digest(weights.weights_hash(self.model.state_dict()), said)

    def save(self, folder: Path | str) -> Path:
        """Write the model as a folder of safetensors and JSON; the backbone in it can go on the shelf as it is."""
        from safetensors.torch import save

        from warmstart.models import weights

        target = Path(folder)
        weights.save_backbone(self.model.backbone, self.card, target)
        head = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.head.state_dict().items()}
        durable.write_bytes(target / HEAD, save(head))
        facts = {
            "format": FORMAT,
            "task": {"name": self.task_name, **self.task.to_json()},
            "framing": asdict(self.framing),
            "temperature": self.temperature,
            "identity": self.identity(),
        }
        durable.write_json(target / FACTS, facts)
        return target


def load(folder: Path | str) -> TrainedModel:
    """Load a model from the folder that `save` or a run wrote; a run folder is understood too.

    Raises:
        RunError: There is no model here.
        CheckpointError: Files are corrupt or do not belong together.
    """
    from warmstart.models import weights

    target = Path(folder)
    target = target / "weights" if (target / "weights" / FACTS).exists() else target
    if not (target / FACTS).exists():
        raise RunError(f"no model in {folder} (expected {FACTS})", "warmstart run DATA --out DIR makes one")
    facts = durable.read_json(target / FACTS, fix=COPY_AGAIN, error=CheckpointError)
    backbone, card = weights.load_folder(target)
    try:
        name, task, framing, temperature = _described(facts)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{target / FACTS} does not describe a model: {error}", COPY_AGAIN) from error
    head = LinearHead(backbone.dim, task.num_outputs)
    weights.load_tensors_into(head, target / HEAD)
    model = TrainedModel(Model(backbone, head).eval(), card, task, name, framing, temperature)
    if facts.get("identity") != model.identity():
        raise CheckpointError(f"{target} was changed after it was saved (by {HEAD} or {FACTS})", COPY_AGAIN)
    return model


def _described(facts: dict[str, object]) -> tuple[str, Task, Framing, float]:
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']}, and this version reads {FORMAT}")
    described = dict(facts["task"])  # type: ignore[call-overload]
    name = str(described.pop("name"))
    task: Task = plugins.load("task", name)().restore(described)
    return name, task, Framing(**facts["framing"]), float(facts["temperature"])  # type: ignore[arg-type]


def apply_head(head: object, features: np.ndarray) -> np.ndarray:
    """Apply a torch head to features in one go: (N, D) → float32 (N, C)."""
    import torch

    assert isinstance(head, torch.nn.Module)
    with torch.inference_mode():
        return head.eval()(torch.from_numpy(np.array(features, np.float32))).numpy()


def _as_inputs(inputs: Sequence[Input | str] | np.ndarray) -> Sequence[Input] | np.ndarray:
    if isinstance(inputs, np.ndarray):
        return inputs
    return [Path(item) if isinstance(item, str) else item for item in inputs]
