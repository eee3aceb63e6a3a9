"""THE loop: the only file that calls `backward`. It knows no tasks, methods or strategies."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from warmstart import checkpoint, guards, looptools, optim, resources, resume, runtime
from warmstart.data import Batch
from warmstart.errors import TrainingError
from warmstart.looptools import Clock, NotFiniteError, Watch
from warmstart.optim import OptimConfig, ScheduleConfig
from warmstart.resume import Ema, EpochRecord, Keeper, Learned, Reason, State
from warmstart.rundir import Journal, RunDir

if TYPE_CHECKING:
    from accelerate import Accelerator

    from warmstart.strategies import Group

__all__ = ["FitConfig", "FitResult", "NotFiniteError", "Progress", "Step", "fit"]

log = logging.getLogger(__name__)

MUCH = 2**30
"""Bytes above which freed memory is given back before a fit; below, it is not worth the tenth of a second."""
CURVE_POINTS = 200
"""Lines of `metrics.jsonl` that the steps of one fit write, at most."""


@dataclass(frozen=True)
class Step:
    """What a forward pass gives back: the loss to go down, a scalar, and numbers to write beside it."""

    loss: Tensor
    logs: Mapping[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class FitConfig:
    """How to fit. Everything but the last four fields is part of the fit's identity."""

    epochs: int
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    micro_batch: int | None = None
    """Examples per forward pass; the gradient is that of the whole batch when its loss is the mean over examples.

    Halved when memory runs out all the same."""
    ema_decay: float | None = None
    """Validate and keep the exponential moving average of the weights."""
    early_stopping: int | None = None
    """Epochs without improvement on val before the fit ends."""
    on_nan: Literal["stop", "skip"] = "stop"
    """What to do when a loss or gradient is not finite; `skip` looks at every loss, which makes a GPU wait."""
    precision: runtime.Precision = "auto"
    """Number format of the forward pass."""
    seed: int = 0
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints; the fit's end always has one."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints, besides."""
    deadline_seconds: float | None = None
    """Seconds, restarts included, after which the fit ends with its current step, validates and keeps the best."""
    check_frozen: bool = True
    """Hash frozen tensors before and after."""


@dataclass(frozen=True)
class Progress:
    """Where a fit is, told after every step."""

    step: int
    total_steps: int
    epoch: int
    loss: float | None
    """Of this step, at those steps that are written to `metrics.jsonl`; None between, since asking makes a GPU wait."""
    metric: float | None
    """Of the last validation."""


@dataclass(frozen=True)
class FitResult:
    """What a fit came to. The module holds the best weights, in eval mode."""

    best_metric: float | None
    best_epoch: int
    best_path: Path
    """A .safetensors file with everything that learned."""
    history: tuple[EpochRecord, ...]
    steps: int
    seconds: float
    stopped_because: Reason
    """`asked` is unfinished: the same call goes on."""
    skipped_batches: int
    lr: float
    micro_batch: int | None = None
    """Examples per forward pass; fewer than configured when memory ran out, None for whole batches."""


