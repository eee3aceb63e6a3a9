"""Damaged files: a bit flipped or the end cut off, in every kind of file that is read back; none may be believed.

Of each kind 100 copies are damaged, half of them by one flipped bit and half by a cut at a random place, and read as a
run reads them. A damaged file is detected when reading it raises an error of ours, or gives nothing, so that its
content is computed again; a file is believed when it gives anything, and that is a failure whether or not the content
is the true one.

usage: python benchmarks/damage.py [--each 100]
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import common
from warmstart import checkpoint, engine, plugins, runtime, sources, trained
from warmstart.cache import Cache
from warmstart.data import read, scan
from warmstart.errors import WarmstartError
from warmstart.models import lazy, weights
from warmstart.shards import KEY


@dataclass(frozen=True)
class Kind:
    """One kind of file: where it lies, and whether what is read back is there and whole."""

    path: Path
    believed: Callable[[], bool]


def main() -> None:
    """Damage, read back, count and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as work:
        found = {name: _count(name, kind, options.each) for name, kind in kinds(Path(work)).items()}
    total, detected = options.each * len(found), sum(found.values())
    print(f"{detected} of {total} damaged files were detected")
    runs = {name: [common.Measured(0.0, facts={"damaged": options.each, "detected": n})] for name, n in found.items()}
    parameters = {"each": options.each, "damaged": total, "detected": detected}
    print(common.write("damage", runs, [], parameters=parameters, seeds=[*range(options.each)], folder=options.results))
    sys.exit(0 if detected == total else 1)


def _count(name: str, kind: Kind, each: int) -> int:
    """Damage one file again and again, and count how often that was noticed."""
    beside = {path: path.read_bytes() for path in kind.path.parent.iterdir() if path.is_file()}
    assert kind.believed(), f"{name} is not believed while it is whole"
    detected = 0
    for seed in range(each):
        kind.path.write_bytes(damaged(beside[kind.path], seed, name))
        detected += not kind.believed()
        for path, data in beside.items():  # what is damaged may have been deleted, and its neighbours with it
            path.write_bytes(data)
    print(f"{name:32} {detected} of {each}")
    return detected


def damaged(data: bytes, seed: int, name: str) -> bytes:
    """Flip one bit where the seed is even, cut the end off where it is odd."""
    draw = runtime.rng(seed, "damage", name)
    if seed % 2:
        return data[: int(draw.integers(len(data)))]
    copy, bit = bytearray(data), int(draw.integers(len(data) * 8))
    copy[bit // 8] ^= 1 << bit % 8
    return bytes(copy)


def kinds(work: Path) -> dict[str, Kind]:
    """Write one good file of every kind."""
    return {**_checkpoints(work / "checkpoints"), **_cached(work / "cache"), **_models(work / "model")}


def _checkpoints(folder: Path) -> dict[str, Kind]:
    import torch

    tensors = {"a": torch.arange(300.0), "b": torch.ones(7, 5, dtype=torch.int64)}
    checkpoint.save(folder, tensors, {"step": 30, "rate": 0.1}, generation=1)

    def believed() -> bool:
        return _read(lambda: checkpoint.load_latest(folder))

    return {
        "checkpoint tensors": Kind(next(folder.glob("*.safetensors")), believed),
        "checkpoint state": Kind(next(folder.glob("*.json")), believed),
    }


def _cached(root: Path) -> dict[str, Kind]:
    """Write shards of features, an exported graph, a measurement of engines, facts of a backbone, and a scan."""
    keys = np.frombuffer(b"".join(bytes([n]) * 16 for n in range(1, 21)), KEY)
    rows = runtime.rng(0).normal(size=(20, 24)).astype(np.float32)

    def open_space() -> bool:
        """Say whether all rows are served, from files that nobody has read yet."""
        return bool(_fresh(root).find(keys).all())

    _fresh(root).add(keys, rows)
    folder = next((root / "features").iterdir())
    graph = root / "engines" / "graph.onnx"
    engine._write(graph, engine._sealed(b"a graph" * 200))
    timing = engine.Choice("torch", engine._unbuilt, {"torch": engine.Timing(123.4, 0.0)}, "")
    engine._remember(root / "engines" / "measured.json", timing)
    facts = root / "backbones" / "facts.json"
    lazy.keep(facts, {"identity": "0123456789abcdef", "num_groups": 9})
    return {
        "cached features": Kind(next(folder.glob("*.values")), open_space),
        "index of cached features": Kind(next(folder.glob("*.index")), open_space),
        "exported graph": Kind(graph, lambda: engine._graph_on_disk(graph) is not None),
        "measurement of engines": Kind(
            root / "engines" / "measured.json",
            lambda: engine._recall(root / "engines" / "measured.json") is not None,
        ),
        "facts of a backbone": Kind(facts, lambda: lazy.recall(facts) is not None),
        "memory of a scan": _scanned(root),
    }


def _fresh(root: Path):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """Open the space as a new process would."""
    from warmstart import shards

    shards._OPEN.clear()
    return Cache(root, limit_bytes=2**30).space(weights="w", transform="t", cut=1)


def _scanned(root: Path) -> Kind:
    (root / "scan").mkdir(parents=True)
    scan._write_shard(root / "scan", np.zeros(40, scan.STORED))
    path = next((root / "scan").glob("*.rows"))
    return Kind(path, lambda: len(scan._read_shard(path)) > 0)


def _models(folder: Path) -> dict[str, Kind]:
    """Save a tiny model, and keep its frozen weights."""
    from warmstart.models.model import Model

    backbone, card = sources.load("random/test_resnet")
    task = plugins.load("task", "classification")().bind(
        read.from_arrays(np.zeros((4, 8, 8, 3), np.uint8), ["a", "b"] * 2)
    )
    card = replace(card, name="local/tiny")
    model = trained.TrainedModel(
        Model(backbone, task.head(backbone.dim)).eval(), card, task, "classification", trained.Framing(32)
    )
    model.save(folder)

    def believed() -> bool:
        return _read(lambda: trained.load(folder, build=False))

    return {
        "saved backbone": Kind(folder / weights.WEIGHTS, believed),
        "saved head": Kind(folder / trained.HEAD, believed),
    }


def _read(reader: Callable[[], object]) -> bool:
    try:
        return reader() is not None
    except (WarmstartError, OSError, ValueError):
        return False


if __name__ == "__main__":
    main()
