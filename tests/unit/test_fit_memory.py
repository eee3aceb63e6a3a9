"""When memory runs out in the loop: smaller portions, the same gradients, and the same bits after a restart."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tinyfit
from tinyfit import BATCH, CONFIG, STEPS, Net
from warmstart import looptools
from warmstart.data import Batch
from warmstart.errors import TrainingError
from warmstart.fit import FitConfig, FitResult, Progress, Step, fit
from warmstart.rundir import Journal

CPU_WORDS = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4294967296 bytes. Error code 12 (Cannot allocate memory)"
)


class Machine:
    """A loop on a machine that takes so many examples at a time, from a step on."""

    def __init__(self, folder: Path, *, most: int, from_step: int = 0, stop_at: int | None = None) -> None:
        self.folder, self.most, self.from_step, self.stop_at = folder, most, from_step, stop_at
        self.step, self.calls = 0, 0
        self.error: Exception = RuntimeError(CPU_WORDS)
        self.net = Net()

    def forward(self, module: torch.nn.Module, batch: Batch) -> Step:
        self.calls += 1
        if self.most == 0:
            raise self.error
        step = tinyfit.forward(module, batch)  # the running statistics have moved by the time memory runs out
        if len(batch.index) > self.most and self.step >= self.from_step:
            raise self.error
        return step

    def told(self, at: Progress) -> None:
        self.step = at.step

    def fit(self, config: FitConfig = CONFIG) -> FitResult:
        return fit(
            self.net,
            tinyfit.groups(self.net),
            forward=self.forward,
            batches=tinyfit.batches(),
            steps_per_epoch=STEPS,
            config=config,
            folder=self.folder,
            on_progress=self.told,
            should_stop=lambda: self.step == self.stop_at,
        )


def bits(net: Net) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in net.state_dict().items()}


def with_micro_batch(folder: Path, size: int) -> Net:
    machine = Machine(folder, most=BATCH)
    machine.fit(replace(CONFIG, micro_batch=size))
    return machine.net


def test_out_of_memory_ends_in_the_bits_of_the_smaller_micro_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(tmp_path / "small", most=3)
    with caplog.at_level(logging.WARNING):
        result = machine.fit()
    assert result.micro_batch == 2
    assert result.steps == CONFIG.epochs * STEPS
    # Batch-norm and dropout are in this network: what the failed forward passes moved and drew was taken back.
    assert bits(machine.net) == bits(with_micro_batch(tmp_path / "told", 2))
    assert caplog.messages == ["memory ran out at step 0: from now on 2 examples at a time, 8 to a step as before"]
    lines = Journal(tmp_path / "small" / "metrics.jsonl", "fit").read()
    assert [line["micro_batch"] for line in lines if "micro_batch" in line] == [2]


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_WORDS)]
)
def test_every_allocators_words_are_understood(tmp_path: Path, error: Exception) -> None:
    machine = Machine(tmp_path, most=4)
    machine.error = error
    assert machine.fit().micro_batch == 4


def test_another_error_is_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    machine = Machine(tmp_path, most=4)
    machine.error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        machine.fit()
    assert machine.calls == 1


def test_with_one_example_at_a_time_it_ends_in_two_lines(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as error:
        Machine(tmp_path, most=0).fit()
    assert str(error.value) == (
        f"memory ran out at step 0 with one example at a time ({CPU_WORDS})\n"
        "  fix: --strategy probe, a smaller data.image_size, or a smaller backbone"
    )


@pytest.mark.parametrize("stop_at", [6, 8, 11])
def test_a_fit_that_ran_out_resumes_with_the_same_portions_in_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    whole = Machine(tmp_path / "whole", most=4, from_step=7)
    whole.fit()
    first = Machine(tmp_path / "parts", most=4, from_step=7, stop_at=stop_at)
    assert first.fit().stopped_because == "asked"
    again = Machine(tmp_path / "parts", most=4, from_step=7 if stop_at < 7 else 10**9)
    again.step = stop_at
    again.fit()
    assert bits(again.net) == bits(whole.net)
    assert bits(whole.net) != bits(with_micro_batch(tmp_path / "all small", 4))  # the first steps were whole


def test_killed_in_the_step_that_is_taken_again_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = Machine(tmp_path / "whole", most=4, from_step=7)
    whole.fit()

    class Killed(BaseException):
        pass

    class Dying(Machine):
        def forward(self, module: torch.nn.Module, batch: Batch) -> Step:
            if self.step >= 7 and len(batch.index) <= 4:
                raise Killed
            return super().forward(module, batch)

    with pytest.raises(Killed):
        Dying(tmp_path / "parts", most=4, from_step=7).fit()
    again = Machine(tmp_path / "parts", most=BATCH)  # this time there would be room: the portions stay
    result = again.fit()
    assert result.micro_batch == 4
    assert bits(again.net) == bits(whole.net)


def test_words_of_allocators() -> None:
    assert looptools.out_of_memory(RuntimeError("std::bad_alloc"))
    assert not looptools.out_of_memory(ValueError("memory format option is only supported by strided tensors"))


CAPPED = """
import json, resource, sys
from pathlib import Path
import torch
from torch import nn
from warmstart.data import Batch
from warmstart.fit import FitConfig, Step, fit
from warmstart.optim import OptimConfig
from warmstart.strategies import Group