def fit(
    module: nn.Module,
    groups: Sequence[Group],
    *,
    forward: Callable[[nn.Module, Batch], Step],
    batches: Callable[[int, int], Iterator[Batch]],
    steps_per_epoch: int,
    config: FitConfig,
    folder: RunDir | Path,
    name: str = "fit",
    validate: Callable[[], float] | None = None,
    higher_is_better: bool = True,
    penalty: Callable[[], Tensor | None] | None = None,
    head: nn.Module | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    should_end: Callable[[], bool] | None = None,
) -> FitResult:
    """Train what is in `groups`; the same call after an interruption goes on and ends in the same bits (on a CPU).

    Args:
        module: Stays on its device; everything outside `groups` is frozen. Left with the best weights, in eval mode.
        groups: What learns, how fast, and from which epoch.
        forward: `(module, batch) → Step`.
        batches: `(epoch, start)` → the batches of an epoch from number `start` on; equal arguments, equal batches.
        steps_per_epoch: How many batches an epoch has.
        config: How to fit.
        folder: Of the run; it receives `checkpoints/NAME/` and lines of `metrics.jsonl`.
        name: Of this fit within the run.
        validate: Computes the metric of val from the module as it stands; None keeps the last weights.
        higher_is_better: Which way the metric is up.
        penalty: A scalar added to the loss of every step.
        head: Checked to be among what learns.
        on_progress: Called after every step.
        should_stop: Asked after every step; True saves a checkpoint and returns `asked`.
        should_end: Asked after every step; True ends the fit as its deadline would, for good.

    Raises:
        TrainingError: A loss that is not finite (`NotFiniteError`), or a guard that failed.
        CheckpointError: The checkpoints in `folder` are damaged, or of another fit.
        RunError: The file system refused a write.
    """
    calls = (forward, batches, validate, penalty, on_progress, should_stop, should_end)
    job = _Job(module, groups, *calls, steps_per_epoch, config, higher_is_better, head)
    _check(job)
    if resources.resident_bytes() > MUCH:
        resources.trim()  # what loading and extraction freed is worth a few more examples at a time
    return _fit(job, folder.path if isinstance(folder, RunDir) else folder, name)


def _fit(job: _Job, root: Path, name: str) -> FitResult:
    gear = _gear(job, root, name)
    with looptools.own_randomness(gear.accelerator.device):
        _train(job, gear)
    return _result(job, gear)


@dataclass(frozen=True)
class _Job:
    """The arguments of `fit`."""

    module: nn.Module
    groups: Sequence[Group]
    forward: Callable[[nn.Module, Batch], Step]
    batches: Callable[[int, int], Iterator[Batch]]
    validate: Callable[[], float] | None
    penalty: Callable[[], Tensor | None] | None
    on_progress: Callable[[Progress], None] | None
    should_stop: Callable[[], bool] | None
    should_end: Callable[[], bool] | None
    steps_per_epoch: int
    config: FitConfig
    higher_is_better: bool
    head: nn.Module | None

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch


@dataclass
class _Gear:
    """What `fit` builds from its arguments, and the state that moves."""

    accelerator: Accelerator
    optimizer: torch.optim.Optimizer
    stepper: torch.optim.Optimizer
    """The optimizer as Accelerate wraps it, which scales losses in fp16."""
    learned: Learned
    ema: Ema | None
    keeper: Keeper
    journal: Journal
    watch: Watch
    lr: float
    loss_sum: Tensor
    before: dict[str, str]
    state: State

    def save(self) -> None:
        self.watch.look()
        self.journal.flush()
        scaler = self.accelerator.scaler
        self.state.scaler = None if scaler is None else scaler.state_dict()
        # A finished fit needs only its record: the best weights have a file of their own.
        going_on = self.state.finished is None
        tensors = resume.pack(self.learned, self.optimizer, self.ema, self.loss_sum) if going_on else {}
        self.keeper.save(self.state, tensors, self.before)


def _train(job: _Job, gear: _Gear) -> None:
    """Loop over epochs and steps until the state says why it is finished, or the caller asks to stop."""
    config, state, watch, clock = job.config, gear.state, gear.watch, _clock(job, gear)
    clip_norm = config.optim.clip_norm or math.inf
    while state.finished is None:
        epoch = state.epoch
        last = (epoch + 1) * job.steps_per_epoch
        active = looptools.set_modes(job.module, job.groups, epoch)
        with looptools.closing(job.batches(epoch, state.step - epoch * job.steps_per_epoch)) as batches:
            for batch in batches:
                looptools.seed_step(gear.accelerator.device, config.seed, state.step)
                lr = _lr(job, gear)
                optim.set_lr(gear.optimizer, lr)
                watch.before_step()
                loss, logs = _affordable_gradients(job, gear, batch)
                norm = gear.accelerator.clip_grad_norm_(active, clip_norm) if watch.wants_norm(clip_norm) else None
                if watch.passes(loss, norm, state.step, batch.index):
                    gear.stepper.step()
                    gear.loss_sum += loss
                    state.loss_count += 1
                    if gear.ema is not None:
                        gear.ema.update()
                gear.stepper.zero_grad(set_to_none=True)
                state.step += 1
                state.skipped = watch.skipped
                state.seconds = clock.seconds()
                _tell(job, gear, lr, loss, logs)
                if state.step == last or clock.late():
                    break
                if job.should_stop is not None and job.should_stop():
                    return gear.save()
                if clock.due(state.step):
                    gear.save()
        _check_length(state, last, late=clock.late())
        state.finished = _end_epoch(job, gear, late=clock.late())
        if state.finished is not None:
            _guard(job, gear)
        state.seconds = clock.seconds()
        asked = job.should_stop is not None and job.should_stop()
        if state.finished is not None or asked or clock.due(state.step):
            gear.save()
        if asked:
            return None
    return None


