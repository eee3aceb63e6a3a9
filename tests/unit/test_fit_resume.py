"""Killed, out of disk, or damaged: the same call goes on and ends in the same bits."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tinyfit
from tinyfit import CONFIG, KILLED, Net, Setup
from warmstart import checkpoint, durable
from warmstart.errors import CheckpointError, RunError
from warmstart.fit import FitResult
from warmstart.optim import OptimConfig, ScheduleConfig
from warmstart.resume import Keeper, State
from warmstart.rundir import Journal

FAULTY = Setup(replace(CONFIG, epochs=2, checkpoint_steps=4))


def timeless(result: FitResult) -> list[object]:
    return [replace(record, seconds=0.0) for record in result.history]


def curve(folder: Path) -> list[dict[str, object]]:
    return [{**line, "seconds": 0} for line in Journal(folder / "metrics.jsonl", "fit").read()]


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_bits_whatever_the_workers(tmp_path: Path) -> None:
    whole, expected = tinyfit.run(tmp_path / "whole", replace(KILLED, slow=0.0))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, tinyfit.__file__, str(tmp_path / "killed"), "24", str(os.getpid())]
    told = subprocess.run(program, check=True, capture_output=True, text=True, timeout=240, env=environment).stdout
    kills, fits = (int(word) for word in told.split())
    assert kills >= 24
    for number in range(fits):
        result, net = tinyfit.run(tmp_path / "killed" / str(number), replace(KILLED, slow=0.0))
        assert tinyfit.bits(net) == tinyfit.bits(expected)
        assert timeless(result) == timeless(whole)
        assert curve(tmp_path / "killed" / str(number)) == curve(tmp_path / "whole")


class Faults:
    """Fails the k-th write, flush or rename; a write is left half done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, at: int) -> None:
        self.count, self.at, self.number = 0, at, number
        self.real = {name: getattr(durable, name) for name in ("_write", "_sync", "_rename")}
        for name in self.real:
            monkeypatch.setattr(durable, name, lambda *args, name=name: self.call(name, *args))

    def call(self, name: str, *args: object) -> None:
        self.count += 1
        if self.count == self.at:
            if name == "_write":
                self.real[name](args[0], bytes(args[1])[: len(args[1]) // 2])
            raise OSError(self.number, os.strerror(self.number))
        self.real[name](*args)


def hurt(folder: Path, setup: Setup, share: float = 0.7) -> None:
    """Run a fit that meets an I/O error after a share of its writes, flushes and renames."""
    with pytest.MonkeyPatch.context() as patch:
        whole = Faults(patch, errno.EIO, -1)
        tinyfit.run(folder / "counted", setup)
    with pytest.MonkeyPatch.context() as patch:
        Faults(patch, errno.EIO, int(whole.count * share))
        with pytest.raises(RunError):
            tinyfit.run(folder, setup)


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full disk", "input/output error"])
def test_a_fault_at_any_write_leaves_a_checkpoint_that_goes_on(tmp_path: Path, number: int) -> None:
    whole, expected = tinyfit.run(tmp_path / "whole", FAULTY)
    for at in range(1, 1000):
        folder = tmp_path / str(at)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, number, at)
            try:
                tinyfit.run(folder, FAULTY)
            except RunError as error:
                assert "cannot write" in str(error) and os.strerror(number) in str(error)
        if faults.count < at:
            break
        checkpoint.load_latest(folder / "checkpoints" / "fit")
        if number == errno.EIO and at % 5:
            continue
        result, net = tinyfit.run(folder, FAULTY)
        assert tinyfit.bits(net) == tinyfit.bits(expected), at
        assert timeless(result) == timeless(whole) and curve(folder) == curve(tmp_path / "whole")
    assert 30 < at < 999


@pytest.mark.parametrize("damaged", ["newest", "both"])
def test_a_damaged_checkpoint_costs_its_steps_and_no_more(tmp_path: Path, damaged: str) -> None:
    whole, expected = tinyfit.run(tmp_path / "whole", FAULTY)
    hurt(tmp_path / "hurt", FAULTY)
    folder = tmp_path / "hurt" / "checkpoints" / "fit"
    generations = [path.with_suffix(".safetensors") for path in sorted(folder.glob("0*.json"))]
    assert len(generations) == 2
    for path in generations if damaged == "both" else generations[-1:]:
        path.write_bytes(path.read_bytes()[:-1])
    if damaged == "both":
        with pytest.raises(CheckpointError, match=r"no checkpoint of .* is whole"):
            tinyfit.run(tmp_path / "hurt", FAULTY)
        return
    result, net = tinyfit.run(tmp_path / "hurt", FAULTY)
    assert tinyfit.bits(net) == tinyfit.bits(expected) and timeless(result) == timeless(whole)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_every_optimizer_and_schedule_resumes_exactly(tmp_path: Path, name: str, schedule: str) -> None:
    config = replace(
        CONFIG,
        optim=OptimConfig(name, lr=0.3),
        schedule=ScheduleConfig(schedule, step_epochs=0),
        checkpoint_steps=4,
        epochs=3,
        ema_decay=0.9,
    )
    whole, expected = tinyfit.run(tmp_path / "whole", Setup(config, body_from=1))
    hurt(tmp_path / "hurt", Setup(config, body_from=1))
    result, net = tinyfit.run(tmp_path / "hurt", Setup(config, body_from=1))
    assert tinyfit.bits(net) == tinyfit.bits(expected) and timeless(result) == timeless(whole)


def test_an_older_generation_still_finds_the_best_weights_that_it_names(tmp_path: Path) -> None:
    def saved(keeper: Keeper, state: State, epoch: int) -> None:
        state.best = keeper.save_best({"w": torch.tensor(float(epoch))}, metric=float(epoch), epoch=epoch)

    state, keeper = State(), Keeper(tmp_path, {})
    for epoch in (1, 2):
        saved(keeper, state, epoch)
        keeper.save(state, {}, {})
    again = Keeper(tmp_path, {})
    assert again.resume() is not None
    saved(again, state, 3)
    (tmp_path / "00000002.json").write_bytes(b"")
    fallen = Keeper(tmp_path, {})
    found = fallen.resume()
    assert found is not None and found[0].best is not None and found[0].best.epoch == 1
    assert fallen.load_best(found[0].best)["w"] == 1.0
    for epoch in (4, 5):
        saved(again, state, epoch)
        again.save(state, {}, {})
    saved(again, state, 6)
    assert [path.name for path in sorted(tmp_path.glob("best-*"))] == [
        "best-00004.safetensors",
        "best-00005.safetensors",
        "best-00006.safetensors",
    ]


def test_a_checkpoint_of_another_fit_is_refused_by_name(tmp_path: Path) -> None:
    hurt(tmp_path, FAULTY)
    other = replace(FAULTY.config, seed=8, optim=replace(CONFIG.optim, lr=0.5), checkpoint_seconds=1.0)
    with pytest.raises(CheckpointError) as caught:
        tinyfit.run(tmp_path, Setup(other))
    assert str(caught.value) == (
        f"the checkpoint in {tmp_path}/checkpoints/fit is of another fit "
        "(seed: there 7, here 8, optim.lr: there 0.01, here 0.5)\n  fix: --out NEW, or --overwrite"
    )


def test_other_frozen_weights_than_the_checkpoints_are_refused(tmp_path: Path) -> None:
    hurt(tmp_path, FAULTY)
    net = Net()
    net.frozen[0].weight.data[0, 0] += 1
    with pytest.raises(CheckpointError) as caught:
        tinyfit.run(tmp_path, FAULTY, net)
    assert str(caught.value) == (
        f"1 frozen tensors are not those that the checkpoint in {tmp_path}/checkpoints/fit was made with "
        "(frozen.0.weight)\n  fix: --out NEW, or --overwrite"
    )


def test_damaged_best_weights_are_refused(tmp_path: Path) -> None:
    result, _ = tinyfit.run(tmp_path)
    result.best_path.write_bytes(result.best_path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"best\.safetensors is damaged"):
        tinyfit.run(tmp_path)
