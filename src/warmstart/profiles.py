"""A profile: everything measured about a backbone at an input size on this machine, remembered between commands."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from warmstart import bench, durable, engine, extract, profiling, resources, runtime
from warmstart.data import loading
from warmstart.errors import RunError
from warmstart.models.model import Model
from warmstart.profiling import Inference, Network, Steps

if TYPE_CHECKING:
    from warmstart.bench import Bench
    from warmstart.data.transforms import Transform
    from warmstart.prepare import Prepared
    from warmstart.session import Session

log = logging.getLogger(__name__)

FORMAT = 3
PICTURES = 32
"""Pictures of the data that are decoded to measure it; the engine is chosen on them as well."""


LIBRARIES = ("accelerate", "onnxruntime", "timm", "torchvision")
"""What a fit imports sooner or later; their memory is the command's, not the network's."""


@dataclass(frozen=True)
class Engine:
    """The engine that computes frozen values, and its cost at the last cut."""

    name: str
    seconds: float
    """Per picture, decoding left out."""
    build_seconds: float
    """To export, compare and choose."""
    peak_bytes: int
    """Taken by building it and by its first pictures."""
    again_bytes: int
    """Taken when it is built again from what is remembered."""


@dataclass(frozen=True)
class Decoding:
    """Seconds of one processor to read, decode and transform one picture."""

    plain: float
    augmented: float


@dataclass(frozen=True)
class Profile:
    """What a backbone costs at an input size, on this machine, on data like this."""

    backbone: str
    image_size: int
    num_outputs: int
    network: Network
    engine: Engine
    decoding: Decoding
    load_seconds: float
    load_peak_bytes: int
    """Taken at the peak of loading the weights."""
    resident_bytes: int
    """Held by the process with all libraries loaded, before the first network."""
    cpus: int
    threads: int
    """Of torch."""
    workers: int
    """Threads that decode."""
    seconds: float
    """That this took; near 0 when it was remembered."""

    def to_json(self) -> dict[str, object]:
        """Return a JSON-ready dict; `from_json` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(facts: Mapping[str, object]) -> Profile:
        """Rebuild a profile.

        Raises:
            KeyError, TypeError, ValueError: The facts are not those of a profile.
        """
        values = {**facts}
        network: dict[str, object] = dict(values["network"])  # type: ignore[call-overload]
        steps = [{name: _tuple(value) for name, value in one.items()} for one in network["steps"]]  # type: ignore[attr-defined]
        network = {name: _tuple(value) for name, value in network.items()}
        network["live"] = tuple(tuple((fixed, each) for fixed, each in lines) for lines in network["live"])  # type: ignore[attr-defined]
        network["steps"] = tuple(Steps(**one) for one in steps)  # type: ignore[arg-type]
        network["inference"] = Inference(**network["inference"])  # type: ignore[arg-type]
        network["hidden_bytes"] = {int(cut): size for cut, size in network["hidden_bytes"].items()}  # type: ignore[attr-defined]
        values["network"] = Network(**network)  # type: ignore[arg-type]
        values["engine"] = Engine(**values["engine"])  # type: ignore[arg-type]
        values["decoding"] = Decoding(**values["decoding"])  # type: ignore[arg-type]
        return Profile(**values)  # type: ignore[arg-type]


def profile(session: Session, data: Prepared, backbone_name: str, image_size: int, *, seconds: float = 2.5) -> Profile:
    """Measure a backbone at an input size, or remember what was measured.

    The memory of a profile is its architecture, size, number of outputs, optimizer, precision, device, processors,
    threads and versions of the libraries; what the weights hold does not change what they cost. Decoding is measured
    on the data at hand, and remembered for it.

    Args:
        session: The command at work.
        data: What to learn from; 32 of its pictures are decoded.
        backbone_name: `source/name` or a folder of weights.
        image_size: Side in pixels.
        seconds: What training steps may take about; a whole profile takes some seconds more where an engine is built.

    Raises:
        SourceError: The weights are not here.
    """
    begun = time.perf_counter()
    path = session.cache.engines / f"{_key(session, data, backbone_name, image_size)}.profile.json"
    known = _recall(path)
    if known is None:
        known = _measure(session, data, backbone_name, image_size, seconds)
        _remember(path, known)
    return dataclasses.replace(known, seconds=time.perf_counter() - begun)


