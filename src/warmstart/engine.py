"""The fastest engine that computes the same: eager torch, torch channels-last, or ONNX Runtime on the CPU.

Between the engines lies a factor of two and more, and which one wins depends on network, picture size and machine. So
it is measured, on the first pictures of the job itself, and remembered. An engine whose values differ from eager
torch's by more than `TOLERANCE` of the largest value is not considered.

On the CPU all of them work in chunks of `CHUNK` pictures, whose activations stay in the processor's cache: worth more
than a large batch. ONNX Runtime computes one chunk per processor, which scales better than sharing every layer. Values
depend on the chunk alone, not on batch size or threads; so what the winner computed in the measurement is kept, and a
run that is killed and repeated gets equal bits.
"""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from warmstart import durable, runtime
from warmstart.errors import RunError
from warmstart.models import lazy

if TYPE_CHECKING:
    from warmstart.models import Backbone

log = logging.getLogger(__name__)

EngineName = Literal["torch", "torch channels-last", "onnxruntime"]
Submit = Callable[[Tensor], Callable[[], np.ndarray]]
"""Starts to compute uint8 (B, 3, H, W), and returns how to wait for the float32 (B, …)."""

FORMAT = 2
TOLERANCE = 1e-4
"""Largest |difference| from eager torch, as a fraction of the largest |value|."""
CHUNK = 8
"""Pictures that are computed together on the CPU; a GPU gets batches as they come."""
MEASURE_FROM = 256
"""Fewer pictures than this do not repay an export and a measurement."""


@dataclass(frozen=True)
class Timing:
    """What was measured on one engine; a row of the report's table."""

    images_per_second: float | None
    max_difference: float | None
    """Largest |difference| from eager torch, as a fraction of the largest |value|."""
    refused: str = ""
    """Why the engine was not considered, or empty."""


@dataclass(frozen=True)
class Choice:
    """The engine that was chosen, why, and the values that the measurement already computed.

    Shape:
        values: float32 (K, …), the first K pictures of the batch, or None.
    """

    name: EngineName
    submit: Submit
    table: dict[str, Timing]
    reason: str
    values: np.ndarray | None = None

    def run(self, pixels: Tensor) -> np.ndarray:
        """Compute values and wait for them.

        Shape:
            pixels: uint8 (B, 3, H, W). Returns float32 (B, …).
        """
        return self.submit(pixels)()


@dataclass(frozen=True)
class Prefix:
    """The function that an engine computes.

    Args:
        backbone: The network; it is copied, never changed.
        identity: Hash of everything that its values depend on.
        cut: Where the frozen prefix ends.
        device: Where it runs.
    """

    backbone: Backbone
    identity: str
    cut: int
    device: torch.device


class _Frozen(nn.Module):
    """The prefix as a module: pixels in, hidden values out."""

    def __init__(self, prefix: Prefix) -> None:
        super().__init__()
        # The user's network stays as it is: its mode, its memory format, its device.
        self.backbone = copy.deepcopy(cast("nn.Module", prefix.backbone)).eval().requires_grad_(False)
        self.cut = prefix.cut

    def forward(self, pixels: Tensor) -> Tensor:
        return cast("Backbone", self.backbone).prefix(pixels, self.cut)


def pick(prefix: Prefix, batch: Tensor, *, remaining: int, folder: Path) -> Choice:
    """Choose the engine for this prefix on this machine.

    Args:
        prefix: What is to be computed.
        batch: The first pictures of the job.
        remaining: How many pictures the job has; few do not repay a measurement.
        folder: Where measurements and exported graphs are kept.

    Returns:
        The choice. Where it was measured, it is on disk before this returns.

    Shape:
        batch: uint8 (B, 3, H, W).
    """
    memory = folder / f"{_key(prefix, batch)}.json"
    remembered = _recall(memory)
    if remembered is not None:
        choice = _again(prefix, batch, remembered, folder)
        if choice is not None:
            return choice
    if remaining < MEASURE_FROM:
        reason = f"{remaining} pictures do not repay a measurement"
        return Choice("torch", _torch(prefix, channels_last=False), {}, reason)
    choice = _measure(prefix, batch, folder)
    _remember(memory, choice)
    return choice


def names(device: torch.device) -> tuple[EngineName, ...]:
    """Return the engines that a device has; the first one is the reference."""
    return ("torch", "torch channels-last", "onnxruntime") if device.type == "cpu" else ("torch", "torch channels-last")