def _clock(job: _Job, gear: _Gear) -> Clock:
    every_seconds, every_steps = job.config.checkpoint_seconds, job.config.checkpoint_steps
    deadline = job.config.deadline_seconds
    return Clock(
        gear.state.seconds,
        deadline=deadline,
        every_seconds=every_seconds,
        every_steps=every_steps,
        should_end=job.should_end,
    )


def _affordable_gradients(job: _Job, gear: _Gear, batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
    """Compute the gradients of a batch; when memory runs out, again by half as many examples at a time."""
    before = gear.state.micro_batch
    while True:
        try:
            found = _gradients(job, gear.accelerator, batch, gear.state.micro_batch or job.config.micro_batch)
            break
        except (RuntimeError, MemoryError) as error:
            if not looptools.out_of_memory(error):
                raise
            problem = str(error).strip().partition("\n")[0]
        # Only here, behind the handler, are the frames gone that held the activations.
        _halve(job, gear, batch, problem)
    if gear.state.micro_batch != before:
        text = "memory ran out at step %d: from now on %d examples at a time, %d to a step as before"
        log.warning(text, gear.state.step, gear.state.micro_batch, len(batch.index))
        gear.journal.append(gear.state.step, {"micro_batch": gear.state.micro_batch})
    return found


def _halve(job: _Job, gear: _Gear, batch: Batch, problem: str) -> None:
    """Go back to before the step, and let it be taken by half as many examples at a time.

    The checkpoint lets a fit that is killed go on with the same portions, and so end in the same bits.

    Raises:
        TrainingError: It was one example already.
    """
    state, device = gear.state, gear.accelerator.device
    size = min(state.micro_batch or job.config.micro_batch or len(batch.index), len(batch.index))
    if size == 1:
        raise TrainingError(
            f"memory ran out at step {state.step} with one example at a time ({problem})",
            "--strategy probe, a smaller data.image_size, or a smaller backbone",
        )
    gear.optimizer.zero_grad(set_to_none=True)
    gear.watch.restore()
    looptools.seed_step(device, job.config.seed, state.step)
    resources.trim()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    state.micro_batch = size // 2
    gear.save()


def _gradients(
    job: _Job, accelerator: Accelerator, batch: Batch, micro_batch: int | None
) -> tuple[Tensor, Mapping[str, float | Tensor]]:
    """Run the batch forward and backward, part by part, each weighted by its share of the examples."""
    total: Tensor | None = None
    logs: Mapping[str, float | Tensor] = {}
    for part, share in looptools.parts(batch, micro_batch):
        with accelerator.autocast():
            step = job.forward(job.module, part.to(accelerator.device))
            extra = None if job.penalty is None else job.penalty()
        loss = step.loss if extra is None else step.loss + extra
        loss = loss if share == 1.0 else loss * share
        accelerator.backward(loss)
        total = loss.detach() if total is None else total + loss.detach()
        logs = step.logs
    assert total is not None, "a batch holds at least one example"
    return total, logs


def _end_epoch(job: _Job, gear: _Gear, *, late: bool) -> Reason | None:
    """Validate, keep the best, write the learning curve, and say why the fit is over, if it is."""
    state, config = gear.state, job.config
    gear.watch.look()
    job.module.eval()
    with looptools.averaged(gear.ema):
        metric = None if job.validate is None else float(job.validate())
        better = resume.improved(state, metric, higher_is_better=job.higher_is_better)
        state.waited = 0 if better else state.waited + 1
        over = _why_finished(job, state, late=late)
        if better and (metric is not None or over is not None):
            state.best = gear.keeper.save_best(gear.learned.tensors(), metric=metric, epoch=state.epoch)
    lr = _lr(job, gear, step=state.step - 1)
    mean = gear.loss_sum.item() / state.loss_count if state.loss_count else math.nan
    record = EpochRecord(state.epoch, state.step, mean, metric, lr, state.seconds)
    gear.journal.append(state.step, {k: v for k, v in asdict(record).items() if k != "step"})
    state.history.append(record)
    if metric is not None:
        state.plateau = state.plateau.after(metric, config.schedule, higher_is_better=job.higher_is_better)
    state.epoch, state.loss_count = state.epoch + 1, 0
    gear.loss_sum.zero_()
    return over


def _why_finished(job: _Job, state: State, *, late: bool) -> Reason | None:
    config = job.config
    if late:
        return "stopped" if job.should_end is not None and job.should_end() else "deadline"
    if state.epoch + 1 == config.epochs:
        return "finished"
    if config.early_stopping is not None and state.waited >= config.early_stopping:
        return "early_stopping"
    return None


def _result(job: _Job, gear: _Gear) -> FitResult:
    """Run the guards, put the best weights into the module and say how it went."""
    state = gear.state
    job.module.eval()
    best_path = gear.keeper.folder / "best.safetensors"
    if state.finished is not None:
        assert state.best is not None
        best = gear.keeper.load_best(state.best)
        best_path = gear.keeper.settle(state.best)
        checkpoint.load_into(gear.learned.tensors(), best).require_complete(str(best_path))
    return FitResult(
        best_metric=None if state.best is None else state.best.metric,
        best_epoch=0 if state.best is None else state.best.epoch,
        best_path=best_path,
        history=tuple(state.history),
        steps=state.step,
        seconds=state.seconds,
        stopped_because=state.finished or "asked",
        skipped_batches=state.skipped,
        lr=gear.lr,
        micro_batch=state.micro_batch or job.config.micro_batch,
    )


def _guard(job: _Job, gear: _Gear) -> None:
    """Check what moved, what did not, and what is on disk, before the fit calls itself done."""
    assert gear.state.best is not None
    guards.check_saved(gear.learned.parameters, gear.keeper.load_best(gear.state.best))
    tensors = {**gear.learned.tensors(), **gear.learned.frozen}
    if job.config.check_frozen:
        asleep = _names(gear, [group for group in job.groups if group.from_epoch >= gear.state.epoch])
        still = {*gear.learned.frozen, *asleep}
        guards.check_frozen({name: digest for name, digest in gear.before.items() if name in still}, tensors)
    if gear.lr > 0 and gear.state.step > gear.state.skipped:
        awake = [group for group in job.groups if group.from_epoch < gear.state.epoch and group.lr_scale > 0]
        guards.check_moved(gear.before, tensors, {group.name: _names(gear, [group]) for group in awake})


def _names(gear: _Gear, groups: Sequence[Group]) -> list[str]:
    wanted = {id(parameter) for group in groups for parameter in group.parameters}
    return [name for name, parameter in gear.learned.parameters.items() if id(parameter) in wanted]


def _check(job: _Job) -> None:
    if job.config.epochs < 1 or job.steps_per_epoch < 1:
        raise TrainingError(
            f"epochs={job.config.epochs} of {job.steps_per_epoch} batches is no training, expected at least 1 of 1",
            "epochs=1, or more training examples",
        )
    if job.config.optim.lr is None:
        raise TrainingError("optim.lr is open, and the loop does not decide it", "optim.lr=3e-4, or a strategy's `lrs`")
    if not any(group.parameters for group in job.groups):
        raise TrainingError("no parameter is in a group that learns", "another strategy, such as --strategy full")


def _gear(job: _Job, root: Path, name: str) -> _Gear:
    """Build optimizer, average and keeper, and take up the last checkpoint when there is one."""
    config = job.config
    accelerator = looptools.accelerator(job.module, config.precision)
    device = accelerator.device
    assert config.optim.lr is not None
    lr = config.optim.lr
    learned = Learned.of(job.module, job.groups)
    optimizer = optim.build(job.groups, config.optim, lr=lr)
    guards.check_optimized(job.head, job.groups, optimizer)
    gear = _Gear(
        accelerator=accelerator,
        optimizer=optimizer,
        # Accelerate's wrapper looks for another package at every step, 0.3 ms, and without loss scaling adds nothing.
        stepper=optimizer if accelerator.scaler is None else accelerator.prepare(optimizer),
        learned=learned,
        ema=Ema(learned.parameters, config.ema_decay) if config.ema_decay else None,
        keeper=Keeper(root / "checkpoints" / name, _identity(job, learned)),
        journal=Journal(root / "metrics.jsonl", name),
        watch=Watch(config.on_nan, list(learned.buffers.values()), accelerator),
        lr=lr,
        loss_sum=torch.zeros((), device=device, dtype=torch.float32 if device.type == "mps" else torch.float64),
        before=guards.digests({**learned.tensors(), **(learned.frozen if config.check_frozen else {})}),
        state=State(),
    )
    _take_up(gear)
    return gear


def _take_up(gear: _Gear) -> None:
    found = gear.keeper.resume()
    if found is not None:
        state, tensors, before = found
        resume.frozen_alike(before, {n: gear.before[n] for n in gear.learned.frozen if n in gear.before}, gear.keeper)
        if state.finished is None:
            resume.unpack(tensors, gear.learned, gear.optimizer, gear.ema, gear.loss_sum)
        if gear.accelerator.scaler is not None and state.scaler is not None:
            gear.accelerator.scaler.load_state_dict(state.scaler)
        gear.state, gear.before, gear.watch.skipped = state, before, state.skipped
    gear.journal.drop_after(gear.state.step)


def _lr(job: _Job, gear: _Gear, *, step: int | None = None) -> float:
    at, schedule = gear.state.step if step is None else step, job.config.schedule
    shape = optim.factor(at, job.total_steps, schedule, steps_per_epoch=job.steps_per_epoch)
    return gear.lr * shape * gear.state.plateau.factor(schedule)


def _identity(job: _Job, learned: Learned) -> dict[str, object]:
    """Describe what must be equal for a checkpoint to be taken up."""
    config = asdict(job.config)
    for free in ("checkpoint_seconds", "checkpoint_steps", "deadline_seconds", "check_frozen"):
        del config[free]
    facts = {f"optim.{k}": v for k, v in config.pop("optim").items()}
    facts |= {f"schedule.{k}": v for k, v in config.pop("schedule").items()}
    groups = [f"{g.name} {g.lr_scale!r} {g.from_epoch} {g.statistics} {len(g.parameters)}" for g in job.groups]
    shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in learned.tensors().items()]
    facts |= {"groups": runtime.digest(*groups), "tensors": runtime.digest(*shapes)}
    return config | facts | {"batches": job.steps_per_epoch, "higher_is_better": job.higher_is_better}


def _tell(job: _Job, gear: _Gear, lr: float, loss: Tensor, logs: Mapping[str, float | Tensor]) -> None:
    """Write a point of the curve now and then, and report every step."""
    state, value = gear.state, None
    if state.step % max(1, job.total_steps // CURVE_POINTS) == 0:
        value = loss.item()
        gear.journal.append(state.step, {"loss": value, "lr": lr, **{name: float(log) for name, log in logs.items()}})
    if job.on_progress is not None:
        metric = state.history[-1].metric if state.history else None
        job.on_progress(Progress(state.step, job.total_steps, state.epoch, value, metric))


def _check_length(state: State, last: int, *, late: bool) -> None:
    if state.step < last and not late:
        raise TrainingError(
            f"epoch {state.epoch} ended after step {state.step}, expected {last}", "report it: the batches fell short"
        )
