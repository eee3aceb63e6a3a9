"""A fit of seconds: a small network with batch-norm and dropout, decoding threads, and augmentation by row.

Run as a program it is killed again and again: `python tests/tinyfit.py FOLDER KILLS SEED`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from warmstart import runtime
from warmstart.data import Batch
from warmstart.fit import FitConfig, FitResult, Step, fit
from warmstart.optim import OptimConfig, ScheduleConfig
from warmstart.strategies import Group, Statistics

ROWS, DIM, CLASSES, BATCH = 44, 6, 3, 8
STEPS = 6  # the last batch is short: 44 = 5 * 8 + 4
CONFIG = FitConfig(epochs=4, optim=OptimConfig("adamw", lr=0.01), schedule=ScheduleConfig("cosine"), seed=7)


def data() -> tuple[Tensor, Tensor]:
    """Return rows that can be learned from."""
    rng = runtime.rng(1, "tiny data")
    inputs = torch.from_numpy(rng.normal(size=(ROWS, DIM)).astype(np.float32))
    return inputs, inputs[:, :CLASSES].argmax(1)


class Net(nn.Module):
    """A frozen first layer with batch-norm, a body with batch-norm and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8, CLASSES)
        rng = runtime.rng(2, "tiny weights")
        for parameter in self.parameters():
            parameter.data.copy_(torch.from_numpy(rng.normal(scale=0.4, size=parameter.shape)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute (B, C) outputs."""
        out: Tensor = self.head(self.body(self.frozen(inputs)))
        return out


def groups(net: Net, body_from: int = 0, statistics: Statistics = "adapt") -> list[Group]:
    """Body and head learn, and the body's batch-norm follows the batches."""
    body = Group("body", tuple(net.body.parameters()), (net.body,), 0.5, body_from, statistics)
    return [body, Group("head", tuple(net.head.parameters()), (net.head,))]


def batches(workers: int = 1, rows: Callable[[int], np.ndarray] | None = None) -> Callable[[int, int], Iterator[Batch]]:
    """Make batches in an order and with noise that depend on epoch and row alone."""
    inputs, targets = data()
    order = rows or (lambda epoch: runtime.rng(7, "order", epoch).permutation(ROWS))

    def one(epoch: int, row: int) -> Tensor:
        noise = runtime.rng(7, "augment", epoch, row).normal(scale=0.1, size=DIM)
        return inputs[row] + torch.from_numpy(noise.astype(np.float32))

    def epoch_batches(epoch: int, start: int) -> Iterator[Batch]:
        with ThreadPoolExecutor(workers) as pool:
            for begin in range(start * BATCH, ROWS, BATCH):
                index = order(epoch)[begin : begin + BATCH]
                made = list(pool.map(lambda row: one(epoch, int(row)), index))
                yield Batch(torch.stack(made), targets[index], torch.from_numpy(index))

    return epoch_batches


def forward(net: nn.Module, batch: Batch) -> Step:
    """Cross-entropy."""
    return Step(nn.functional.cross_entropy(net(batch.inputs), batch.targets))


def validate(net: Net) -> Callable[[], float]:
    """Mean log-likelihood on the training rows: fine-grained, so that ties are rare."""
    inputs, targets = data()

    def metric() -> float:
        with torch.no_grad():
            return -nn.functional.cross_entropy(net(inputs), targets).item()

    return metric


@dataclass(frozen=True)
class Setup:
    """What varies between the fits of tests."""

    config: FitConfig = CONFIG
    workers: int = 1
    body_from: int = 0
    slow: float = 0.0
    """Seconds that each step sleeps, so that a kill has something to hit."""


def run(folder: Path, setup: Setup | None = None, net: Net | None = None) -> tuple[FitResult, Net]:
    """Fit from the same beginning into a folder."""
    setup, net = setup or Setup(), net or Net()

    def slowed(module: nn.Module, batch: Batch) -> Step:
        time.sleep(setup.slow)
        return forward(module, batch)

    result = fit(
        net,
        groups(net, setup.body_from),
        forward=slowed,
        batches=batches(setup.workers),
        steps_per_epoch=STEPS,
        config=setup.config,
        folder=folder,
        validate=validate(net),
        head=net.head,
    )
    return result, net


def bits(net: nn.Module) -> dict[str, bytes]:
    """Return the bytes of every tensor of a module."""
    return {name: tensor.contiguous().view(-1).numpy().tobytes() for name, tensor in net.state_dict().items()}


KILLED = Setup(config=replace(CONFIG, epochs=5, checkpoint_steps=4, ema_decay=0.9, early_stopping=9), slow=0.004)


def _forked(folder: Path, setup: Setup) -> int:
    child = os.fork()
    if child == 0:
        try:
            run(folder, setup)
        except BaseException as error:  # noqa: BLE001 - a child that fails says so and never returns into the parent
            sys.stderr.write(f"{error}\n")
            os._exit(1)
        os._exit(0)
    return child


def kill_until_done(folder: Path, kills: int, seed: int) -> int:
    """Repeat one fit in forked processes, killing it at random moments, until it ends by itself; return the kills."""
    dice, done = random.Random(seed), 0
    while True:
        child = _forked(folder, replace(KILLED, workers=dice.choice([1, 2, 3])))
        if done < kills:
            time.sleep(dice.uniform(0.0, 0.12))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            done += 1
            continue
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"the fit failed after {done} kills")
        return done


def main(arguments: Sequence[str]) -> None:
    """Kill fits in fresh folders until enough kills have hit, and print how many did."""
    folder, wanted, seed = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    torch.set_num_threads(1)
    hits, fits = 0, 0
    while hits < wanted:
        hits += kill_until_done(folder / str(fits), 8, seed + fits)
        fits += 1
    sys.stdout.write(f"{hits} {fits}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