def _measure(session: Session, data: Prepared, backbone_name: str, image_size: int, seconds: float) -> Profile:
    resident = _resident_bytes()
    peak, begun = partial(_peak_over, _settled()), time.perf_counter()
    place = bench.load(session, data, backbone_name, image_size)
    network = place.backbone  # built here at the latest
    load_seconds, load_peak = time.perf_counter() - begun, peak()
    decoding, pixels = _decoding(place)
    found = _engine(place, pixels)
    model = Model(network, data.task.head(network.dim, seed=0)).to(session.device).to(memory_format=torch.channels_last)
    recipe = session.recipe
    measured = profiling.measure(
        model,
        _loss(data, session.device),
        image_size=image_size,
        optimizer=recipe.optim,
        precision=recipe.precision,
        seconds=seconds,
    )
    del model, place, network
    resources.trim()
    return Profile(
        backbone=backbone_name,
        image_size=image_size,
        num_outputs=data.task.num_outputs,
        network=measured,
        engine=found,
        decoding=decoding,
        load_seconds=load_seconds,
        load_peak_bytes=load_peak,
        resident_bytes=resident,
        cpus=runtime.num_cpus(),
        threads=torch.get_num_threads(),
        workers=session.workers,
        seconds=0.0,
    )


def _loss(data: Prepared, device: torch.device) -> Callable[[Tensor, int], Tensor]:
    """Return the task's loss against the first targets, repeated as needed."""

    def loss(outputs: Tensor, num: int) -> Tensor:
        targets = np.resize(data.targets[: max(num, 1)], (num, *data.targets.shape[1:]))
        return data.task.loss(outputs, torch.from_numpy(targets).to(device))

    return loss


def _decoding(place: Bench) -> tuple[Decoding, Tensor]:
    """Time the decoding of a few pictures on one processor, and return their pixels."""
    rows = place.data.splits.train[:PICTURES]
    plain, pixels = _decoded(place, rows, place.plain())
    augmented, _ = _decoded(place, rows, place.augmented("standard"))
    return Decoding(plain / len(rows), augmented / len(rows)), pixels


def _decoded(place: Bench, rows: np.ndarray, transform: Transform) -> tuple[float, Tensor]:
    list(loading.batches(place.data.dataset, [rows[:1]], transform, seed=0, epoch=0, workers=0))  # imports, for one
    begun = time.perf_counter()
    ((pixels, _),) = loading.batches(place.data.dataset, [rows], transform, seed=0, epoch=0, workers=0)
    return time.perf_counter() - begun, pixels


def _engine(place: Bench, pixels: Tensor) -> Engine:
    """Let the job's own choice of an engine be made, which is remembered for the job, and take its rate."""
    session, last = place.session, len(place.backbone.layer_groups())
    named = extract.identity(place.backbone, place.card)
    prefix = engine.Prefix(place.backbone, named, last, session.device)
    resident, begun = _settled(), time.perf_counter()
    choice = engine.pick(prefix, pixels, remaining=len(place.data.dataset), folder=session.cache.engines)
    took, peak = time.perf_counter() - begun, _peak_over(resident)
    resident = _settled()
    engine.pick(prefix, pixels, remaining=len(place.data.dataset), folder=session.cache.engines).run(pixels)
    again = _peak_over(resident)
    rate = choice.table[choice.name].images_per_second if choice.name in choice.table else None
    return Engine(choice.name, 1 / rate if rate else _timed(choice, pixels), took, peak, again)


def _timed(choice: engine.Choice, pixels: Tensor) -> float:
    """Return seconds per picture of an engine that nobody has timed."""
    chunk = pixels[: engine.CHUNK]
    choice.run(chunk)
    begun = time.perf_counter()
    choice.run(chunk)
    return (time.perf_counter() - begun) / len(chunk)


@functools.cache
def _resident_bytes() -> int:
    """Bring in every library that a command comes to use, and return what the process holds then."""
    for name in LIBRARIES:
        importlib.import_module(name)
    return _settled()


def _settled() -> int:
    """Give back what is free, begin the peak anew, and return what is held."""
    resources.trim()
    resources.reset_peak()
    return resources.resident_bytes()


def _peak_over(resident: int) -> int:
    return max(resources.peak_bytes() - resident, 0)


def _key(session: Session, data: Prepared, backbone_name: str, image_size: int) -> str:
    recipe, framing = session.recipe, session.recipe.data
    facts: list[str | int] = [FORMAT, backbone_name, *_files(Path(backbone_name).expanduser()), image_size]
    facts += [data.task.num_outputs, recipe.optim.name, str(recipe.precision), session.device.type]
    facts += [framing.resize or 0, framing.fit, runtime.num_cpus(), torch.get_num_threads(), session.workers]
    facts += [int(len(data.dataset) >= engine.MEASURE_FROM), data.splits.fingerprint]
    facts += [version(name) for name in ("torch", "onnxruntime", "timm", "torchvision", "pillow")]
    return runtime.digest(*facts)


def _files(folder: Path) -> list[str]:
    """Name the files of a local backbone as they are now; a name of a source has none."""
    if not folder.is_dir():
        return []
    return [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in sorted(folder.iterdir())]


def _recall(path: Path) -> Profile | None:
    try:
        return Profile.from_json(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("profile: %s is damaged and measured again: %s", path, str(error))
        return None


def _remember(path: Path, known: Profile) -> None:
    try:
        durable.write_bytes(path, json.dumps(known.to_json()).encode())
    except RunError as error:
        log.warning("profile: %s", error.problem)


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
