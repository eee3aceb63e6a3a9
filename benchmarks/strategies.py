"""Does `run` decide for the right strategy? Its decision beside every fixed strategy, cell by cell.

A cell is a data set with so many examples per class for train and val together. Every fixed strategy gets its default
settings and the same few epochs, and is tested on thousands of others; then the finals decide, with train and val only
and twice the time of the slowest fixed strategy. Reported per cell is the test accuracy of each, and how far the
decision is behind the best of that cell and behind the strategy that is best on average.

usage: python benchmarks/strategies.py [--data a,b] [--per-class 4,16,64,256] [--seeds 1] [--table]
Every fit is kept below `.assets/benchmarks/strategies` with its predictions, so the same command goes on.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import common
from warmstart import choosing, comparing, config, finals, prepare, runtime, tune, workflow
from warmstart.cache import Cache
from warmstart.choosing import Chosen
from warmstart.config import Choice, Sourced
from warmstart.data import Dataset, read
from warmstart.options import Options
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.tasks import Predictions
from warmstart.trained import TrainedModel
from warmstart.tune import Candidate, Trial

WORK = common.SCRATCH / "strategies"
BACKBONE, SIZE, EPOCHS = "package/mobilenet_v2", 64, 8
PER_CLASS, NUM_TEST = (4, 16, 64, 256), 3000
STRATEGIES = {
    "probe": Choice("probe"),
    "last_k": Choice("last_k"),
    "lp_ft depth=2": Choice("lp_ft", {"depth": 2}),
    "lp_ft": Choice("lp_ft"),
    "l2_sp": Choice("l2_sp"),
    "full": Choice("full"),
    "gradual": Choice("gradual"),
}
SLACK = 20.0
"""Seconds that the finals get beside twice the slowest fit; eight of them go to a report that is not written."""
DECIDED = "decided"
Pictures = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Fit what is missing, then write and print the table."""
    options = _options()
    WORK.mkdir(parents=True, exist_ok=True)
    places = [str(common.SCRATCH.parent / "pip"), os.environ.get("WARMSTART_PACKAGES", "")]
    os.environ["WARMSTART_PACKAGES"] = os.pathsep.join(place for place in places if place)
    cells = [Cell(*one) for one in itertools.product(options.per_class, options.data, range(options.seeds))]
    begun = time.perf_counter()
    for cell in cells if not options.table else ():
        for line in cell.fill():
            print(f"{time.perf_counter() - begun:5.0f} s  {line}", flush=True)
    done = [cell for cell in cells if cell.complete]
    for line in table(done):
        print(line)
    measured = {str(cell): [common.Measured(cell.seconds, facts=cell.facts())] for cell in done}
    parameters = {
        "backbone": BACKBONE,
        "size": SIZE,
        "epochs": EPOCHS,
        "finals": f"twice the slowest fixed strategy and {SLACK:.0f} s",
        **summary(done),
    }
    seeds = list(range(options.seeds))
    print(common.write("strategies", measured, [], parameters=parameters, seeds=seeds, folder=options.results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=lambda text: tuple(text.split(",")), default=tuple(DATA))
    parser.add_argument("--per-class", type=lambda text: tuple(map(int, text.split(","))), default=PER_CLASS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="fit nothing, show what is there")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    return parser.parse_args()


# Data: pictures to draw train and val from, and others for test


def _cifar() -> tuple[Pictures, Pictures]:
    import assets

    return assets.cifar10("train", 6000), assets.cifar10("test", NUM_TEST)


def _fashion() -> tuple[Pictures, Pictures]:
    import assets

    folder = assets.fashion_mnist_folder()

    def part(name: str, num: int) -> Pictures:
        pixels = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())[16 : 16 + num * 784]
        labels = gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes())[8 : 8 + num]
        return np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8).astype(np.int64)

    return part("train", 6000), part("t10k", NUM_TEST)


def _elpv() -> tuple[Pictures, Pictures]:
    import scores

    pixels, labels = scores.PICTURES["elpv_defects"](2223)
    return (pixels[:1000], labels[:1000]), (pixels[1000:], labels[1000:])


DATA: Mapping[str, Callable[[], tuple[Pictures, Pictures]]] = {"cifar10": _cifar, "fashion": _fashion, "elpv": _elpv}


