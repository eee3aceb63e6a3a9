"""Do 95 % intervals hold the truth 95 % of the time, and how often does a model beat its equal?

Run `python benchmarks/coverage.py`; it takes about five minutes on one idle core and writes
results/coverage.json.
Test sets are drawn, stratified as our splits are, from populations whose true metrics are computed on 300,000 examples.
Two models are equal when their outputs are exchangeable; their errors share a part, as those of real models do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from warmstart import metrics, runtime
from warmstart.comparing import paired
from warmstart.data import TargetKind
from warmstart.evaluation import metrics as evaluated
from warmstart.tasks import Predictions, Task
from warmstart.tasks.classification import Classes
from warmstart.tasks.regression import Numbers

SIZES = (100, 300, 1000)
SHARES = np.array([0.5, 0.3, 0.2])
POPULATION = 300_000
RESAMPLES = 300
SHARED = np.sqrt(0.5)
CLASSES = Classes("single", ("a", "b", "c"))
LABELS = Classes("multi", ("a", "b", "c"))
NUMBERS = Numbers("scalar", (), (0.0,), (1.0,))
Draw = Callable[[np.random.Generator, int], tuple[Predictions, Predictions]]


@dataclass(frozen=True)
class Story:
    """A population, a task on it, and the metrics that are looked at."""

    name: str
    task: Task
    draw: Draw
    intervals: tuple[str, ...]
    compared: tuple[str, ...]


def classes(margin: float, *, group_size: int = 1) -> Draw:
    """Return a population of three classes; members of a group share half of their noise."""

    def draw(rng: np.random.Generator, num: int) -> tuple[Predictions, Predictions]:
        targets = np.repeat(np.arange(3), (SHARES * num).astype(int))
        groups = np.arange(len(targets)) // group_size
        own = noise(rng, (3, len(targets), 3), groups if group_size > 1 else None)
        outputs = [1.5 * (SHARED * own[0] + SHARED * own[k]) + margin * np.eye(3)[targets] for k in (1, 2)]
        sides = [np.exp(o - o.max(axis=1, keepdims=True)) for o in outputs]
        a, b = (packed(side / side.sum(axis=1, keepdims=True), targets, groups, group_size) for side in sides)
        return a, b

    return draw


def labels(rng: np.random.Generator, num: int) -> tuple[Predictions, Predictions]:
    """Draw three labels of different frequency."""
    targets = rng.random((num, 3)) < SHARES
    own = noise(rng, (3, num, 3), None)
    outputs = [1.5 * SHARED * (own[0] + own[k]) + 3.0 * (targets - 0.5) for k in (1, 2)]
    a, b = (packed(1 / (1 + np.exp(-o)), targets, np.arange(num), 1) for o in outputs)
    return a, b


def numbers(rng: np.random.Generator, num: int) -> tuple[Predictions, Predictions]:
    """Draw numbers predicted with normal errors of half the targets' spread."""
    targets = rng.normal(size=num)
    own = noise(rng, (3, num), None)
    a, b = (packed((targets + 0.5 * SHARED * (own[0] + own[k]))[:, None], targets, np.arange(num), 1) for k in (1, 2))
    return a, b


def noise(rng: np.random.Generator, shape: tuple[int, ...], groups: np.ndarray | None) -> np.ndarray:
    """Draw unit noise, half of it shared within groups."""
    own = rng.normal(size=shape)
    if groups is None:
        return own
    common = rng.normal(size=(shape[0], int(groups.max()) + 1, *shape[2:]))
    return SHARED * own + SHARED * common[:, groups]


def packed(values: np.ndarray, targets: np.ndarray, groups: np.ndarray, group_size: int) -> Predictions:
    """Make predictions of arrays."""
    return Predictions(values, values, np.arange(len(targets)), targets, groups if group_size > 1 else None)