WIDTH, BATCH, LAYERS = 131072, 64, 8

class Wide(nn.Module):
    "Each layer keeps 32 MiB of a batch of 64 for its backward pass."
    def __init__(self):
        super().__init__()
        self.scales = nn.Parameter(torch.linspace(0.5, 1.5, LAYERS))
    def forward(self, x):
        for scale in self.scales:
            x = torch.tanh(x * scale)
        return x.mean(1)

net, row = Wide(), torch.linspace(0, 1, WIDTH)
inputs = torch.arange(1, BATCH + 1).view(-1, 1) / BATCH * row
group = [Group("all", (net.scales,), (net,))]

def batches(epoch, start):
    for _ in range(start, 2):
        yield Batch(inputs, torch.zeros(BATCH), torch.arange(BATCH))

def forward(module, batch):
    return Step(((module(batch.inputs) - 1) ** 2).mean())

def run(folder, micro):
    config = FitConfig(1, OptimConfig("sgd", lr=0.1), micro_batch=micro)
    return fit(net, group, forward=forward, batches=batches, steps_per_epoch=2, config=config, folder=Path(folder))

run(sys.argv[1] + "/warm", 2)  # brings in every library
net.scales.data = torch.linspace(0.5, 1.5, LAYERS)
pages = int(Path("/proc/self/statm").read_text().split()[0])
cap = pages * resource.getpagesize() + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (cap, cap))
result = run(sys.argv[1] + "/capped", None)
print(json.dumps({"micro_batch": result.micro_batch, "scales": net.scales.tolist(), "steps": result.steps}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="caps the address space through /proc and rlimit")
def test_a_process_with_a_cap_on_its_memory_finishes_the_fit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CAPPED, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["steps"] == 2
    assert told["micro_batch"] in (8, 16, 32)
    assert done.stderr.count("memory ran out at step 0") == 1
    assert told["scales"] == pytest.approx(scales_by_hand(), rel=1e-4)


def scales_by_hand() -> list[float]:
    """Take the two clipped steps of sgd with momentum by hand; the cosine starts at once and halves the second rate."""
    scales = torch.linspace(0.5, 1.5, 8).requires_grad_()
    inputs = torch.arange(1, 65).view(-1, 1) / 64 * torch.linspace(0, 1, 131072)
    velocity = torch.zeros(8)
    for rate in (0.1, 0.05):
        total = torch.zeros(8)
        for part in inputs.split(16):
            total += torch.autograd.grad(_loss(scales, part), scales)[0] * len(part) / 64
        total *= min(1.0, 1.0 / (float(total.norm()) + 1e-6))
        velocity = 0.9 * velocity + total
        scales = (scales.detach() - rate * velocity).requires_grad_()
    return scales.detach().tolist()


def _loss(scales: Tensor, values: Tensor) -> Tensor:
    for scale in scales:
        values = torch.tanh(values * scale)
    return ((values.mean(1) - 1) ** 2).mean()
