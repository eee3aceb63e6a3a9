"""Predictions that a run leaves behind, so that it can be compared with other runs without its data or its model.

`predictions/SPLIT.safetensors` holds plain tensors (outputs, values, targets, content hashes, group numbers) and, in
its header, the ids, the names of the groups and the bound task as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from warmstart import durable, plugins
from warmstart.errors import RunError
from warmstart.rundir import RunDir
from warmstart.tasks import Predictions, Task

FORMAT = "1"
SPLITS = ("val", "test")


@dataclass(frozen=True)
class Predicted:
    """What a run said about the examples of one split.

    Shape:
        hashes: uint8 (N, H), the content hash of each example, in the order of the predictions.
    """

    predictions: Predictions
    task: Task
    task_name: str
    ids: tuple[str, ...]
    hashes: np.ndarray

    def keys(self) -> list[bytes]:
        """Name each example by its content; equal contents are told apart by the order of their ids."""
        contents = [row.tobytes() for row in self.hashes]
        copies: dict[bytes, int] = {}
        keys = [b""] * len(contents)
        for at in sorted(range(len(contents)), key=lambda at: self.ids[at]):
            copies[contents[at]] = number = copies.get(contents[at], -1) + 1
            keys[at] = contents[at] + number.to_bytes(4, "big")
        return keys


def save(
    folder: RunDir,
    split: str,
    predictions: Predictions,
    *,
    task: Task,
    task_name: str,
    ids: Sequence[str],
    hashes: np.ndarray,
) -> None:
    """Write predictions into a run folder and record the file in its manifest.

    Args:
        folder: Of the run.
        split: `val` or `test`.
        predictions: With targets.
        task: What they are about.
        task_name: Its plug-in.
        ids: Of every example of the dataset.
        hashes: Content hash of every example of the dataset.

    Shape:
        hashes: uint8 (num_examples, H).
    """
    from safetensors.numpy import save as packed

    assert predictions.targets is not None, "a split has targets"
    tensors = {
        "outputs": predictions.outputs,
        "values": predictions.values,
        "targets": predictions.targets,
        "index": predictions.index,
        "hashes": hashes[predictions.index],
    }
    groups: list[str] = []
    if predictions.groups is not None:
        names, tensors["groups"] = np.unique(predictions.groups, return_inverse=True)
        groups = [str(name) for name in names]
    facts = {
        "ids": [ids[row] for row in predictions.index.tolist()],
        "groups": groups,
        "task": {"name": task_name, **task.to_json()},
    }
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    header = {"format": FORMAT, "facts": json.dumps(facts, sort_keys=True)}
    durable.write_bytes(folder.path / _file(split), packed(whole, metadata=header))
    folder.add_file(_file(split))


def there(run: Path, split: str) -> bool:
    """Say whether a run has left predictions on a split."""
    return (run / _file(split)).is_file()


def load(run: Path, split: str) -> Predicted:
    """Read what a run said about a split.

    Raises:
        RunError: The run has left no such predictions, or the file is not what it wrote.
    """
    path = run / _file(split)
    if not there(run, split):
        recorded = ", which opens test and is recorded" if split == "test" else ""
        raise RunError(f"{run} has no predictions on {split}", f"warmstart evaluate {run} --split {split}{recorded}")
    manifest = durable.read_json(run / "manifest.json", fix="name the folder that `warmstart run` printed")
    files = manifest.get("files")
    entry = files.get(_file(split)) if isinstance(files, dict) else None
    if not isinstance(entry, dict) or entry.get("sha256") != durable.sha256(path):
        raise RunError(
            f"{path} is not what the run wrote (its hash differs)", f"warmstart evaluate {run} --split {split}"
        )
    return _unpacked(path)


def _unpacked(path: Path) -> Predicted:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        header, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts = json.loads(header["facts"])
    groups = np.array(facts["groups"])[arrays["groups"]] if "groups" in arrays else None
    predictions = Predictions(arrays["outputs"], arrays["values"], arrays["index"], arrays["targets"], groups)
    name = facts["task"].pop("name")
    task = plugins.load("task", name)().restore(facts["task"])
    return Predicted(predictions, task, name, tuple(facts["ids"]), arrays["hashes"])


def _file(split: str) -> str:
    return f"predictions/{split}.safetensors"
