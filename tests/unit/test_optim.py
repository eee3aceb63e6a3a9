"""Schedules and parameter groups against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from warmstart import optim
from warmstart.optim import OptimConfig, Plateau, ScheduleConfig
from warmstart.strategies import Group

TOTAL, WARMUP, PER_EPOCH = 50, 10, 5
SCHEDULER = torch.optim.lr_scheduler


def own(config: ScheduleConfig) -> list[float]:
    return [optim.factor(step, TOTAL, config, steps_per_epoch=PER_EPOCH) for step in range(TOTAL)]


def torchs(make: object, steps: int) -> list[float]:
    """Return the factors that one of torch's schedulers gives."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


AFTER = {
    "cosine": lambda o: SCHEDULER.CosineAnnealingLR(o, T_max=TOTAL - WARMUP),
    "linear": lambda o: SCHEDULER.LinearLR(o, 1.0, 0.0, total_iters=TOTAL - WARMUP),
    "constant": lambda o: SCHEDULER.ConstantLR(o, factor=1.0),
    "plateau": lambda o: SCHEDULER.ConstantLR(o, factor=1.0),
}


@pytest.mark.parametrize("name", sorted(AFTER))
def test_schedules_are_torchs_after_torchs_warm_up(name: str) -> None:
    found = own(ScheduleConfig(name, warmup_fraction=WARMUP / TOTAL))
    rise = torchs(lambda o: SCHEDULER.LinearLR(o, 1 / WARMUP, 1.0, total_iters=WARMUP - 1), WARMUP)
    np.testing.assert_allclose(found, rise + torchs(AFTER[name], TOTAL - WARMUP), atol=1e-12)


def test_step_drops_like_torchs() -> None:
    config = ScheduleConfig("step", warmup_fraction=0.0, step_epochs=3, factor=0.5)
    expected = torchs(lambda o: SCHEDULER.StepLR(o, step_size=3, gamma=0.5), TOTAL // PER_EPOCH)
    np.testing.assert_allclose(own(config)[::PER_EPOCH], expected)


@pytest.mark.parametrize("up", [True, False])
def test_plateau_drops_like_torchs(up: bool) -> None:
    config = ScheduleConfig("plateau", step_epochs=2, factor=0.3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    mode = "max" if up else "min"
    theirs = SCHEDULER.ReduceLROnPlateau(optimizer, mode, factor=0.3, patience=2, threshold=0.0, min_lr=0.0, eps=0.0)
    memory, drops = Plateau(), set()
    for metric in np.random.default_rng(0).normal(size=60).round(1):
        theirs.step(float(metric))
        memory = memory.after(float(metric), config, higher_is_better=up)
        assert memory.factor(config) == pytest.approx(optimizer.param_groups[0]["lr"])
        drops.add(memory.drops)
    assert len(drops) > 5


def test_groups_split_into_weights_and_vectors_and_scale_their_rate() -> None:
    layer, norm = nn.Linear(3, 2), nn.LayerNorm(2)
    groups = [Group("a", tuple(layer.parameters()), lr_scale=0.1), Group("b", tuple(norm.parameters()))]
    optimizer = optim.build(groups, OptimConfig("adamw"), lr=1.0)
    optim.set_lr(optimizer, 2.0)
    found = [(e["name"], e["weight_decay"], e["lr"], len(e["params"])) for e in optimizer.param_groups]
    assert found == [("a.weights", 0.05, 0.2, 1), ("a.vectors", 0.0, 0.2, 1), ("b.vectors", 0.0, 2.0, 2)]
    both = optim.parameter_groups(groups, OptimConfig("sgd", decay_all=True))
    assert [(e["weight_decay"], len(e["params"])) for e in both] == [(1e-4, 2), (1e-4, 2)]
