"""Parameter groups, optimizers, and schedules as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from warmstart.config import OptimConfig, ScheduleConfig

if TYPE_CHECKING:
    import torch

    from warmstart.strategies import Group

__all__ = [
    "OptimConfig",
    "Plateau",
    "ScheduleConfig",
    "build",
    "default_weight_decay",
    "factor",
    "parameter_groups",
    "set_lr",
    "warmup_steps",
]


def default_weight_decay(name: Literal["adamw", "adam", "sgd"]) -> float:
    """Decide `optim.weight_decay`: 0.05 where it is decoupled from the gradient (adamw), else 1e-4."""
    return 0.05 if name == "adamw" else 1e-4


def parameter_groups(groups: Sequence[Group], config: OptimConfig) -> list[dict[str, object]]:
    """Turn groups into what torch's optimizers take; biases and vectors stand apart, without weight decay.

    A vector is the scale or shift of a normalisation, or a bias; `optim.decay_all` keeps them with the rest. Each
    entry carries its `lr_scale`, which `set_lr` applies.
    """
    decay = default_weight_decay(config.name) if config.weight_decay is None else config.weight_decay
    entries: list[dict[str, object]] = []
    for group in groups:
        matrices = [p for p in group.parameters if p.ndim > 1 or config.decay_all]
        vectors = [p for p in group.parameters if p.ndim <= 1 and not config.decay_all]
        for kind, parameters, weight_decay in (("weights", matrices, decay), ("vectors", vectors, 0.0)):
            if parameters:
                name = f"{group.name}.{kind}"
                entries.append(
                    {"params": parameters, "weight_decay": weight_decay, "lr_scale": group.lr_scale, "name": name}
                )
    return entries


def build(groups: Sequence[Group], config: OptimConfig, *, lr: float) -> torch.optim.Optimizer:
    """Build the optimizer: fused where the device has it, which is the same arithmetic in one pass over memory.

    Args:
        groups: What learns.
        config: Name, momentum and weight decay.
        lr: The learning rate.
    """
    import torch

    entries = parameter_groups(groups, config)
    devices = {parameter.device.type for group in groups for parameter in group.parameters}
    fused = devices <= {"cpu", "cuda"} and _all_float(groups)
    match config.name:
        case "sgd":
            nesterov = config.nesterov and config.momentum > 0
            return torch.optim.SGD(entries, lr=lr, momentum=config.momentum, nesterov=nesterov, fused=fused)
        case "adam":
            return torch.optim.Adam(entries, lr=lr, fused=fused)
        case "adamw":
            return torch.optim.AdamW(entries, lr=lr, fused=fused)


def _all_float(groups: Sequence[Group]) -> bool:
    return all(parameter.is_floating_point() for group in groups for parameter in group.parameters)


def warmup_steps(config: ScheduleConfig, total: int) -> int:
    """Count the steps in which the learning rate rises."""
    return round(config.warmup_fraction * total)


def factor(step: int, total: int, config: ScheduleConfig, *, steps_per_epoch: int) -> float:
    """Return what the learning rate is multiplied by in one step: a warm-up in even rises, then the shape.

    The rate reaches its full height in the last step of the warm-up, and would reach 0 (cosine, linear) in the step
    after the last. `plateau` is 1 here: what it has dropped is in `Plateau`.

    Args:
        step: From 0 to `total - 1`.
        total: Steps of the whole fit.
        config: Shape and warm-up.
        steps_per_epoch: For `step`, which drops every `step_epochs` epochs, warm-up included.

    Example:
        >>> [factor(s, 4, ScheduleConfig("linear", warmup_fraction=0.0), steps_per_epoch=4) for s in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    warmup = warmup_steps(config, total)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    match config.name:
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case "linear":
            return 1.0 - done
        case "step":
            return float(config.factor ** (step // (steps_per_epoch * config.step_epochs)))
        case "constant" | "plateau":
            return 1.0


@dataclass(frozen=True)
class Plateau:
    """What the schedule `plateau` remembers: it drops the rate when val has not improved for some epochs.

    A plateau of `step_epochs` epochs without improvement multiplies the rate by `factor` and begins to count anew.
    """

    drops: int = 0
    best: float | None = None
    waited: int = 0

    def after(self, metric: float, config: ScheduleConfig, *, higher_is_better: bool) -> Plateau:
        """Return the memory after one more validation."""
        if self.best is None or (metric > self.best if higher_is_better else metric < self.best):
            return Plateau(self.drops, metric, 0)
        if self.waited + 1 > config.step_epochs:
            return Plateau(self.drops + 1, self.best, 0)
        return Plateau(self.drops, self.best, self.waited + 1)

    def factor(self, config: ScheduleConfig) -> float:
        """Return what the learning rate is multiplied by."""
        return float(config.factor**self.drops) if config.name == "plateau" else 1.0


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each entry its share of the learning rate."""
    for entry in optimizer.param_groups:
        entry["lr"] = lr * entry["lr_scale"]
