"""Kill commands with SIGKILL at random moments, repeat them, and compare what they end in, byte by byte.

    python benchmarks/kills.py --kills 100

Each life is one command in a fresh run folder with a fresh cache. It is killed one to four times at seeded moments
spread over its whole duration, each time repeated with another number of workers, and at last let through. What it ends
in must be what the undisturbed command ended in: the same bytes of every file in weights/, the same metrics, the same
learning curve.

Commands run in forks of one process that has imported the libraries already, so that a kill hits the work and not the
four seconds of importing before it; and they save a checkpoint every other step instead of once a minute, so that a
repeated command has something to take up. The stories in tests/ also kill commands as a shell starts them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "probe, solved": ("finetune", "strategy=probe"),
    "probe, gradient": ("finetune", "strategy=probe", "strategy.head=gradient"),
    "last_k": ("finetune", "strategy=last_k"),
    "gradual": ("finetune", "strategy=gradual"),
    "full": ("finetune", "strategy=full", "strategy.batch_norm=adapt", "ema=0.9"),
    "lp_ft": ("finetune", "strategy=lp_ft"),
    "l2_sp": ("finetune", "strategy=l2_sp", "optim.weight_decay=0"),
    "run": ("run", "--budget", "1h"),
}
"""One command per strategy, and the whole way once."""
COMMON = ("--backbone", "random/test_resnet", "data.image_size=32", "epochs=3", "batch_size=8", "--json")
MOST_KILLS = 4
WORKERS = (1, 2, 3)
SECONDS = 120.0
"""A command that takes longer has hung."""


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    code: int
    """Exit code, or minus the signal."""
    seconds: float
    out: str
    err: str


@dataclass(frozen=True)
class Result:
    """What a run folder holds at the end, without anything that a clock wrote."""

    weights: Mapping[str, str]
    """SHA-256 of every file in weights/."""
    metrics: tuple[tuple[object, ...], ...]
    curve: tuple[str, ...]


@dataclass(frozen=True)
class Life:
    """One command from its first start to its end."""

    command: str
    moments: tuple[float, ...]
    """Seconds after which it was killed, start by start."""
    taken_up: int
    """After how many of the kills a checkpoint was there to go on from."""
    seconds: float
    equal: bool
    differs: str = ""


class Nursery:
    """A process with the libraries imported, which forks one child per command."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--nursery"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def run(self, words: Sequence[str], folder: Path, *, kill_after: float = SECONDS) -> Ended:
        """Run `warmstart WORDS` in a folder, with its cache there, and kill it when the time is up."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"words": list(words), "folder": str(folder), "kill_after": kill_after}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        return Ended(told["code"], told["seconds"], (folder / "out").read_text(), (folder / "err").read_text())

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=SECONDS)


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    """Open a nursery, and end its process."""
    made = Nursery()
    try:
        yield made
    finally:
        made.close()


def serve() -> None:
    """Be the nursery: read orders, fork, wait or kill, tell."""
    import accelerate  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torchvision.transforms.v2  # noqa: F401

    from warmstart import cli, fit, workflow, writeup  # noqa: F401

    torch.set_num_threads(1)
    fit.FitConfig = functools.partial(fit.FitConfig, checkpoint_steps=2)  # type: ignore[assignment, misc]
    for line in sys.stdin:
        order = json.loads(line)
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            _live(order["words"], Path(order["folder"]), cli.main)
        code = _reap(child, begun + order["kill_after"])
        print(json.dumps({"code": code, "seconds": time.monotonic() - begun}), flush=True)


def _live(words: Sequence[str], folder: Path, main: object) -> None:
    """Become the command; never returns."""
    assert callable(main)
    code = 1
    try:
        os.chdir(folder)
        os.environ["WARMSTART_CACHE"] = str(folder / "cache")
        for name, number in (("/dev/null", 0), ("out", 1), ("err", 2)):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), number)
        sys.argv = ["warmstart", *words]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 a child must not become a second nursery
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _reap(child: int, deadline: float) -> int:
    while True:
        gone, status = os.waitpid(child, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.001)


def pictures(root: Path) -> Path:
    """Write 60 made-up pictures in three classes: 36 train, 12 val, 12 test."""
    rng = np.random.default_rng(5)
    for split, count in {"train": 12, "val": 4, "test": 4}.items():
        for hue, label in enumerate(("red", "green", "blue")):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 170, (32, 32, 3))
                pixels[..., hue] += 60
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def result(folder: Path) -> Result:
    """Read what a finished run ended in."""
    weights = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted((folder / "weights").iterdir())
    }
    metrics = json.loads((folder / "report.json").read_text())["metrics"]
    journal = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    curve = tuple(json.dumps({**line, "seconds": 0}, sort_keys=True) for line in lines)
    return Result(weights, tuple(tuple(metric.values()) for metric in metrics), curve)


def undisturbed(place: Nursery, name: str, data: Path, folder: Path) -> tuple[Result, float]:
    """Run a command to its end, and return what it ended in and how long it took."""
    folder.mkdir(parents=True)
    ended = place.run(_words(name, data, workers=2), folder)
    if ended.code != 0:
        raise RuntimeError(f"{name}: the undisturbed command ended with {ended.code}\n{ended.err}")
    return result(folder / "R"), ended.seconds


def live(place: Nursery, name: str, data: Path, folder: Path, expected: Result, moments: Sequence[float]) -> Life:
    """Kill a command at each moment, repeat it, let it through at last, and compare."""
    folder.mkdir(parents=True)
    killed: list[float] = []
    taken_up = 0
    begun = time.monotonic()
    for start, moment in enumerate(moments):
        ended = place.run(_words(name, data, workers=WORKERS[start % 3]), folder, kill_after=moment)
        if ended.code == -signal.SIGKILL:
            killed.append(moment)
            taken_up += any((folder / "R" / "checkpoints").glob("*/*.json"))
        elif ended.code != 0:
            return Life(name, tuple(killed), taken_up, time.monotonic() - begun, False, ended.err)
    ended = place.run(_words(name, data, workers=WORKERS[len(moments) % 3]), folder)
    differs = difference(expected, result(folder / "R")) if ended.code == 0 else f"exit {ended.code}: {ended.err}"
    return Life(name, tuple(killed), taken_up, time.monotonic() - begun, not differs, differs)


def difference(expected: Result, found: Result) -> str:
    """Name what differs; empty where nothing does."""
    parts = [name for name in expected.weights if expected.weights[name] != found.weights.get(name)]
    parts += ["metrics"] * (expected.metrics != found.metrics) + ["curve"] * (expected.curve != found.curve)
    return ", ".join(parts)


def moments(rng: random.Random, seconds: float, most: int = MOST_KILLS) -> list[float]:
    """Draw when one life is killed: one to `most` times, anywhere in what the command takes."""
    return [rng.uniform(0.0, seconds) for _ in range(rng.randint(1, most))]


def _words(name: str, data: Path, *, workers: int) -> list[str]:
    verb, *rest = COMMANDS[name]
    return [verb, str(data), *rest, *COMMON, f"data.workers={workers}", "--out", "R"]


def main() -> None:
    """Kill until the count is reached, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nursery", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.nursery:
        serve()
        return
    from benchmarks import common

    scratch = common.SCRATCH / "kills"
    shutil.rmtree(scratch, ignore_errors=True)
    lives = _many(scratch, given.kills, given.seed)
    text = json.dumps({**_summary(lives, given.seed), **_circumstances(common.machine())}, indent=1)
    (common.RESULTS / "kills.json").write_text(text + "\n")
    shutil.rmtree(scratch)
    if not all(life.equal for life in lives):
        sys.exit(1)


