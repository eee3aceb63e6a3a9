"""Parts of the loop that stand on their own: the engine, modes, micro-batches, the clock, and the watch for NaN."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from warmstart import runtime
from warmstart.data import Batch
from warmstart.errors import RecipeError, TrainingError, listed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from warmstart.resume import Ema
    from warmstart.strategies import Group

LOOK_EVERY = 50
"""Steps between looks at losses where looking would make the device wait."""


class NotFiniteError(TrainingError):
    """A loss or gradient that is not a number; `rows` are the batch's rows of the dataset."""

    def __init__(self, step: int, rows: np.ndarray) -> None:
        super().__init__(
            f"the loss or its gradient is not finite at step {step} (rows {listed([str(row) for row in rows], 8)})",
            "a smaller optim.lr, optim.clip_norm=1.0, or on_nan=skip",
        )
        self.step = step
        self.rows = rows


class Watch:
    """Looks for losses and gradients that are not finite.

    On a CPU every step is looked at before it is taken. Elsewhere looking would make the device wait, so `stop` looks
    every `LOOK_EVERY` steps and before anything is validated or saved, and still names the first bad step.

    Args:
        policy: `stop` raises, `skip` leaves the step out.
        buffers: What a forward pass may change; put back when a step is skipped or begun again.
        accelerator: Where the fit runs.
    """

    def __init__(self, policy: Literal["stop", "skip"], buffers: Sequence[Tensor], accelerator: Accelerator) -> None:
        self.skipped = 0
        self._policy = policy
        self._buffers = buffers
        self._held: list[Tensor] = []
        self._scaled = accelerator.scaler is not None
        self._deferred = policy == "stop" and accelerator.device.type != "cpu"
        self._unseen: list[tuple[Tensor, int, Tensor]] = []

    def before_step(self) -> None:
        """Hold on to the buffers: a step may be skipped, or taken again when memory runs out."""
        self._held = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the buffers back to where they were before the step."""
        for buffer, held in zip(self._buffers, self._held, strict=True):
            buffer.copy_(held)

    def wants_norm(self, clip_norm: float) -> bool:
        """Tell whether the gradient's norm is needed: to clip, or to skip a gradient that would spoil the weights."""
        return self._policy == "skip" or not math.isinf(clip_norm)

    @torch.no_grad()
    def passes(self, loss: Tensor, norm: Tensor | None, step: int, rows: Tensor) -> bool:
        """Tell whether the step may be taken.

        Raises:
            NotFiniteError: It may not, and the policy is to stop.
        """
        # In fp16 the loss scaling meets infinite gradients by itself, and they are no fault.
        finite = torch.isfinite(loss) if norm is None or self._scaled else torch.isfinite(loss) & torch.isfinite(norm)
        if self._deferred:
            self._unseen.append((finite, step, rows))
            if len(self._unseen) >= LOOK_EVERY:
                self.look()
            return True
        if bool(finite):
            return True
        if self._policy == "stop":
            raise NotFiniteError(step, rows.numpy())
        self.restore()
        self.skipped += 1
        return False

    def look(self) -> None:
        """Look at the steps that were not looked at yet.

        Raises:
            NotFiniteError: One of them was not finite; the first is named.
        """
        unseen, self._unseen = self._unseen, []
        if unseen:
            finite = torch.stack([entry[0] for entry in unseen]).tolist()
            if not all(finite):
                _, step, rows = unseen[finite.index(False)]
                raise NotFiniteError(step, rows.numpy())


class Clock:
    """Counts the seconds of a fit over its restarts, and says when it is late and when a checkpoint is due.

    Args:
        before: Seconds of earlier sessions.
        deadline: Seconds after which the fit is late.
        every_seconds: Time between checkpoints.
        every_steps: Steps between checkpoints, besides.
        should_end: Says that the deadline has come early.
    """

    def __init__(
        self,
        before: float,
        *,
        deadline: float | None,
        every_seconds: float,
        every_steps: int | None,
        should_end: Callable[[], bool] | None = None,
    ) -> None:
        self._began = time.monotonic() - before
        self._saved = time.monotonic()
        self._deadline = deadline
        self._every_seconds = every_seconds
        self._every_steps = every_steps
        self._should_end = should_end

    def seconds(self) -> float:
        """Return the seconds of all sessions."""
        return time.monotonic() - self._began

    def late(self) -> bool:
        """Tell whether the deadline is over."""
        if self._should_end is not None and self._should_end():
            return True
        return self._deadline is not None and self.seconds() >= self._deadline

    def due(self, step: int) -> bool:
        """Tell whether to save now; the next period begins with a yes."""
        if time.monotonic() - self._saved < self._every_seconds and (not self._every_steps or step % self._every_steps):
            return False
        self._saved = time.monotonic()
        return True


