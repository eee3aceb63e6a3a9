"""One profile of a backbone at an input size: where time and memory go, group by group.

A few training steps of the whole network are taken on noise. Hooks at the borders of layer groups say when a forward
and a backward pass cross them, and every tensor that torch allocates is counted, so that a step which begins at any
border is a sum over groups for its time and a window of the same record for its memory. Two micro-batches give the
line between them: what a step costs anyway, and what every further example costs.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from warmstart import looptools, optim
from warmstart.models import Backbone
from warmstart.models.model import Model
from warmstart.optim import OptimConfig
from warmstart.strategies import thaw

if TYPE_CHECKING:
    from warmstart.runtime import Precision

BATCHES = (32, 16, 8, 4)
"""Micro-batches that the larger measurement may have; the smaller one is a quarter of it."""
LOOK = 8
"""Pictures of the first look, which says how large a measurement is affordable."""
REPEATS, SHORT = (1, 5), 0.4
"""Fewest and most steps that are timed, and the seconds after which the fewest are enough."""
STEP = 3.3
"""Seconds of a training step over those of a forward pass, to choose the measurement by."""


Line = tuple[float, float]
"""Bytes whatever the batch, and bytes of each example."""


@dataclass(frozen=True)
class Steps:
    """One training step of everything, measured at one micro-batch.

    Entry g of a tuple is layer group g, input to output; the last entry is the head with its loss.
    """

    batch: int
    forward: tuple[float, ...]
    """Seconds."""
    backward: tuple[float, ...]
    """Seconds."""


@dataclass(frozen=True)
class Inference:
    """One forward pass without gradients, measured at one batch."""

    batch: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Network:
    """What a network costs at an input size, whatever the data."""

    steps: tuple[Steps, ...]
    """By ascending micro-batch."""
    inference: Inference
    live: tuple[tuple[Line, ...], ...]
    """Bytes that live in a step that begins at group g and lets everything from there on learn: at every moment they
    lie on a line over the examples, and the peak is the highest of those that are ever on top."""
    parameters: tuple[int, ...]
    """Numbers that learn, of each group and of the head."""
    layers: tuple[int, ...]
    """Weight matrices and kernels of each group and of the head."""
    hidden_bytes: Mapping[int, int]
    """Bytes of an example at each cut on offer, as it is kept; pixels at 0."""
    optimizer_seconds: float
    """One optimizer step over all parameters."""

    def live_bytes(self, first: int, batch: int) -> float:
        """Return the bytes that live at the peak of a step from a group on."""
        return max(fixed + batch * each for fixed, each in self.live[first])


def measure(
    model: Model,
    loss: Callable[[Tensor, int], Tensor],
    *,
    image_size: int,
    optimizer: OptimConfig,
    precision: Precision = "auto",
    seconds: float = 2.5,
) -> Network:
    """Measure a model on noise.

    Args:
        model: On its device; its weights stay as they are.
        loss: (outputs, number of examples) → scalar.
        image_size: Side of the pictures.
        optimizer: Which optimizer steps.
        precision: Number format of the forward pass.
        seconds: What training steps may take about; slow networks are measured on fewer pictures.
    """
    job = _Job(model, loss, image_size, looptools.accelerator(model, precision).autocast)
    inference = job.look(LOOK)
    batch = _affordable(inference.seconds / LOOK, seconds)
    looptools.set_modes(model, thaw(model.layer_groups()), 0)
    hidden, layers = _hidden_bytes(model.backbone, job.pixels(1)), model.layer_groups()
    sizes = (max(batch // 4, 2), batch)
    small, large = (job.windows(size) for size in sizes)  # they warm up as well
    return Network(
        steps=tuple(job.steps(size) for size in sizes),
        inference=inference,
        live=tuple(_lines(a, b, sizes, hidden.get(at, 0)) for at, (a, b) in enumerate(zip(small, large, strict=True))),
        parameters=tuple(sum(p.numel() for p in layer.parameters) for layer in layers),
        layers=tuple(sum(p.ndim > 1 for p in layer.parameters) for layer in layers),
        hidden_bytes=hidden,
        optimizer_seconds=_optimizer_seconds(model, optimizer),
    )


@dataclass(frozen=True)
class _Job:
    model: Model
    loss: Callable[[Tensor, int], Tensor]
    image_size: int
    autocast: Callable[[], AbstractContextManager[object]]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def pixels(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        shape = (batch, 3, self.image_size, self.image_size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self.device)

    def look(self, batch: int) -> Inference:
        """Predict twice: once to warm up and count bytes, once against the clock."""
        self.model.eval()
        pixels, clock = self.pixels(batch), self.clock
        with torch.no_grad(), _Live(self.model) as live:
            self.model(pixels)
        with torch.inference_mode():
            begun = clock()
            self.model(pixels)
            return Inference(batch, clock() - begun, live.peak())

    def windows(self, batch: int) -> list[list[int]]:
        """Take a step and return the bytes that live after every operation, as if it began at each group."""
        with _Live(self.model) as live:
            record = self.step(self.pixels(batch), live.mark)
        return record.windows(live.trace)

    def steps(self, batch: int) -> Steps:
        """Take steps against the clock, of which the fastest counts; more of them where they are short."""
        pixels, taken = self.pixels(batch), list[_Record]()
        while len(taken) < REPEATS[0] or (len(taken) < REPEATS[1] and sum(one.seconds for one in taken) < SHORT):
            taken.append(self.step(pixels, self.clock))
        fastest = min(taken, key=lambda one: one.seconds)
        return Steps(batch, fastest.forward_parts(), fastest.backward_parts())

    def step(self, pixels: Tensor, mark: Callable[[], float]) -> _Record:
        """Run one step forward and backward, and note when it crosses the borders."""
        learning = [p for p in self.model.parameters() if p.requires_grad]
        with _borders(self.model) as record:
            record.mark = mark
            record.start = mark()
            with self.autocast():
                loss = self.loss(self.model(pixels), len(pixels))
            record.turn = mark()
            gradients = torch.autograd.grad(loss, learning, allow_unused=True)
            record.end = mark()
        del gradients
        record.straighten()
        return record

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass
class _Record:
    """When a step crossed the border behind each layer group, forward and backward, on whatever scale `mark` has."""

    forward: list[float | None]
    backward: list[float | None]
    start: float = 0.0
    turn: float = 0.0
    end: float = 0.0
    mark: Callable[[], float] = field(default=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Return the length of the step."""
        return self.end - self.start

    def leave(self, group: int, output: object) -> None:
        """Note that a part of a group was computed; its last part counts."""
        self.forward[group] = self.mark()
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda _: self.arrive(group))  # type: ignore[no-untyped-call]

    def arrive(self, group: int) -> None:
        """Note that the gradient came back to the end of a group; its last part is met first."""
        if self.backward[group] is None:
            self.backward[group] = self.mark()

    def straighten(self) -> None:
        """Put what was not met, or met out of order, beside its neighbour."""
        last = self.start
        for group, at in enumerate(self.forward):
            last = self.forward[group] = max(last, last if at is None else at)
        last = self.turn
        for group, at in reversed(list(enumerate(self.backward))):
            last = self.backward[group] = max(last, last if at is None else at)

    def borders(self) -> tuple[list[float], list[float]]:
        """Return when each group began: forward, and in the backward pass its end, which is met later."""
        forward = [self.start, *(at for at in self.forward if at is not None)]
        backward = [self.end, *(at for at in self.backward if at is not None)]
        return forward, backward

    def forward_parts(self) -> tuple[float, ...]:
        """Return what each group took forward, and the head with its loss."""
        begun, _ = self.borders()
        return tuple(after - before for before, after in zip(begun, [*begun[1:], self.turn], strict=True))

    def backward_parts(self) -> tuple[float, ...]:
        """Return what each group took backward, and the head with its loss."""
        _, done = self.borders()
        return tuple(after - before for after, before in zip(done, [*done[1:], self.turn], strict=True))

    def windows(self, trace: Sequence[int]) -> list[list[int]]:
        """Return the live bytes from each border until the gradient is back there.

        What the groups before it keep for their backward pass is there all the time, so it can be taken off.
        """
        spans = [(int(begun), int(done)) for begun, done in zip(*self.borders(), strict=True)]
        return [[now - trace[first] for now in trace[first : last + 1]] for first, last in spans]


