"""What still fits the budget: measured steps, not rules of thumb."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import numpy as np

from warmstart import tune
from warmstart.bench import Feed
from warmstart.config import Choice
from warmstart.fit import FitConfig
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.tune import MAX_EPOCHS, Candidate, Trial

MIN_EPOCHS = 1
"""One epoch of LP-FT over all layers already beat its probe by five points on CIFAR-10 (docs/decisions/0001)."""
TIMED_STEPS = 4
SPARE = 0.9
"""Share of what is left that a plan may fill: forecasts err, and the budget is a deadline."""
REPORT_SECONDS = 8.0


def second_trial(session: Session, data: Prepared, probe: Trial) -> tuple[Candidate | None, str]:
    """Plan LP-FT into what the budget leaves: all layers if their epochs fit, else as many of the last as do.

    Returns:
        The candidate, or None, and the reason. `epochs` is decided along the way.
    """
    value, reason = session.remember("second trial", lambda: _plan(session, data, probe))
    session.closing_seconds = _closing_seconds(data, probe)
    session.planned_seconds = session.seconds() + session.closing_seconds
    if value is None:
        return None, reason
    assert isinstance(value, dict)
    session.planned_seconds += float(value["seconds"])
    session.decide("epochs", lambda: (value["epochs"], reason))
    session.planned["fit"] = float(value["seconds"])
    options = {**value["options"], **session.recipe.strategy.options}
    return Candidate(probe.candidate.backbone, probe.candidate.image_size, Choice(value["strategy"], options)), reason


def _plan(session: Session, data: Prepared, probe: Trial) -> tuple[object, str]:
    name = session.recipe.strategy.name or "lp_ft"
    if name == "probe":
        return None, "the recipe asks for a probe"
    left = SPARE * (session.seconds_left() - _closing_seconds(data, probe))
    fits = len(data.splits.folds) + 1
    tried = []
    for depth in _depths(session, name):
        options = {} if depth is None else {"depth": depth}
        candidate = Candidate(probe.candidate.backbone, probe.candidate.image_size, Choice(name, options))
        fill, epoch = measure(session, data, candidate)
        epochs = session.recipe.epochs or min(MAX_EPOCHS, math.floor((left / fits - fill) / epoch))
        what = "all layers" if depth is None else f"the last {depth} layer groups"
        if epochs >= MIN_EPOCHS or session.recipe.epochs:
            seconds = fits * (fill + epochs * epoch)
            reason = f"{what}: {epoch:.1f} s an epoch, {epochs} epochs fit {left:.0f} s"
            return {"strategy": name, "options": options, "epochs": epochs, "seconds": seconds}, reason
        tried.append(f"{what} {max(epochs, 0)}")
    return None, f"the budget leaves {max(left, 0):.0f} s, room for too few epochs (of {'; of '.join(tried)})"


def _depths(session: Session, name: str) -> tuple[int | None, ...]:
    given = session.recipe.strategy.options.get("depth")
    return (None, 4, 2, 1) if name == "lp_ft" and given is None else (None,)


def measure(session: Session, data: Prepared, candidate: Candidate) -> tuple[float, float]:
    """Time a few real steps of the real loop, on a throw-away copy in a throw-away folder.

    Returns:
        Seconds to fill the cache with the prefix, and seconds of an epoch with its validation.
    """
    with session.stage("plan"), tempfile.TemporaryDirectory() as scratch:
        ready = tune.build(session, data, candidate)
        rows = data.splits.train[: TIMED_STEPS * session.recipe.batch_size]
        feed = Feed.open(ready.place, ready.model, ready.groups, rows, rows[:0])
        ticks = [time.perf_counter()]
        config = FitConfig(epochs=1, optim=session.recipe.optim, micro_batch=session.recipe.micro_batch)
        tune.loop(ready, feed, config, Path(scratch), on_step=lambda _: ticks.append(time.perf_counter()))
    step = float(np.median(np.diff(ticks[1:]))) if len(ticks) > 2 else ticks[-1] - ticks[0]
    per_example = step / min(len(rows), session.recipe.batch_size)
    fill = sum(view.seconds / max(view.computed, 1) for view in feed.views) * len(data.seen)
    return fill, per_example * (len(data.splits.train) + len(data.splits.val) / 3)


def _closing_seconds(data: Prepared, probe: Trial) -> float:
    """Forecast what comes after the trials: the kept model on val and test, and the report."""
    return REPORT_SECONDS + _seconds_per_image(probe) * (len(data.splits.test) + len(data.splits.val))


def _seconds_per_image(trial: Trial) -> float:
    computed = sum(one.computed for one in trial.extracted)
    seconds = sum(one.seconds for one in trial.extracted)
    return seconds / computed if computed else 0.01