SINGLE = (
    "accuracy", "balanced_accuracy", "precision_macro", "f1_macro",
    "auroc", "average_precision", "log_loss", "brier", "ece",
)  # fmt: skip
SINGLE_COMPARED = ("accuracy", "f1_macro", "log_loss")
STORIES = (
    Story("classes, accuracy 0.73", CLASSES, classes(2.0), SINGLE, SINGLE_COMPARED),
    Story("classes, accuracy 0.98", CLASSES, classes(5.0), SINGLE, SINGLE_COMPARED),
    Story("classes in groups of 5", CLASSES, classes(3.3, group_size=5), SINGLE, SINGLE_COMPARED),
    Story(
        "labels", LABELS, labels,
        ("average_precision", "auroc", "f1_micro", "f1_macro", "subset_accuracy", "hamming_loss"),
        ("average_precision", "f1_micro", "subset_accuracy"),
    ),
    Story("numbers", NUMBERS, numbers, ("mse", "rmse", "mae", "r2", "spearman"), ("rmse", "mae", "spearman")),
)  # fmt: skip


def truth(story: Story) -> dict[str, float]:
    """Return the metrics of the population."""
    everybody, _ = story.draw(runtime.rng(0, "population", story.name), POPULATION)
    assert everybody.targets is not None
    kind: TargetKind = story.task.kind
    found = metrics.measure(kind, everybody.values, everybody.targets, only=story.intervals)(np.ones((POPULATION, 1)))
    return {name: float(value[0]) for name, value in found.items()}


def coverage(story: Story, num: int, simulations: int) -> dict[str, dict[str, float]]:
    """Count how often each interval holds the truth, and how wide it is."""
    true = truth(story)
    held = dict.fromkeys(story.intervals, 0)
    width = dict.fromkeys(story.intervals, 0.0)
    for sample, seed in samples(story, num, simulations):
        for metric in evaluated(
            story.task, sample[0], split="test", seed=seed, resamples=RESAMPLES, only=story.intervals
        ):
            held[metric.name] += metric.low <= true[metric.name] <= metric.high
            width[metric.name] += metric.high - metric.low
    return {
        name: {"true": true[name], "covered": held[name] / simulations, "mean_width": width[name] / simulations}
        for name in story.intervals
    }


def false_wins(story: Story, num: int, simulations: int) -> dict[str, dict[str, float]]:
    """Count how often, of two equal models, the first is said to be better, and how often either."""
    verdicts: dict[str, list[str]] = {name: [] for name in story.compared}
    for (a, b), seed in samples(story, num, simulations):
        for name in story.compared:
            found = paired(story.task, a, b, metric=name, seed=seed, resamples=RESAMPLES)
            verdicts[name].append(found.verdict)
    return {
        name: {"a": seen.count("a") / simulations, "either": 1 - seen.count("tie") / simulations}
        for name, seen in verdicts.items()
    }


def samples(story: Story, num: int, simulations: int) -> Iterator[tuple[tuple[Predictions, Predictions], int]]:
    """Draw the test sets of a story."""
    for seed in range(simulations):
        yield story.draw(runtime.rng(seed, story.name, num), num), seed


def main() -> None:
    """Run all stories and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    chosen = parser.parse_args()
    started = time.perf_counter()
    rows = []
    for story in STORIES:
        for num in SIZES:
            intervals = coverage(story, num, chosen.simulations)
            wins = false_wins(story, num, chosen.simulations)
            rows.append({"story": story.name, "n": num, "intervals": intervals, "false_wins": wins})
            shown = {name: cell["covered"] for name, cell in intervals.items()}
            print(
                f"{story.name}, n = {num}: {shown}, false wins {wins}, {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    result = {
        "what": "share of 95 % intervals that hold the truth; share of equal pairs in which one is said to be better",
        "simulations": chosen.simulations,
        "standard_error": round(float(np.sqrt(0.95 * 0.05 / chosen.simulations)), 4),
        "resamples": RESAMPLES,
        "seconds": round(time.perf_counter() - started, 1),
        "environment": runtime.environment(),
        "rows": rows,
    }
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