def _many(scratch: Path, kills: int, seed: int) -> list[Life]:
    data, rng, lives = pictures(scratch / "data"), random.Random(seed), []
    with nursery() as place:
        expected = {name: undisturbed(place, name, data, scratch / name / "undisturbed") for name in COMMANDS}
        while sum(len(life.moments) for life in lives) < kills:
            name = list(COMMANDS)[len(lives) % len(COMMANDS)]
            wanted, seconds = expected[name]
            folder = scratch / name / str(len(lives))
            lives.append(live(place, name, data, folder, wanted, moments(rng, seconds)))
            life = lives[-1]
            total = sum(len(one.moments) for one in lives)
            shown = "equal" if life.equal else f"DIFFERS: {life.differs}"
            print(f"{total:4} kills  {name:<16} {len(life.moments)} here, {life.seconds:5.1f} s, {shown}")
            if life.equal:
                shutil.rmtree(folder)
    return lives


def _summary(lives: Sequence[Life], seed: int) -> dict[str, object]:
    def counts(chosen: Sequence[Life]) -> dict[str, int]:
        return {
            "kills": sum(len(life.moments) for life in chosen),
            "kills_resumed_equal": sum(len(life.moments) for life in chosen if life.equal),
            "kills_with_checkpoint": sum(life.taken_up for life in chosen),
            "lives": len(chosen),
            "lives_equal": sum(life.equal for life in chosen),
        }

    return {
        **counts(lives),
        "seed": seed,
        "commands": {name: counts([life for life in lives if life.command == name]) for name in COMMANDS},
        "differs": [f"{life.command} {life.moments}: {life.differs}" for life in lives if not life.equal],
    }


def _circumstances(machine: dict[str, object]) -> dict[str, object]:
    from warmstart import runtime

    finished = time.strftime("%Y-%m-%d", time.gmtime())
    return {"finished": finished, "machine": machine, "environment": runtime.environment()}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
