"""Guards that fail when somebody sabotages a fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import tinyfit
from tinyfit import CONFIG, STEPS, Net
from warmstart import guards, resume
from warmstart.data import Batch
from warmstart.errors import TrainingError
from warmstart.fit import FitResult, Step, fit
from warmstart.strategies import Group

REPORT = "  fix: this is a fault of the strategy or of the model's layer groups: report it with the recipe"


def run(folder: Path, net: Net, groups: list[Group] | None = None, forward: object = tinyfit.forward) -> FitResult:
    return fit(
        net,
        tinyfit.groups(net) if groups is None else groups,
        forward=forward,
        batches=tinyfit.batches(),
        steps_per_epoch=STEPS,
        config=replace(CONFIG, epochs=1),
        folder=folder,
        validate=tinyfit.validate(net),
        head=net.head,
    )


@pytest.mark.parametrize("name", ["frozen.0.weight", "frozen.1.running_mean", "frozen.1.num_batches_tracked"])
def test_a_frozen_tensor_that_changes_is_found(tmp_path: Path, name: str) -> None:
    net = Net()

    def forward(module: nn.Module, batch: Batch) -> Step:
        step = tinyfit.forward(module, batch)
        net.state_dict()[name].data.view(-1)[0] += 1
        return step

    with pytest.raises(TrainingError) as caught:
        run(tmp_path, net, forward=forward)
    assert str(caught.value) == f"1 frozen tensors changed during the fit ({name})\n{REPORT}"


def test_a_group_that_does_not_move_is_found(tmp_path: Path) -> None:
    net = Net()

    def forward(module: nn.Module, batch: Batch) -> Step:
        hidden = net.body(net.frozen(batch.inputs)).detach()
        return Step(nn.functional.cross_entropy(net.head(hidden), batch.targets))

    with pytest.raises(TrainingError) as caught:
        run(tmp_path, net, forward=forward)
    assert str(caught.value) == (
        "1 groups should have learned and did not move (body)\n"
        "  fix: a larger optim.lr, or a strategy that leaves them frozen"
    )


def test_a_head_outside_the_optimizer_is_found(tmp_path: Path) -> None:
    net = Net()
    with pytest.raises(TrainingError) as caught:
        run(tmp_path, net, tinyfit.groups(net)[:1])
    assert str(caught.value) == f"the optimizer lacks 2 parameters of the head (weight, bias)\n{REPORT}"


def test_an_optimizer_with_too_little_is_found() -> None:
    net = Net()
    half = torch.optim.SGD([net.head.weight], lr=0.1)
    with pytest.raises(TrainingError, match="the optimizer holds 1 parameters, 6 should learn"):
        guards.check_optimized(net.head, tinyfit.groups(net), half)


def test_a_checkpoint_without_the_head_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = resume.Learned.tensors
    monkeypatch.setattr(
        resume.Learned, "tensors", lambda own: {k: v for k, v in real(own).items() if not k.startswith("head")}
    )
    with pytest.raises(TrainingError) as caught:
        run(tmp_path, Net())
    assert str(caught.value) == f"the checkpoint lacks 2 tensors that learned (head.weight, head.bias)\n{REPORT}"