def pictures(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels and labels to draw from, and those to test on, unpacked once."""
    file = WORK / f"pictures-{name}.npz"
    if not file.exists():
        (pixels, labels), (others, truth) = DATA[name]()
        np.savez(file, pixels=pixels, labels=labels, others=others, truth=truth)
    with np.load(file) as found:
        return found["pixels"], found["labels"], found["others"], found["truth"]


# Cells


@dataclass(frozen=True)
class Cell:
    """A data set with so many examples per class, drawn by a seed."""

    per_class: int
    data: str
    seed: int

    def __str__(self) -> str:
        return f"{self.data}, {self.per_class} per class, seed {self.seed}"

    def file(self, name: str) -> Path:
        """Return where a fit of this cell is kept."""
        return WORK / f"{runtime.digest(str(self), name, BACKBONE, SIZE, EPOCHS)[:16]}.json"

    def read(self, name: str) -> dict[str, object]:
        """Return a fit that was kept."""
        return dict(json.loads(self.file(name).read_text()))

    @property
    def complete(self) -> bool:
        """Say whether everything of this cell is there."""
        return all(self.file(name).exists() for name in (*STRATEGIES, DECIDED))

    @property
    def seconds(self) -> float:
        """Return what the decision took."""
        return float(self.read(DECIDED)["seconds"])  # type: ignore[arg-type]

    def fill(self) -> Iterator[str]:
        """Fit what is missing."""
        missing = [name for name in STRATEGIES if not self.file(name).exists()]
        if not missing and self.file(DECIDED).exists():
            return
        pixels, labels, others, truth = pictures(self.data)
        rng = runtime.rng(self.seed, "strategies benchmark", self.data)
        # an order of each class, of which a larger cell takes more
        order = [rng.permutation(np.flatnonzero(labels == label))[: self.per_class] for label in np.unique(labels)]
        rows = np.sort(np.concatenate(order))
        dataset = read.from_arrays(pixels[rows], labels[rows], name=self.data)
        given: Options = {
            "backbone": BACKBONE,
            "seed": self.seed,
            "overrides": {"data.image_size": SIZE, "data.workers": 1, "data.test_fraction": 0.0},
        }
        for name in missing:
            with _session(dataset, given) as session:
                data = prepare.prepare(session, dataset)
                begun, busy = time.perf_counter(), time.process_time()
                trial = fitted(session, data, name)
                facts = {"cpu_seconds": time.process_time() - busy}
                self.keep(name, [trial], others, truth, time.perf_counter() - begun, facts)
            yield f"{self}: {name} {self.read(name)['test']}"
        with _session(dataset, given) as session:
            data = prepare.prepare(session, dataset)
            self.decide(session, data, others, truth)
        yield f"{self}: {self.read(DECIDED)['reason']}, {self.read(DECIDED)['test']}"

    def decide(self, session: Session, data: Prepared, others: np.ndarray, truth: np.ndarray) -> None:
        """Let the finals decide."""
        fits = len(data.folds) + 1 if data.splits.folds else 1
        spent = [self.read(name) for name in STRATEGIES]
        wall, cpu = ([float(one[what]) for one in spent] for what in ("seconds", "cpu_seconds"))  # type: ignore[arg-type]
        # a busy machine slows the finals as it slowed the fits, on the whole and not one by one
        slowest = fits * max(cpu) * max(sum(wall) / sum(cpu), 1.0)
        session.started = time.monotonic()
        recipe = config.set_key(session.recipe, "budget", 2 * slowest + SLACK)
        session.sourced = Sourced(recipe, session.sourced.origins)
        chosen = Chosen(Candidate(BACKBONE, SIZE, Choice("probe")), "it was asked for")
        trials = [tune.tune(session, data, chosen.candidate)]
        for candidate in finals.candidates(session, data, chosen, trials):
            trials.append(tune.tune(session, data, candidate))
        plan, seconds = finals.told(session), session.seconds()
        winner, _ = choosing.pick(session, data, trials)
        assert plan is not None
        facts = {
            "reason": f"{finals.named(winner.candidate)} of {[finals.named(t.candidate) for t in trials]}",
            "plan": plan.reason,
            "shorts": [[short.name, round(short.lr, 6), short.examples, short.value] for short in plan.shorts],
            "winner": trials.index(winner),
            "budget": round(2 * slowest + SLACK, 1),
        }
        self.keep(DECIDED, trials, others, truth, seconds, facts)

    def keep(
        self,
        name: str,
        trials: Sequence[Trial],
        others: np.ndarray,
        truth: np.ndarray,
        seconds: float,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        """Test models, and keep accuracies and predictions."""
        said = [trial.trained.predict_proba(others).argmax(axis=1) for trial in trials]
        test = [round(float((one == truth).mean()), 5) for one in said]
        val = [trial.val.take(np.argsort(trial.val.index)) for trial in trials]
        file = self.file(name)
        np.savez(
            file.with_suffix(".npz"),
            said=np.stack(said).astype(np.int16),
            truth=truth.astype(np.int16),
            val=np.stack([one.outputs for one in val]),
            targets=val[0].targets,
        )
        accuracy = [
            round(float((one.values.argmax(axis=1) == one.targets).mean()), 5) if len(one.values) else None
            for one in val
        ]
        file.write_text(json.dumps({"test": test, "val": accuracy, "seconds": seconds, **(facts or {})}))

    def accuracy(self) -> dict[str, float]:
        """Return the test accuracy of every strategy and of the decision."""
        found = {name: float(self.read(name)["test"][0]) for name in STRATEGIES}  # type: ignore[index]
        return {**found, DECIDED: float(self.read(DECIDED)["test"][self.winner()])}  # type: ignore[index]

    def winner(self) -> int:
        """Return which trial of the finals is kept, by the rule as it is now; all have one network and input size."""
        import race

        first, *rivals = predictions(self, DECIDED)
        data, kept, place = race.tasks_of(first.index, first.targets), first, 0
        alike = SimpleNamespace(candidate=Candidate(BACKBONE, SIZE, Choice("probe")))
        for number, rival in enumerate(rivals, 1):
            found = comparing.paired(data.task, rival, kept, seed=self.seed)
            if choosing.beats(data, alike, alike, found):  # type: ignore[arg-type]
                kept, place = rival, number
        return place

    def facts(self) -> dict[str, object]:
        """Return everything that was measured."""
        return {
            "data": self.data,
            "per_class": self.per_class,
            "seed": self.seed,
            "test": self.accuracy(),
            "fit_seconds": {name: round(float(self.read(name)["seconds"]), 2) for name in STRATEGIES},  # type: ignore[arg-type]
            "val": {name: self.read(name)["val"][0] for name in STRATEGIES},  # type: ignore[index]
            "decision": self.read(DECIDED),
        }


def fitted(session: Session, data: Prepared, name: str) -> Trial:
    """Fit a fixed strategy; on small data once on all of train and not on every fold, which only val needs."""
    if name == "probe" or not data.splits.folds:
        settings = {} if name == "probe" else {"epochs": EPOCHS}
        return tune.tune(session, data, Candidate(BACKBONE, SIZE, STRATEGIES[name], settings))
    candidate = Candidate(BACKBONE, SIZE, STRATEGIES[name], {"epochs": EPOCHS})
    session = session.with_values(candidate.settings)
    ready = tune.build(session, data, candidate)
    nobody, _ = tune._fit(ready, data.splits.train, data.splits.val, candidate.fit_name, selecting=False)
    model = TrainedModel(ready.model.eval(), ready.place.card, data.task, data.task_name, ready.place.framing)
    return Trial(candidate, model, nobody, 0.0)


@contextmanager
def _session(dataset: Dataset, given: Options) -> Iterator[Session]:
    """Open a session whose features are kept for the next one."""
    with workflow.scratch("run", dataset, given, None) as session:
        session.cache = Cache(WORK / "cache")
        yield session


def predictions(cell: Cell, name: str) -> list[Predictions]:
    """Return what the trials of a fit say of val."""
    with np.load(cell.file(name).with_suffix(".npz")) as found:
        targets = found["targets"]
        rows = np.arange(len(targets))
        return [Predictions(one, _softmax(one), rows, targets, None) for one in found["val"]]


def _softmax(outputs: np.ndarray) -> np.ndarray:
    raised = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


# The table


def summary(cells: Sequence[Cell]) -> dict[str, object]:
    """Say how far the decision is behind, over all cells."""
    if not cells:
        return {}
    found = [cell.accuracy() for cell in cells]
    means = {name: statistics.mean(one[name] for one in found) for name in found[0]}
    single = max(STRATEGIES, key=lambda name: means[name])
    behind = [max(one[name] for name in STRATEGIES) - one[DECIDED] for one in found]
    behind_single = [one[single] - one[DECIDED] for one in found]
    return {
        "mean": {name: round(value, 4) for name, value in means.items()},
        "best_single": single,
        "within_half_a_point_of_the_best": sum(gap <= 0.005 for gap in behind) / len(cells),
        "mean_behind_the_best": round(statistics.mean(behind), 4),
        "most_behind_the_best_single": round(max(behind_single), 4),
        "mean_behind_the_best_single": round(statistics.mean(behind_single), 4),
        "cells": len(cells),
    }


def table(cells: Sequence[Cell]) -> Iterator[str]:
    """Draw the table in Markdown."""
    yield f"| cell | {' | '.join(STRATEGIES)} | `run` | behind the best |"
    yield f"|---{'|---' * (len(STRATEGIES) + 2)}|"
    for cell in cells:
        found = cell.accuracy()
        best = max(found[name] for name in STRATEGIES)
        shown = [f"**{100 * found[n]:.1f}**" if found[n] == best else f"{100 * found[n]:.1f}" for n in STRATEGIES]
        behind = 100 * (best - found[DECIDED])
        yield f"| {cell} | {' | '.join(shown)} | {100 * found[DECIDED]:.1f} | {behind:+.1f} |"
    yield json.dumps(summary(cells))


if __name__ == "__main__":
    main()
