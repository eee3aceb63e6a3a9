"""Does the race find the backbone that probing everybody would find, and at which cost?

Twelve backbones race on tasks of four sources of pictures, the examples that `choosing.Course` would see, in several
orders. The truth is the accuracy of each backbone's head, solved on all of these examples, on the many others of the
task. Reported are the regret (accuracy of the best, or of the one that probing everybody would have picked, less that
of the race's pick), the race's share of the seconds that probing everybody takes, and weighted Kendall τ between the
leaderboard and the truth beside that of the static prior. Seconds are counted: examples computed times each backbone's
processor seconds per example, measured once, so a busy machine changes nothing.

Changes of the rules were tried on CIFAR-10 and digits; what did not hold on fashion and solar cells was taken back.

usage: python benchmarks/race.py [--tasks a,b] [--seeds 8] [--shares 0.2,0.5] [--results DIR]
Features and heads are kept below `.assets/benchmarks/race`, so the same command goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import common
import scores
from warmstart import catalogue, choosing, config, heads, race, runtime, sources, tasks, tune
from warmstart.cache import Cache
from warmstart.data import Splits, read, transforms
from warmstart.extract import extract
from warmstart.models import Card
from warmstart.prepare import Prepared

WORK = common.SCRATCH / "race"
SIZE = 96
SHARES = (0.2, 0.5)
"""Parts of a task's examples that are raced on; the others say what is true."""
MANY = 400
"""With fewer examples the first rung alone is about a quarter of all."""
VAL = 5
"""Each fifth example of a race is val when a backbone is probed in full, as in `run`."""
POOLS = {"cifar": 3000, "fashion": 2400, "elpv_defects": 2223, "elpv_types": 2223, "digits": 1797}


@dataclass(frozen=True)
class Task:
    """A choice of classes of one source of pictures."""

    pictures: str
    tuned: bool
    """Whether changes of the rules were tried on it."""
    classes: tuple[int, ...] = ()
    """Which classes; all when empty."""


TASKS = {
    "cifar10": Task("cifar", True),
    "cifar10 animals": Task("cifar", True, (2, 3, 4, 5, 6, 7)),
    "cifar10 vehicles": Task("cifar", True, (0, 1, 8, 9)),
    "digits": Task("digits", True),
    "fashion": Task("fashion", False),
    "fashion tops": Task("fashion", False, (0, 2, 4, 6)),
    "fashion shoes": Task("fashion", False, (5, 7, 9)),
    "elpv defects": Task("elpv_defects", False),
    "elpv cell types": Task("elpv_types", False),
}


