"""What still fits the budget: measured steps, not rules of thumb."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from warmstart import tune
from warmstart.bench import Feed
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.tune import Candidate, Trial

TIMED_STEPS = 4
SPARE = 0.9
"""Share of what is left that a plan may fill: forecasts err, and the budget is a deadline."""
REPORT_SECONDS = 8.0
STARTING_SECONDS = 1.5
"""What it takes to build a network and solve its head before a fit begins."""


@dataclass(frozen=True)
class Pace:
    """How fast a candidate learns, in seconds."""

    fill: float
    """To compute the frozen prefix of all training examples; 0 when nothing is frozen."""
    example: float
    """To learn from one example."""
    num_train: int
    num_val: int

    @property
    def epoch(self) -> float:
        """Return the seconds of an epoch with its validation, whose forward passes cost a third of learning."""
        return self.example * (self.num_train + self.num_val / 3)

    def epochs(self, seconds: float, fits: int) -> int:
        """Return how many epochs fit, when every fit gets its share."""
        return max(0, math.floor((seconds / fits - self.fill) / self.epoch))

    def seconds(self, epochs: int, fits: int) -> float:
        """Return what so many epochs take."""
        return fits * (self.fill + epochs * self.epoch)

    def examples(self, seconds: float, *, num_val: int) -> int:
        """Return how many examples a short trial can learn from when it is judged on `num_val` others."""
        return max(0, math.floor((seconds - STARTING_SECONDS) / self.example - num_val / 3))


def pace(session: Session, data: Prepared, candidate: Candidate) -> Pace:
    """Measure how fast a candidate learns."""
    fill, example = measure(session, data, candidate)
    return Pace(fill, example, len(data.splits.train), len(data.splits.val))


def measure(session: Session, data: Prepared, candidate: Candidate) -> tuple[float, float]:
    """Time a few real steps of the real loop, on a throw-away copy in a throw-away folder.

    Returns:
        Seconds to fill the cache with the prefix, and seconds to learn from one example.
    """
    with session.stage("plan"), tempfile.TemporaryDirectory() as scratch:
        ready = tune.build(session, data, candidate)
        rows = data.splits.train[: TIMED_STEPS * session.recipe.batch_size]
        feed = Feed.open(ready.place, ready.model, ready.groups, rows, rows[:0])
        ticks = [time.perf_counter()]
        from warmstart.fit import FitConfig  # it brings torch, which a run on known features does without

        config = FitConfig(epochs=1, optim=session.recipe.optim, micro_batch=session.recipe.micro_batch)
        tune.loop(ready, feed, config, Path(scratch), on_step=lambda _: ticks.append(time.perf_counter()))
    step = float(np.median(np.diff(ticks[1:]))) if len(ticks) > 2 else ticks[-1] - ticks[0]
    per_example = step / min(len(rows), session.recipe.batch_size)
    fill = sum(view.seconds / max(view.computed, 1) for view in feed.views) * len(data.seen)
    return fill, per_example


def closing_seconds(data: Prepared, probe: Trial) -> float:
    """Forecast what comes after the trials: the kept model on val and test, and the report."""
    return REPORT_SECONDS + _seconds_per_image(probe) * (len(data.splits.test) + len(data.splits.val))


def _seconds_per_image(trial: Trial) -> float:
    computed = sum(one.computed for one in trial.extracted)
    seconds = sum(one.seconds for one in trial.extracted)
    return seconds / computed if computed else 0.01
