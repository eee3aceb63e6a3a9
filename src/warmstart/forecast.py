"""Forecasts: what a strategy on a backbone costs in seconds, memory and disk, from one short measurement of it.

`profile` measures a backbone at an input size and remembers it; `cost` is arithmetic on a profile, so a whole table of
strategies, depths and micro-batches costs nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from warmstart import config, engine, resources
from warmstart.bench import EVAL_BATCH
from warmstart.config import Choice
from warmstart.data import loading
from warmstart.extract import FLUSH_BYTES
from warmstart.models import LayerGroup
from warmstart.models.model import Model
from warmstart.profiles import Decoding, Engine, Profile, profile
from warmstart.profiling import Steps
from warmstart.spaces import IN_MEMORY_BYTES, size_text
from warmstart.strategies import Group, Strategy, deepest_cut

__all__ = ["Cost", "Decoding", "Engine", "Load", "Profile", "cost", "profile", "scaled"]

FLOAT = 4
"""Bytes of a number."""
STATES = {"adamw": 2, "adam": 2, "sgd": 1}
"""Numbers that an optimizer keeps beside each parameter."""
SCATTER = 1.25
"""Memory that the system gives for the memory that is asked for: allocators leave holes."""
WORKSPACE = 50 * 2**20
"""What kernels need for themselves."""
LEFT_BY_LOADING = 0.3
"""Share of the weights that loading leaves behind in holes."""
LOADED_BEST = 0.5
"""Share of the best weights, read back at the end, that does not find room in what the steps have freed."""
SAFETY = 1.10
"""A plan fits when its peak times this does: ten percent is how far forecasts of memory may be off."""
WRITTEN = 250e6
"""Bytes per second that a checkpoint is hashed and made durable at."""
STEP_SECONDS = 1.5e-3
"""Of the loop itself."""
SOLVE_FLOPS = 12e9
"""Multiplications and additions per second of the solver of heads."""
SOLVE_PASSES = 240
"""Passes over the features that a path of heads takes."""


@dataclass(frozen=True)
class Load:
    """How much there is to learn from, and in which portions."""

    num_train: int
    num_val: int = 0
    num_test: int = 0
    epochs: int = 10
    batch_size: int = 32
    micro_batch: int | None = None
    """The largest that fits when not given, at most the batch."""
    optimizer: str = "adamw"
    ema: bool = False
    views: int = 1
    augment: str | None = None
    cached_fraction: float = 0.0
    """Share of the frozen values that are in the cache already."""
    num_fits: int = 1
    """Fits of a cross-validated strategy, the final one included."""
    memory_bytes: int | None = None
    """What may be held at the peak; what is free now, and held already, when not given."""
    disk_bytes: int | None = None
    """What may be written; no limit when not given."""
    resident_bytes: int | None = None
    """What the process holds anyway; as it was when the profile was made when not given."""


@dataclass(frozen=True)
class Cost:
    """What one strategy costs."""

    fill_seconds: float
    """To load, to compute frozen values that are not cached, and to solve the head."""
    epoch_seconds: float
    """Of one epoch, validation included; the mean over the epochs of a strategy that thaws by and by."""
    evaluate_seconds: float
    """To predict val and test once."""
    epochs: int
    num_fits: int
    peak_bytes: int
    peak_stage: str
    """Which stage has the peak: `load`, `features`, `head`, `fit` or `evaluate`."""
    disk_bytes: int
    micro_batch: int
    accumulation: int
    """Micro-batches of one optimizer step."""
    fits: bool
    """Whether memory and disk suffice."""
    reason: str = ""
    """Why it does not fit."""

    @property
    def seconds(self) -> float:
        """Everything: fill, all epochs of all fits, and the evaluation."""
        return self.fill_seconds + self.num_fits * self.epochs * self.epoch_seconds + self.evaluate_seconds


def cost(profile: Profile, strategy: Choice, load: Load) -> Cost:
    """Forecast what a strategy costs; where the micro-batch is open, take the largest that fits.

    Args:
        profile: Of the backbone at an input size.
        strategy: By name, with its options.
        load: How much there is to learn from.

    Raises:
        RecipeError: An option that the strategy refuses.

    Example:
        `cost(profile(session, data, "package/squeezenet", 96), Choice("lp_ft"), Load(num_train=400)).peak_bytes`
    """
    work = _Work(profile, _stages(profile, strategy, load), load)
    limit = load.memory_bytes
    if limit is None:
        limit = resources.available_bytes() + resources.resident_bytes()
    sizes = [load.micro_batch or load.batch_size]
    while load.micro_batch is None and sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    fitting = [size for size in sizes if SAFETY * work.peak(size)[0] <= limit]
    micro = fitting[0] if fitting else sizes[-1]
    peak, stage = work.peak(micro)
    disk, reasons = work.disk_bytes(), []
    if not fitting:
        reasons.append(f"memory: {_size(SAFETY * peak)} of {_size(limit)} at micro-batch {micro} ({stage})")
    if load.disk_bytes is not None and disk > load.disk_bytes:
        reasons.append(f"disk: {_size(disk)} of {_size(load.disk_bytes)}")
    return Cost(
        fill_seconds=work.fill_seconds(),
        epoch_seconds=work.epoch_seconds(micro),
        evaluate_seconds=work.evaluate_seconds(),
        epochs=load.epochs if work.stages.trained else 0,
        num_fits=load.num_fits,
        peak_bytes=round(peak),
        peak_stage=stage,
        disk_bytes=round(disk),
        micro_batch=micro,
        accumulation=-(-load.batch_size // micro),
        fits=not reasons,
        reason="; ".join(reasons),
    )


def scaled(profile: Profile, image_size: int) -> Profile:
    """Return the profile of another input size: time and activations grow with the pixels, weights stay.

    An approximation, good for convolutions: attention grows faster, and small pictures have overheads that large ones
    do not. Measure again where it matters.
    """
    times, network, last = (image_size / profile.image_size) ** 2, profile.network, len(profile.network.parameters) - 1
    hidden = {cut: size if cut == last else round(size * times) for cut, size in network.hidden_bytes.items()}
    look = network.inference
    return replace(
        profile,
        image_size=image_size,
        network=replace(
            network,
            steps=_scaled_steps(network.steps, times),
            live=tuple(tuple((fixed, each * times) for fixed, each in lines) for lines in network.live),
            hidden_bytes=hidden,
            inference=replace(look, seconds=look.seconds * times, peak_bytes=round(look.peak_bytes * times)),
        ),
        engine=replace(profile.engine, seconds=profile.engine.seconds * times),
    )


def _scaled_steps(steps: Sequence[Steps], times: float) -> tuple[Steps, ...]:
    return tuple(
        replace(
            one,
            forward=tuple(seconds * times for seconds in one.forward),
            backward=tuple(seconds * times for seconds in one.backward),
        )
        for one in steps
    )


@dataclass(frozen=True)
class _Stages:
    """What a strategy does to a network of these layer groups."""

    trained: bool
    fed: int
    """Cut whose values the loop is fed; 0 for pixels."""
    first: tuple[int, ...]
    """First layer group that learns, in every epoch."""
    learning: tuple[int, ...]
    """Parameters that learn, in every epoch."""
    solved: bool
    pulled: bool
    """Whether a penalty keeps copies of the weights."""


@dataclass(frozen=True)
class _Outline:
    """Stands for a backbone: the layer groups and cuts of a profile, without weights."""

    groups: tuple[LayerGroup, ...]
    offered: tuple[int, ...]

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        return self.groups

    def cuts(self) -> tuple[int, ...]:
        return self.offered


class _Skeleton(nn.Module):
    """Stands for a model: what a strategy needs to say what learns, without weights."""

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        network = profile.network
        groups = [_empty(str(at), num) for at, num in enumerate(network.parameters)]
        self.backbone = _Outline(tuple(groups[:-1]), tuple(sorted(network.hidden_bytes)))
        self.head_group = groups[-1]

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        return (*self.backbone.groups, self.head_group)


def _empty(name: str, num: int) -> LayerGroup:
    parameters = (nn.Parameter(torch.empty(num, device="meta")),) if num else ()
    return LayerGroup(name, (nn.Identity(),), parameters)


def _stages(profile: Profile, strategy: Choice, load: Load) -> _Stages:
    """Ask the strategy what learns when, on a network without weights."""
    chosen = config.plugin_of("strategy", strategy)
    assert isinstance(chosen, Strategy)
    skeleton = cast("Model", _Skeleton(profile))
    groups = tuple(chosen.prepare(skeleton))
    solved = chosen.head_start in ("solved", "only")
    if not groups:
        return _Stages(False, 0, (), (), solved, pulled=False)
    cut = deepest_cut(skeleton, groups)
    cached = cut > 0 and not (load.views == 1 and load.augment not in (None, "none"))
    awake = [[group for group in groups if group.from_epoch <= epoch] for epoch in range(max(load.epochs, 1))]
    return _Stages(
        trained=True,
        fed=cut if cached else 0,
        first=tuple(_first(skeleton, part) for part in awake),
        learning=tuple(sum(p.numel() for group in part for p in group.parameters) for part in awake),
        solved=solved,
        pulled=chosen.penalty(skeleton) is not None,
    )


def _first(skeleton: Model, awake: list[Group]) -> int:
    """Return the first layer group that is awake, whose outputs therefore need a backward pass."""
    learning = {id(parameter) for group in awake for parameter in group.parameters}
    layers = skeleton.layer_groups()
    return next(
        (at for at, layer in enumerate(layers) if learning & {id(p) for p in layer.parameters}), len(layers) - 1
    )


@dataclass(frozen=True)
class _Work:
    """One strategy on one profile and one load: sums over layer groups."""

    profile: Profile
    stages: _Stages
    load: Load

    @property
    def largest(self) -> Steps:
        """The steps that say most of a pass over much data."""
        return self.profile.network.steps[-1]

    @property
    def last(self) -> int:
        """The last cut."""
        return len(self.profile.network.parameters) - 1

    # Seconds.

    def fill_seconds(self) -> float:
        """To load, compute what is frozen, and solve the head."""
        load, cuts = self.load, set()
        if self.stages.solved:
            cuts.add(self.last)
        if self.stages.fed:
            cuts.add(self.stages.fed)
        rows = round((load.num_train * load.views + load.num_val) * (1 - load.cached_fraction))
        seconds = self.profile.load_seconds + sum(self.extract_seconds(rows, cut) for cut in sorted(cuts))
        return seconds + (self.solve_seconds() if self.stages.solved else 0.0)

    def extract_seconds(self, rows: int, cut: int) -> float:
        """To compute the values of a cut by the engine."""
        if not rows:
            return 0.0
        found = self.profile.engine
        threads = self.profile.threads if found.name.startswith("torch") else self.profile.cpus
        building = 0.0 if cut == self.last or rows < engine.MEASURE_FROM else found.build_seconds
        return building + rows * self._beside_decoding(found.seconds * self._share(0, cut), threads)

    def evaluate_seconds(self) -> float:
        """To predict val and test with the kept model, whose engine is built anew when its weights are new."""
        load = self.load
        trained = self.stages.trained
        rows = load.num_test + (load.num_val if trained else 0)  # of a frozen network val is in the cache
        if trained and rows < engine.MEASURE_FROM:
            return self.predict_seconds(rows, 0)
        build = self.profile.engine.build_seconds if trained else 0.0
        return build + self.extract_seconds(rows, self.last)

    def solve_seconds(self) -> float:
        """To solve the head along its path; folds are solved as well."""
        rows, dim = self.load.num_train * self.load.views, self.profile.network.hidden_bytes[self.last] // FLOAT
        work = 4.0 * rows * dim * self.profile.num_outputs * SOLVE_PASSES
        return self.load.num_fits * (0.05 + work / SOLVE_FLOPS)

    def epoch_seconds(self, micro: int) -> float:
        """Of the average epoch, with its validation and the weights that it may write."""
        stages, load = self.stages, self.load
        if not stages.trained:
            return 0.0
        each = {first: self._pass_seconds(first, micro) for first in set(stages.first)}
        trained = sum(
            each[first] + self._step_seconds(learning)
            for first, learning in zip(stages.first, stages.learning, strict=True)
        )
        validated = self.predict_seconds(load.num_val, stages.fed)
        return trained / len(stages.first) + validated + FLOAT * max(stages.learning) / WRITTEN

    def predict_seconds(self, num: int, fed: int) -> float:
        """To predict examples with the model, from pixels or from the cache."""
        look = self.profile.network.inference
        each = look.seconds / look.batch * self._share(fed, self.last + 1)
        return num * (each if fed else self._beside_decoding(each, self.profile.threads))

    def _pass_seconds(self, first: int, micro: int) -> float:
        """Forward and backward over train, decoding beside it where pixels are fed."""
        load = self.load
        size = min(load.batch_size, load.num_train)
        whole, rest = divmod(size, micro)
        step = whole * self._part_seconds(first, micro) + (self._part_seconds(first, rest) if rest else 0.0)
        each = step / size
        if self.stages.fed == 0:
            plain = self.load.augment == "none"
            each = self._beside_decoding(each, self.profile.threads, augmented=not plain)
        return each * load.num_train

    def _part_seconds(self, first: int, micro: int) -> float:
        """Forward from what is fed, and backward to the first group that learns."""
        network, fed = self.profile.network, self.stages.fed
        forward = sum(
            self._line(micro, [step.forward[at] for step in network.steps]) for at in range(fed, self.last + 1)
        )
        backward = [
            self._line(micro, [step.backward[at] for step in network.steps]) for at in range(first, self.last + 1)
        ]
        # The first layer that learns sends no gradient further back, which is half of its backward pass.
        spared = 0.5 / network.layers[first] if first > 0 and network.layers[first] else 0.0
        return forward + sum(backward) - spared * backward[0]

    def _step_seconds(self, learning: int) -> float:
        """Of all the optimizer steps of an epoch."""
        steps = -(-self.load.num_train // self.load.batch_size)
        share = learning / max(sum(self.profile.network.parameters), 1)
        return steps * (
            STEP_SECONDS + share * self.profile.network.optimizer_seconds * (3 if self.stages.pulled else 1)
        )

    def _line(self, micro: int, seconds: list[float]) -> float:
        """Return what lies on the line through two measurements; small batches cost no less per example."""
        (small, large), (low, high) = (step.batch for step in self.profile.network.steps), seconds
        at = high + (high - low) / (large - small) * (micro - large)
        each = micro * high / large
        return max(at, each) if micro < large else max(at, 0.8 * each)

    def _share(self, first: int, last: int) -> float:
        """Return the share of a forward pass that a range of groups has."""
        return sum(self.largest.forward[first:last]) / sum(self.largest.forward)

    def _beside_decoding(self, seconds: float, threads: int, *, augmented: bool = False) -> float:
        """Return seconds per picture when decoding goes on beside: the slower of both, or the processors' sum."""
        made = self.profile
        decoding = made.decoding.augmented if augmented else made.decoding.plain
        alone = decoding / max(min(made.workers, made.cpus), 1)
        return max(seconds, alone, (seconds * min(threads, made.cpus) + decoding) / made.cpus)

    # Bytes.

    def peak(self, micro: int) -> tuple[float, str]:
        """Return the peak of the whole command, and the stage that has it."""
        made, weights = self.profile, FLOAT * sum(self.profile.network.parameters)
        resident = made.resident_bytes if self.load.resident_bytes is None else self.load.resident_bytes
        stages = {"load": float(made.load_peak_bytes), "evaluate": self._evaluate_bytes(weights)}
        if self.stages.solved:
            rows = self.load.num_train * self.load.views + self.load.num_val
            stages["head"] = weights + 4 * rows * made.network.hidden_bytes[self.last]
        if self.stages.solved or self.stages.fed:
            built = made.engine.peak_bytes if self.stages.fed not in (0, self.last) else made.engine.again_bytes
            stages["features"] = weights + built + FLUSH_BYTES * self._flushed()
        if self.stages.trained:
            stages["fit"] = self._fit_bytes(micro)
        stage = max(stages, key=lambda name: stages[name])
        return resident + stages[stage], stage

    def _evaluate_bytes(self, weights: float) -> float:
        """The kept model beside itself as it was written and read back, and its engine."""
        made = self.profile.engine
        return 2 * weights + (made.peak_bytes if self.stages.trained else made.again_bytes)

    def _fit_bytes(self, micro: int) -> float:
        """Weights, what the optimizer keeps, and the larger of a training step and a validation."""
        stages, load = self.stages, self.load
        learning = max(stages.learning)
        copies = STATES[load.optimizer] + load.ema + 3 * stages.pulled + (micro < load.batch_size) + LOADED_BEST
        networks = 2.0 if load.num_fits > 1 else 1.0  # the one that is kept waits while folds are fitted
        networks += LEFT_BY_LOADING
        kept = FLOAT * (networks * sum(self.profile.network.parameters) + copies * learning) + self._values_bytes()
        return kept + max(self._step_bytes(min(stages.first), micro), self._predict_bytes(stages.fed))

    def _step_bytes(self, first: int, micro: int) -> float:
        """The step's peak: activations, gradients and what kernels take."""
        network = self.profile.network
        live = network.live_bytes(first, micro)
        frozen = network.inference.peak_bytes / network.inference.batch * micro if self.stages.fed < first else 0.0
        return SCATTER * max(live, frozen) + WORKSPACE + self._batch_bytes()

    def _predict_bytes(self, fed: int) -> float:
        network = self.profile.network
        each = network.inference.peak_bytes / network.inference.batch
        if fed:
            each = min(each, max(slope for _, slope in network.live[fed]))
        return SCATTER * EVAL_BATCH * each + WORKSPACE + self._batch_bytes()

    def _batch_bytes(self) -> float:
        """Pixels that are decoded ahead."""
        pixels = self.profile.network.hidden_bytes[0]
        ahead = self.load.batch_size * 2 + self.profile.workers * loading.AHEAD * loading.CHUNK
        return float(pixels * ahead) if self.stages.fed == 0 else 0.0

    def _values_bytes(self) -> float:
        """Cached values that are held in memory."""
        fed = self.stages.fed
        num = self.load.num_train + self.load.num_val
        size = num * self.profile.network.hidden_bytes[fed] if fed else 0
        return float(size) if size <= IN_MEMORY_BYTES else 0.0

    def _flushed(self) -> float:
        """Return how full the writer of the cache becomes."""
        cut = self.stages.fed or self.last
        size = self.load.num_train * self.profile.network.hidden_bytes[cut]
        return min(1.0, size / FLUSH_BYTES)

    def disk_bytes(self) -> float:
        """Cached values, two generations of checkpoints, the best weights twice, the model, and the engine's graph."""
        load, network = self.load, self.profile.network
        rows = load.num_train * load.views + load.num_val
        cuts = {self.last} if self.stages.solved else set()
        if self.stages.fed:
            cuts.add(self.stages.fed)
        values = rows * sum(network.hidden_bytes[cut] for cut in cuts) * (1 - load.cached_fraction)
        learning = max(self.stages.learning, default=0)
        kept = 2 * (1 + STATES[load.optimizer] + load.ema) + 2
        return values + FLOAT * (kept * learning + 2 * sum(network.parameters))


def _size(num: float) -> str:
    return size_text(round(num))