@contextmanager
def _borders(model: Model) -> Iterator[_Record]:
    """Listen at the ends of the backbone's layer groups."""
    groups = model.backbone.layer_groups()
    record = _Record([None] * len(groups), [None] * len(groups))
    handles = []
    for number, group in enumerate(groups):
        for module in group.modules:

            def leave(_: nn.Module, __: object, output: object, number: int = number) -> None:
                record.leave(number, output)

            handles.append(module.register_forward_hook(leave))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that were made since it began and still live, after every operation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = [0]
        self._now = 0
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._before = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        self.trace.append(self._now)
        return result

    def mark(self) -> float:
        """Return the number of operations so far."""
        return len(self.trace) - 1

    def peak(self) -> int:
        """Return the most bytes that lived at a time."""
        return max(self.trace)

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held or key in self._before:
            return

        def freed(_: object) -> None:
            self._held.pop(key, None)
            self._now -= size

        self._held[key] = weakref.ref(storage, freed)
        self._now += size


def _lines(small: Sequence[int], large: Sequence[int], sizes: tuple[int, int], given: int) -> tuple[Line, ...]:
    """Lay a line through every moment of two equal steps of unequal size, and keep those that are ever on top.

    The peak is not a line itself: in small batches it is where the gradients are complete, in large ones where the
    activations are. Steps that ran other operations are compared by their peaks.
    """
    if len(small) != len(large):
        small, large = [max(small)], [max(large)]
    slopes = [(high - low) / (sizes[1] - sizes[0]) for low, high in zip(small, large, strict=True)]
    lines = [(low - slope * sizes[0], slope + given) for low, slope in zip(small, slopes, strict=True)]
    tops = {
        max(lines, key=lambda line: line[0] + batch * line[1]) for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
    }
    return tuple(sorted(tops))


def _affordable(seconds: float, allowed: float) -> int:
    """Return the largest micro-batch of which two steps, and two of a quarter, fit the time that is allowed."""
    return next((batch for batch in BATCHES if 2 * 1.25 * STEP * seconds * batch <= allowed), BATCHES[-1])


def _hidden_bytes(backbone: Backbone, pixels: Tensor) -> dict[int, int]:
    """Return the bytes of one example at every cut, as the cache keeps it."""
    with torch.inference_mode():
        return {cut: backbone.prefix(pixels, cut).nbytes for cut in backbone.cuts()}


def _optimizer_seconds(model: Model, config: OptimConfig) -> float:
    """Time one step over all parameters, clipping included, at a rate of 0: no weight moves."""
    groups = thaw(model.layer_groups())
    parameters = [parameter for group in groups for parameter in group.parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = optim.build(groups, config, lr=0.0)
    seconds = 0.0
    for _ in range(2):  # the first step makes the optimizer's state
        begun = time.perf_counter()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        seconds = time.perf_counter() - begun
    for parameter in parameters:
        parameter.grad = None
    return seconds
