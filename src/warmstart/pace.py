"""How fast a candidate learns, and what the end of a command takes: what plans are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from warmstart import extract
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.tune import Candidate, Trial

SPARE = 0.9
"""Share of what is left that a plan may fill: forecasts err, and the budget is a deadline."""
REPORT_SECONDS = 8.0
CACHED_SECONDS = 0.01
"""What an example is taken to cost where all of them were in the cache and nothing was measured."""
STARTING_SECONDS = 1.5
"""What it takes to build a network and solve its head before a fit begins."""


@dataclass(frozen=True)
class Pace:
    """How fast a candidate learns, in seconds, and whether its memory suffices."""

    fill: float
    """To compute the frozen prefix of all training examples; 0 when nothing is frozen."""
    example: float
    """To learn from one example."""
    num_train: int
    num_val: int
    micro_batch: int | None = None
    """Examples per forward pass where a whole batch does not fit the memory."""
    refused: str = ""
    """Why it does not fit the memory at all."""

    @property
    def epoch(self) -> float:
        """Return the seconds of an epoch with its validation, whose forward passes cost a third of learning."""
        return self.example * (self.num_train + self.num_val / 3)

    def epochs(self, seconds: float, fits: int) -> int:
        """Return how many epochs fit, when every fit gets its share."""
        return 0 if self.refused else max(0, math.floor((seconds / fits - self.fill) / self.epoch))

    def seconds(self, epochs: int, fits: int) -> float:
        """Return what so many epochs take."""
        return fits * (self.fill + epochs * self.epoch)

    def examples(self, seconds: float, *, num_val: int) -> int:
        """Return how many examples a short trial can learn from when it is judged on `num_val` others."""
        return max(0, math.floor((seconds - STARTING_SECONDS) / self.example - num_val / 3))


def measured(session: Session, data: Prepared, candidate: Candidate) -> Pace:
    """Forecast how fast a candidate learns, from a profile of its backbone that is measured once."""
    from warmstart import forecast, planning

    own = session.with_values(candidate.settings)
    load = replace(planning.load(own, data, planning.limits(own)), epochs=1, num_fits=1)
    with session.stage("plan"):
        profile = forecast.profile(own, data, candidate.backbone, candidate.image_size)
        cost = forecast.cost(profile, candidate.strategy, load)
    example = cost.epoch_seconds / (load.num_train + load.num_val / 3)
    micro_batch = cost.micro_batch if cost.micro_batch < load.batch_size else None
    return Pace(cost.fill_seconds, example, load.num_train, load.num_val, micro_batch, cost.reason)


def closing_seconds(data: Prepared, probe: Trial) -> float:
    """Forecast what comes after the trials: the kept model on val and test, and the report."""
    rate = extract.seconds_per_example(probe.extracted)
    return REPORT_SECONDS + (CACHED_SECONDS if rate is None else rate) * (len(data.splits.test) + len(data.splits.val))