def main() -> None:
    """Compute what is missing, race, then write and print the table."""
    options = _options()
    WORK.mkdir(parents=True, exist_ok=True)
    places = [str(common.SCRATCH.parent / "pip"), os.environ.get("WARMSTART_PACKAGES", "")]
    os.environ["WARMSTART_PACKAGES"] = os.pathsep.join(place for place in places if place)
    rates = {backbone: rate(backbone) for backbone in options.backbones}
    begun, measured = time.perf_counter(), {}
    for name in options.tasks:
        for share in options.shares:
            raced = [Race(name, share, seed, rates).run() for seed in range(options.seeds)]
            measured.setdefault(name, []).extend(judged(raced))
        for one in measured[name]:
            print(f"{time.perf_counter() - begun:5.0f} s  {told(name, one)}", flush=True)
    for line in table(measured):
        print(line)
    parameters = {
        "size": SIZE,
        "shares": [round(share, 3) for share in options.shares],
        "seconds_per_example": rates,
        "tuned": [name for name, task in TASKS.items() if task.tuned],
        "truth": "test accuracy of a full probe (four fifths of the examples to learn, a fifth to choose the "
        "regularisation), on all others of the task, mean over the seeds",
    }
    seeds = list(range(options.seeds))
    print(common.write("race", measured, [], parameters=parameters, seeds=seeds, folder=options.results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=lambda text: tuple(text.split(",")), default=tuple(TASKS))
    parser.add_argument("--backbones", type=lambda text: tuple(text.split(",")), default=scores.BACKBONES)
    parser.add_argument("--shares", type=lambda text: tuple(map(float, text.split(","))), default=SHARES)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    return parser.parse_args()


# Features


@functools.cache
def labels(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a task among its pictures, and their targets 0 … C-1."""
    task = TASKS[name]
    file = WORK / f"labels-{task.pictures}-{POOLS[task.pictures]}.npy"
    if not file.exists():
        np.save(file, scores.PICTURES[task.pictures](POOLS[task.pictures])[1])
    found = np.load(file)
    rows = np.flatnonzero(np.isin(found, task.classes)) if task.classes else np.arange(len(found))
    return rows, np.unique(found[rows], return_inverse=True)[1]


@functools.cache
def features(pictures: str, backbone: str) -> np.ndarray:
    """Return the features of all pictures of a source, computed once."""
    pictures = pictures.replace("types", "defects")  # both tasks of solar cells see the same pictures
    file = WORK / f"{pictures}-{POOLS[pictures]}-{runtime.digest(backbone, SIZE)[:12]}.npy"
    if not file.exists():
        dataset = read.from_arrays(*scores.PICTURES[pictures](POOLS[pictures]))
        network, card = sources.load(backbone)
        found = extract(
            dataset,
            np.arange(len(dataset)),
            backbone=network,
            card=card,
            cut=len(network.layer_groups()),
            transform=transforms.for_eval(card.spec, image_size=_size(backbone)),
            cache=Cache(scores.WORK / "cache"),
            workers=1,
        )
        np.save(file, np.asarray(found.values))
        print(f"        {pictures} by {backbone}: {found.computed} in {found.seconds:.0f} s", flush=True)
    return np.load(file)


def rate(backbone: str) -> float:
    """Return processor seconds per example on one thread, the best of a few batches, measured once."""
    file = WORK / f"rate-{runtime.digest(backbone, SIZE)[:12]}.json"
    if not file.exists():
        import torch

        torch.set_num_threads(1)
        network, size = sources.load(backbone)[0].eval(), _size(backbone)
        batch = torch.zeros(16, 3, size, size).to(memory_format=torch.channels_last)
        seconds = []
        with torch.inference_mode():
            for _ in range(5):
                begun = time.process_time()
                network(batch)
                seconds.append(time.process_time() - begun)
        file.write_text(json.dumps(min(seconds) / len(batch)))
    return float(json.loads(file.read_text()))


def _size(backbone: str) -> int:
    patch = scores.PATCH.get(backbone, 1)
    return -(-SIZE // patch) * patch


# Racing


class Replay(choosing.Course):
    """The course of a race whose features are known and whose seconds are counted."""

    def __init__(self, name: str, rows: np.ndarray, targets: np.ndarray, seed: int, rates: Mapping[str, float]) -> None:
        task = tasks_of(rows, targets)
        recipe = config.set_key(config.Recipe(), "seed", seed)
        cards = [sources.card(backbone) for backbone in rates]
        super().__init__(SimpleNamespace(recipe=recipe), task, cards)  # type: ignore[arg-type]
        self.name, self.rows, self.targets, self.rates = name, rows, targets, rates
        self.done: dict[str, int] = {}

    def _entrants(self, card: Card, num_rungs: int) -> list[race.Entrant]:
        self.by_name[card.name] = (card, SIZE)
        return [race.Entrant(card.name, catalogue.prior(card), choosing.work(card, SIZE))]

    def measure(self, entrant: race.Entrant, n: int) -> race.Measured:
        """Solve the heads on known features, and count the examples that are new."""
        outputs = kept(self.key(entrant.name, n), lambda: self.out_of_fold(entrant.name, n))
        rows = self.order[:n]
        task, dataset = self.data.task, self.data.dataset
        values = tasks.values(task, outputs)
        found = tasks.Predictions(outputs, values, rows, dataset.targets[rows], None)  # type: ignore[index]
        new, self.done[entrant.name] = n - self.done.get(entrant.name, 0), n
        rate = self.rates[entrant.name]
        return race.Measured(found, tune.point(self.data, found), new * rate, rate)

    def key(self, backbone: str, n: int) -> str:
        """Name the head of a backbone on the first n examples."""
        return runtime.digest(self.name, backbone, self.rows[self.order[:n]].tobytes(), self.fold[:n].tobytes())

    def out_of_fold(self, backbone: str, n: int) -> np.ndarray:
        """Predict the first n examples, each by a head that has not seen it."""
        fold = self.fold[:n]
        folds = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(choosing.NUM_FOLDS)]
        return self.solve(backbone, self.order[:n], folds).out_of_fold

    def solve(self, backbone: str, rows: np.ndarray, folds: Sequence[heads.Fold]) -> heads.Solved:
        """Solve heads on features that are known."""
        found = features(TASKS[self.name].pictures, backbone)[self.rows[rows]]
        columns = self.data.task.soft_targets(self.targets[rows])
        return heads.solve("softmax", found, columns, train=folds[0][0], folds=folds)


def tasks_of(rows: np.ndarray, targets: np.ndarray) -> Prepared:
    """Return data whose train is all there is; its pictures are not needed, since their features are known."""
    dataset = tasks.cast(read.from_arrays([b""] * len(rows), targets=targets), "classification")
    from warmstart.tasks.classification import Classification

    task = Classification().bind(dataset)
    splits = Splits(np.arange(len(rows)), np.arange(0), np.arange(0), "")
    return Prepared(dataset, splits, None, task, "classification", task.targets(dataset), None)  # type: ignore[arg-type]


def kept(key: str, compute: object) -> np.ndarray:
    """Return an array that was computed before, or compute and keep it."""
    file = WORK / "heads" / f"{key[:20]}.npy"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        np.save(file, compute())  # type: ignore[operator]
    return np.load(file)


@dataclass(frozen=True)
class Race:
    """One race: a task, the share of it that is raced on, and the seed of order and split."""

    task: str
    share: float
    seed: int
    rates: Mapping[str, float]

    def split(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return positions within the task's rows to race on and to test on, and the targets of all."""
        _, targets = labels(self.task)
        order = runtime.rng(self.seed, "race benchmark", self.task).permutation(len(targets))
        num = round(self.share * len(targets))
        return np.sort(order[:num]), np.sort(order[num:]), targets

    def run(self) -> Raced:
        """Race, and probe everybody."""
        raced, fresh, targets = self.split()
        rows, _ = labels(self.task)
        course = Replay(self.task, rows[raced], targets[raced], self.seed, self.rates)
        truth, exhaustive = self.truths(course, fresh)
        cost = len(raced) * sum(self.rates.values())
        return Raced(course.run(1.0), truth, exhaustive, cost, len(raced), len(fresh), self.seed)

    def truths(self, course: Replay, fresh: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
        """Return what is true of each backbone, and what probing all of them fully says."""
        rows, targets = labels(self.task)
        truth, exhaustive = {}, {}
        for backbone in self.rates:

            def compute(backbone: str = backbone) -> np.ndarray:
                num = len(course.order)
                val = np.arange(num) % VAL == 0  # the order has the classes in proportion
                folds = [(np.flatnonzero(~val), np.flatnonzero(val))]
                solved = course.solve(backbone, course.order, folds)
                outputs = solved.outputs(features(TASKS[self.task].pictures, backbone)[rows[fresh]])
                right = solved.out_of_fold[val].argmax(axis=1) == course.targets[course.order][val]
                return np.array([(outputs.argmax(axis=1) == targets[fresh]).mean(), right.mean()])

            found = kept(f"p{course.key(backbone, len(course.order))}", compute)
            truth[backbone], exhaustive[backbone] = float(found[0]), float(found[1])
        return truth, exhaustive


@dataclass(frozen=True)
class Raced:
    """What one race came to, and what probing everybody would have."""

    outcome: race.Outcome
    tested: Mapping[str, float]
    """Accuracy of each backbone's full probe on the examples that nobody has seen."""
    exhaustive: Mapping[str, float]
    """Accuracy of each backbone's full probe on its own val."""
    cost: float
    """Seconds of probing everybody."""
    train: int
    test: int
    seed: int


def judged(races: Sequence[Raced]) -> Iterator[common.Measured]:
    """Compare races that differ by their seed alone with the truth, which is the mean over those seeds."""
    from scipy.stats import weightedtau

    names = list(races[0].tested)
    truth = {name: statistics.mean(one.tested[name] for one in races) for name in names}
    priors = {name: catalogue.prior(sources.card(name)) for name in names}
    behind = min(prior for prior in priors.values() if prior is not None) - 1
    guess = {name: behind if (prior := priors[name]) is None else prior for name in names}

    def tau(said: Mapping[str, float]) -> float:
        return float(weightedtau([truth[name] for name in names], [said[name] for name in names]).statistic)

    def regret(pick: str) -> float:
        return max(truth.values()) - truth[pick]

    for one in races:
        order = {s.entrant.name: -float(place) for place, s in enumerate(one.outcome.standings)}
        spent = sum(s.seconds for s in one.outcome.standings)
        pick, whole = one.outcome.pick.entrant.name, max(names, key=lambda name: one.exhaustive[name])
        facts: dict[str, object] = {
            "train": one.train,
            "test": one.test,
            "seed": one.seed,
            "regret": regret(pick),
            "regret_of_probing_all": regret(whole),
            "regret_to_probing_all": truth[whole] - truth[pick],
            "regret_of_prior": regret(max(names, key=lambda name: guess[name])),
            "cost_share": spent / one.cost,
            "tau": tau(order),
            "tau_of_probing_all": tau(one.exhaustive),
            "tau_of_prior": tau(guess),
            "pick": pick,
            "best": max(names, key=lambda name: truth[name]),
            "picked_by_probing_all": whole,
            "reason": one.outcome.reason,
            "leaderboard": {
                s.entrant.name: [s.n, round(s.measured.value, 4) if s.measured else None] for s in one.outcome.standings
            },
            "truth": {name: round(value, 4) for name, value in truth.items()},
        }
        yield common.Measured(spent, facts=facts)


# The table


def told(name: str, one: common.Measured) -> str:
    """Say how one race went, in a line."""
    facts = one.facts
    short = {key: str(facts[key]).rpartition("/")[2] for key in ("pick", "best", "picked_by_probing_all")}
    return (
        f"{name:16} {facts['train']:5} seed {facts['seed']}  regret {100 * common.value(one, 'regret'):4.1f} "
        f"({100 * common.value(one, 'regret_of_probing_all'):.1f})  cost {common.value(one, 'cost_share'):.2f}  "
        f"tau {common.value(one, 'tau'):.2f}/{common.value(one, 'tau_of_prior'):.2f}  {short}"
    )


def table(measured: Mapping[str, Sequence[common.Measured]]) -> Iterator[str]:
    """Draw the table in Markdown: each task, then both halves, those with many examples, and all."""
    yield (
        "| task | examples | races | regret of the race (worst) | of probing all | of the prior | cost "
        "| τ of the race | of probing all | of the prior |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, runs in measured.items():
        for size in sorted({common.value(run, "train") for run in runs}, reverse=True):
            yield _line(name, [run for run in runs if run.facts["train"] == size])
    halves = {True: "**tried on**", False: "**held back**"}
    for half, title in halves.items():
        if runs := [run for name, runs in measured.items() if TASKS[name].tuned is half for run in runs]:
            yield _line(title, runs)
    many = [run for runs in measured.values() for run in runs if common.value(run, "train") >= MANY]
    if many:
        yield _line(f"**{MANY} examples and more**", many)
    yield _line("**all**", [run for runs in measured.values() for run in runs])


def _line(name: str, runs: Sequence[common.Measured]) -> str:
    def mean(what: str, factor: float = 1.0) -> float:
        return factor * statistics.mean(common.value(run, what) for run in runs)

    sizes = sorted({int(common.value(run, "train")) for run in runs})
    worst = 100 * max(common.value(run, "regret") for run in runs)
    return (
        f"| {name} | {sizes[0] if len(sizes) == 1 else f'{sizes[0]} to {sizes[-1]}'} | {len(runs)} "
        f"| {mean('regret', 100):.2f} ({worst:.1f}) | {mean('regret_of_probing_all', 100):.2f} "
        f"| {mean('regret_of_prior', 100):.2f} | {mean('cost_share'):.0%} "
        f"| {mean('tau'):.2f} | {mean('tau_of_probing_all'):.2f} | {mean('tau_of_prior'):.2f} |"
    )


if __name__ == "__main__":
    main()