def batch_size(stated: int, device: torch.device) -> int:
    """Return how many pictures to hand over at once: on the CPU at least two chunks for every processor."""
    if device.type != "cpu":
        return stated
    return -(-max(stated, 2 * CHUNK * _threads()) // CHUNK) * CHUNK


def _measure(prefix: Prefix, batch: Tensor, folder: Path) -> Choice:
    built: dict[EngineName, Submit] = {}
    values: dict[EngineName, np.ndarray] = {}
    table: dict[str, Timing] = {}
    for name in names(prefix.device):
        try:
            built[name] = _build(name, prefix, batch, folder)
            values[name], rate = _timed(built[name], batch, _unit(name, batch, prefix.device))
        except Exception as error:  # exporters and runtimes raise whatever they like; only the reference must work
            if name == "torch":
                raise
            log.info("engine %s cannot run this prefix: %s", name, str(error))
            table[name] = Timing(None, None, f"{type(error).__name__}: {str(error)[:200]}")
            continue
        difference = _difference(values["torch"], values[name])
        refused = "" if difference <= TOLERANCE else f"differs from torch by {difference:.1e} of the largest value"
        table[name] = Timing(rate, difference, refused)
    fastest = max((name for name in values if not table[name].refused), key=lambda name: _rate(table[name]))
    kept = values[fastest] if prefix.device.type == "cpu" else None  # a GPU's values depend on the size of the batch
    return Choice(fastest, built[fastest], table, "fastest of those that agree", kept)


def _unit(name: EngineName, batch: Tensor, device: torch.device) -> int:
    """Return the least number of pictures that shows how fast an engine is."""
    if device.type != "cpu":
        return -(-len(batch) // 2)
    return CHUNK * _threads() if name == "onnxruntime" else CHUNK


def _timed(submit: Submit, batch: Tensor, unit: int) -> tuple[np.ndarray, float]:
    """Compute one unit to warm up and the next one against the clock, and return values and pictures per second."""
    first, second = batch[:unit], batch[unit : 2 * unit]
    warm = submit(first)()
    if len(second) < len(first):  # the batch is too small for two
        second = first
    start = time.perf_counter()
    timed = submit(second)()
    rate = len(second) / (time.perf_counter() - start)
    return (warm if second is first else np.concatenate([warm, timed])), rate


def _again(prefix: Prefix, batch: Tensor, remembered: Choice, folder: Path) -> Choice | None:
    """Build the engine that was remembered, and look at two pictures before it is trusted."""
    try:
        submit = _build(remembered.name, prefix, batch, folder)
        if remembered.name != "torch":
            look = batch[:2]
            _agree(_difference(_torch(prefix, channels_last=False)(look)(), submit(look)()))
    except Exception as error:  # noqa: BLE001 as in `_measure`
        log.warning("engine %s was remembered and no longer works: %s", remembered.name, str(error))
        return None
    return Choice(remembered.name, submit, remembered.table, "measured before")


def _agree(difference: float) -> None:
    if difference > TOLERANCE:
        raise ArithmeticError(f"differs from torch by {difference:.1e} of the largest value")


def _build(name: EngineName, prefix: Prefix, batch: Tensor, folder: Path) -> Submit:
    if name == "onnxruntime":
        return _onnxruntime(prefix, batch, folder)
    return _torch(prefix, channels_last=name == "torch channels-last")


def _torch(prefix: Prefix, *, channels_last: bool) -> Submit:
    frozen = _Frozen(prefix).to(prefix.device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if channels_last:
        frozen = frozen.to(memory_format=torch.channels_last)

    def submit(pixels: Tensor) -> Callable[[], np.ndarray]:
        # Autocast is off, so values do not depend on what surrounds the call.
        with torch.inference_mode(), torch.autocast(prefix.device.type, enabled=False):
            parts = [
                frozen(part.to(prefix.device).contiguous(memory_format=layout)).float().cpu().contiguous().numpy()
                for part in torch.split(pixels, CHUNK if prefix.device.type == "cpu" else len(pixels))
            ]
        return lambda: np.concatenate(parts)

    return submit


def _onnxruntime(prefix: Prefix, batch: Tensor, folder: Path) -> Submit:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_graph(prefix, batch, folder), options, providers=["CPUExecutionProvider"])
    pool = ThreadPoolExecutor(_threads(), thread_name_prefix="warmstart-engine")

    def compute(part: Tensor) -> np.ndarray:
        return session.run(None, {"pixels": part.numpy()})[0]

    def submit(pixels: Tensor) -> Callable[[], np.ndarray]:
        parts = [pool.submit(compute, part) for part in torch.split(pixels, CHUNK)]
        return lambda: np.concatenate([part.result() for part in parts])

    return submit


def _graph(prefix: Prefix, batch: Tensor, folder: Path) -> bytes:
    """Return the exported prefix, from disk when it is there and whole."""
    path = folder / f"{runtime.digest(prefix.identity, prefix.cut, *batch.shape[1:], version('torch'), FORMAT)}.onnx"
    graph = _graph_on_disk(path)
    if graph is None:
        graph = _export(prefix, batch)
        _write(path, _sealed(graph))
    return graph


def _sealed(graph: bytes) -> bytes:
    return hashlib.blake2b(graph, digest_size=16).digest() + graph


def _graph_on_disk(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
        os.utime(path)  # used now, so it leaves the cache later
    except OSError:
        return None
    if data == _sealed(data[16:]):
        return data[16:]
    log.warning("engine: %s is damaged and exported again", path)
    return None


def _export(prefix: Prefix, batch: Tensor) -> bytes:
    frozen, example = _Frozen(prefix), batch[:2].expand(2, -1, -1, -1)
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        # The exporter by tracing is several times faster than its successor and says on every call that it will go;
        # remove when torch drops it.
        warnings.simplefilter("ignore")
        if _resamples_positions(prefix, batch.shape[-1]):
            return _export_exported(frozen, example)
        try:
            return _export_traced(frozen, example)
        except Exception as error:  # noqa: BLE001 as in `_measure`
            log.info("export by tracing failed, trying torch.export: %s", next(iter(str(error).splitlines()), ""))
            return _export_exported(frozen, example)


def _resamples_positions(prefix: Prefix, side: int) -> bool:
    """Say whether a position embedding is resampled, which tracing cannot export and prints pages about."""
    spec = prefix.backbone.spec
    names = (name for name, _ in cast("nn.Module", prefix.backbone).named_parameters())
    return side != (spec.embedded_size or spec.image_size) and any(name.endswith("pos_embed") for name in names)


def _export_traced(frozen: nn.Module, example: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.onnx.export(
        frozen,
        (example,),
        buffer,  # type: ignore[arg-type]
        dynamo=False,
        do_constant_folding=False,  # ONNX Runtime folds them anyway, at load
        input_names=["pixels"],
        output_names=["values"],
        dynamic_axes={"pixels": {0: "batch"}, "values": {0: "batch"}},
    )
    return buffer.getvalue()


def _export_exported(frozen: nn.Module, example: Tensor) -> bytes:
    program = torch.onnx.export(
        frozen,
        (example,),
        dynamo=True,
        verbose=False,
        input_names=["pixels"],
        output_names=["values"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    return data


def _difference(expected: np.ndarray, got: np.ndarray) -> float:
    """Return the largest |difference| as a fraction of the largest |value| over the pictures that both have.

    Infinite where a value is not a number.
    """
    common = min(len(expected), len(got))
    wanted, found = expected[:common], got[:common]
    if wanted.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(wanted - found).max() / max(float(np.abs(wanted).max()), 1e-30))


def _key(prefix: Prefix, batch: Tensor) -> str:
    libraries = [version(name) for name in ("torch", "onnxruntime")]
    shape = [int(side) for side in batch.shape[1:]]
    return runtime.digest(
        prefix.identity, prefix.cut, *shape, prefix.device.type, _threads(), *libraries, CHUNK, FORMAT
    )


def _recall(path: Path) -> Choice | None:
    facts = lazy.recall(path)
    if facts is None:
        return None
    timings = cast("dict[str, dict[str, float]]", facts["table"])
    table = {name: Timing(**timing) for name, timing in timings.items()}  # type: ignore[arg-type]
    return Choice(cast("EngineName", facts["engine"]), _unbuilt, table, "")


def _unbuilt(pixels: Tensor) -> Callable[[], np.ndarray]:  # noqa: ARG001 a placeholder of the right type
    raise AssertionError("a remembered engine is built before it runs")


def _remember(path: Path, choice: Choice) -> None:
    facts: dict[str, object] = {
        "engine": choice.name,
        "table": {name: asdict(timing) for name, timing in choice.table.items()},
    }
    lazy.keep(path, facts)


def _write(path: Path, data: bytes) -> None:
    """Write whole or not at all. A disk that takes no more costs a measurement next time, and no run."""
    try:
        durable.write_bytes(path, data)
    except RunError as error:
        log.warning("engine: %s", error.problem)


def _rate(timing: Timing) -> float:
    return timing.images_per_second or 0.0


def _threads() -> int:
    """Return how many chunks ONNX Runtime computes at a time: one per processor, fewer if `OMP_NUM_THREADS` says so."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(stated), runtime.num_cpus()) if stated.isdigit() and int(stated) else runtime.num_cpus()