def accelerator(module: nn.Module, precision: runtime.Precision) -> Accelerator:
    """Set Accelerate up for the module's device.

    Raises:
        RecipeError: The device does not have this precision.
        TrainingError: More than one process was started.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    device = next(module.parameters()).device
    mixed = _mixed_precision(device, precision)
    # Accelerate keeps one state per process, and a fit may want another device or precision than the one before.
    AcceleratorState._reset_state(reset_partial_state=True)
    engine = Accelerator(mixed_precision=mixed, cpu=device.type == "cpu")
    if engine.num_processes > 1:
        raise TrainingError(
            f"{engine.num_processes} processes were started, expected one", "start it without a launcher"
        )
    return engine


def _mixed_precision(device: torch.device, precision: runtime.Precision) -> Literal["no", "bf16", "fp16"]:
    if precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return "bf16" if bf16 else "no"
    if precision == "fp16" and device.type == "cpu":
        raise RecipeError("precision='fp16' needs a GPU, and the device is cpu", "precision=fp32, or precision=bf16")
    return "no" if precision == "fp32" else precision


def set_modes(module: nn.Module, groups: Sequence[Group], epoch: int) -> list[nn.Parameter]:
    """Freeze everything, then thaw the groups whose epoch has come; return the parameters that learn."""
    module.eval().requires_grad_(False)
    awake = [group for group in groups if group.from_epoch <= epoch]
    for group in awake:
        for part in group.modules:
            part.train()
        if group.statistics == "still":
            for norm in norms(group.modules):
                norm.eval()
        for parameter in group.parameters:
            parameter.requires_grad_(True)
    return [parameter for group in awake for parameter in group.parameters]


def norms(modules: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Yield the normalisation layers among modules that keep running statistics."""
    from torch.nn.modules.batchnorm import _NormBase

    return (part for module in modules for part in module.modules() if isinstance(part, _NormBase))


def parts(batch: Batch, micro_batch: int | None) -> Iterator[tuple[Batch, float]]:
    """Yield parts of a batch with their share of its examples."""
    size = len(batch.index)
    if micro_batch is None or micro_batch >= size:
        yield batch, 1.0
        return
    for begin in range(0, size, micro_batch):
        part = slice(begin, min(begin + micro_batch, size))
        yield Batch(batch.inputs[part], batch.targets[part], batch.index[part]), (part.stop - begin) / size


OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory", "bad_alloc")
"""What allocators write, in small letters, when they have nothing left; torch has a type for that only on a GPU."""


def out_of_memory(error: Exception) -> bool:
    """Tell whether an error means that memory ran out, on whichever device."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in str(error).lower() for words in OUT_OF_MEMORY
    )


@contextlib.contextmanager
def averaged(ema: Ema | None) -> Iterator[None]:
    """Put the averaged weights into the module for a while."""
    if ema is not None:
        ema.swap()
    try:
        yield
    finally:
        if ema is not None:
            ema.swap()


@contextlib.contextmanager
def closing(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """Let a generator of batches clean up as soon as its epoch ends, its threads above all."""
    try:
        yield batches
    finally:
        if (close := getattr(batches, "close", None)) is not None:
            close()


@contextlib.contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as they were: each step seeds them for layers such as dropout."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_step(device: torch.device, seed: int, step: int) -> None:
    """Seed what layers such as dropout draw from, as a function of the step alone.

    `torch.manual_seed` would do, but where CUDA is not in use it queues a call and a stack trace each time.
    """
    number = runtime.seed_of(seed, "step", step)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)
