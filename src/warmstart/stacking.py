"""Which stacks are worth a probe: backbones that the race looked at, side by side, where their features cost little.

Stacked features are a probe like any other: one head solved on what is cached already. A stack answers more slowly than
one backbone, by the sum of their multiply-adds, so it is kept only when it is better on val by the paired interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from warmstart import bench, choosing, sources
from warmstart.choosing import Chosen, Row
from warmstart.config import Choice
from warmstart.models import Part, parts
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.tune import Candidate, Trial

SHARE = 0.1
"""Share of what is left that missing features and the heads may take together."""
MOST = 3
"""Backbones in a stack."""


def candidates(session: Session, data: Prepared, chosen: Chosen, trials: Sequence[Trial]) -> Iterator[Candidate]:
    """Yield a stack of two, and one of three when two were better than one.

    Args:
        session: The command at work.
        data: Train and val are looked at; features of test are computed when a stack is the best so far.
        chosen: What the race came to.
        trials: What was tried so far; the caller appends each trial before it asks again.
    """
    members = _members(session, data, chosen, trials)
    for count in range(2, len(members) + 1):
        candidate = stack(members[:count])
        yield candidate
        best, _ = choosing.pick(session, data, list(trials))
        if best.candidate != candidate:
            return
        with session.part(f"features of {count} backbones"):
            place = bench.load(session, data, candidate.backbone, candidate.image_size)
            place.values(data.everything, place.num_groups, place.plain())  # now, so that no later plan forgets them


def stack(members: Sequence[tuple[str, int]]) -> Candidate:
    """Return a probe on several backbones, each at its input size."""
    return Candidate(parts.spell(members), max(size for _, size in members), Choice("probe"))


def is_stack(trial: Trial) -> bool:
    """Say whether a trial is on several backbones."""
    return bool(parts.parse(trial.candidate.backbone))


def _members(session: Session, data: Prepared, chosen: Chosen, trials: Sequence[Trial]) -> list[tuple[str, int]]:
    """Choose backbones, the pick first, then the best of the leaderboard that are affordable; remembered by the run."""

    def decide() -> tuple[object, str]:
        left, spent = SHARE * session.seconds_left(), 0.0
        heads = sum(trial.seconds - sum(one.seconds for one in trial.extracted) for trial in trials) / len(trials)
        found: list[Row] = []
        for row in _best_of_each(chosen):
            seconds = missing(data, row, trials) + (len(found) + 1) * heads if found else 0.0
            fits = len(found) < MOST and spent + seconds <= left
            if not found or (fits and _allowed(session, [*found, row])):
                found.append(row)
                spent += seconds
        told = f"features and heads of {len(found)} take about {spent:.1f} s of {left:.1f} s"
        return [[row.backbone, row.input_size] for row in found], told

    known, _ = session.remember("stack", decide)
    assert isinstance(known, list)
    return [(str(name), int(size)) for name, size in known]


def _best_of_each(chosen: Chosen) -> list[Row]:
    """Return the measured lines of the leaderboard, the pick first, each backbone once."""
    pick = (chosen.candidate.backbone, chosen.candidate.image_size)
    rows = sorted(chosen.leaderboard, key=lambda row: (row.backbone, row.input_size) != pick)
    found: dict[str, Row] = {}
    for row in rows:
        if row.value is not None:
            found.setdefault(row.backbone, row)
    return list(found.values())


def missing(data: Prepared, row: Row, trials: Sequence[Trial]) -> float:
    """Forecast the seconds that features of all examples still take."""
    tried = {(trial.candidate.backbone, trial.candidate.image_size) for trial in trials}
    known = len(data.seen) if (row.backbone, row.input_size) in tried else row.n
    return (len(data.everything) - known) * (math.inf if row.seconds_per_example is None else row.seconds_per_example)


def _allowed(session: Session, rows: Sequence[Row]) -> bool:
    """Say whether a stack keeps the limit on parameters that the recipe sets."""
    limit = session.recipe.max_params
    if limit is None:
        return True
    found = parts.joined("", [Part(sources.card(row.backbone), row.input_size) for row in rows])
    return found.num_params is not None and found.num_params <= limit
