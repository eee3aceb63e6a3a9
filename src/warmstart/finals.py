"""The finals: which strategy, which layers and which learning rate, by short trials on val; then the best in earnest.

What the race could not tell apart is probed in full first. From the best probe's solution, the gradients say which
layer groups want to move (relative gradient norm, Lee et al., 2022, arXiv 2210.11466, eq. 3), which gives the depths
that are tried. Short trials get equal time, since time is what is scarce; each is a whole fit with its own schedule on
fewer examples, so a short trial ranks what a long one would. Then the best runs as long as the budget allows.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from warmstart import choosing, comparing, config, pace, stacking, tune
from warmstart.choosing import Chosen
from warmstart.config import Choice, Decision
from warmstart.errors import WarmstartError
from warmstart.pace import Pace
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.tasks import Predictions
from warmstart.tune import MAX_EPOCHS, Candidate, Trial

log = logging.getLogger(__name__)

MIN_EPOCHS = 1
"""One epoch of LP-FT over all layers already beat its probe by five points on CIFAR-10 (docs/decisions/0001)."""
ENOUGH_EPOCHS = 6
"""Where the usual strategy gets fewer epochs in than this, each is worth more than trying things out
(docs/decisions/0340)."""
EXPLORE = 0.25
"""Share of what is left that short trials may take."""
FEWEST_STEPS = 12
"""Fewer steps than this say nothing of a strategy; the first that fits is taken then."""
NUM_VAL = 500
"""Examples of val that short trials are judged on, at most."""
RIVAL_SHARE = 0.1
"""Share of what is left that probing a rival in full may take."""
NUM_RIVALS = 2
MOVING = 0.6
"""The depth tried beside all and one is that of the last groups which hold this share of the relative gradient."""
FIRST_SHARE = 0.4
"""Share of what is left that the planned fit may take when a search is asked for, which wants as much for its own."""
RATES = (1 / 3, 3.0)
"""Learning rates tried beside the usual one, as multiples of it."""
PLAN = "finals"
SHORT = "short-"
"""What the names of short fits begin with."""


@dataclass(frozen=True)
class Short:
    """One short trial, for the report."""

    name: str
    """Strategy and options."""
    lr: float
    examples: int
    """Training examples that it saw, repetitions counted."""
    value: float
    seconds: float
    verdict: str
    """Against the best of its round."""
    candidate: Candidate | None = None
    """What was tried, for a search to go on from."""


@dataclass(frozen=True)
class Plan:
    """What is to be fitted in earnest, and the evidence for it."""

    candidate: Candidate | None
    reason: str
    seconds: float = 0.0
    shorts: tuple[Short, ...] = ()
    gradients: Mapping[str, float] = field(default_factory=dict)
    """Relative gradient norm of each layer group at the probe's solution; empty where it was not needed."""


def candidates(session: Session, data: Prepared, chosen: Chosen, trials: Sequence[Trial]) -> Iterator[Candidate]:
    """Yield what is worth a full trial next; the caller appends each trial to `trials` before it asks again.

    Args:
        session: The command at work.
        data: Train and val are looked at.
        chosen: What the race came to.
        trials: What was tried so far, the probe of the pick first.
    """
    from warmstart import search  # it goes on from here

    searches = search.available(session)
    for rival in chosen.finalists[:NUM_RIVALS]:
        if _affords_probe(session, data, chosen, rival):
            yield rival
    yield from stacking.candidates(session, data, chosen, trials)
    singles = [trial for trial in trials if not stacking.is_stack(trial)]
    if not singles:  # a stack was asked for by name, and is only probed; another strategy is refused
        if session.recipe.strategy.name not in (None, "probe"):
            yield replace(trials[0].candidate, strategy=session.recipe.strategy)
        return
    best, _ = choosing.pick(session, data, singles)
    with session.part("finals"):
        found = planned(session, data, best)
    if found.candidate is None:
        return
    yield found.candidate
    if not searches:
        return
    with session.part("search"):
        further = search.suggest(session, data, found, trials)
    if further is not None:
        yield further


def _affords_probe(session: Session, data: Prepared, chosen: Chosen, rival: Candidate) -> bool:
    """Say whether a rival's features of train and val cost little of what is left; remembered by the run."""
    row = next(r for r in chosen.leaderboard if (r.backbone, r.input_size) == (rival.backbone, rival.image_size))
    seconds = (row.seconds_per_example or math.inf) * len(data.seen)

    def decide() -> tuple[bool, str]:
        left = session.seconds_left()
        return seconds <= RIVAL_SHARE * left, f"its probe would take {seconds:.0f} s of {left:.0f} s"

    return bool(session.remember(f"probe of {rival.backbone}", decide)[0])


def planned(session: Session, data: Prepared, base: Trial) -> Plan:
    """Decide what to fit in earnest on the best probe's backbone, or that nothing fits; remembered by the run."""
    session.remember(PLAN, lambda: _decided(session, data, base))
    found = told(session)
    assert found is not None
    forget_fits(session, SHORT)
    what = "nothing" if found.candidate is None else named(found.candidate)
    session.decisions.append(Decision("what to fit", what, found.reason))
    session.closing_seconds = pace.closing_seconds(data, base)
    session.planned_seconds = session.seconds() + session.closing_seconds + found.seconds
    if found.candidate is not None:
        session.planned["fit"] = found.seconds
    return found


def told(session: Session) -> Plan | None:
    """Return what this run planned; None when it has not come to that."""
    known = session.folder.stage(f"decide {PLAN}")
    if known is None:
        return None
    value: Any = known["value"]
    candidate, shorts = thawed(value["candidate"]), tuple(thawed_short(short) for short in value["shorts"])
    return Plan(candidate, str(known["reason"]), float(value["seconds"]), shorts, value["gradients"])


def thawed(value: dict[str, Any] | None) -> Candidate | None:
    """Read a candidate back."""
    return None if value is None else Candidate(**{**value, "strategy": Choice(**value["strategy"])})


def thawed_short(value: dict[str, Any]) -> Short:
    """Read a short trial back."""
    return Short(**{**value, "candidate": thawed(value["candidate"])})


def _decided(session: Session, data: Prepared, base: Trial) -> tuple[object, str]:
    found = _Contest(session, data, base).plan()
    return asdict(found), found.reason


@dataclass
class _Contest:
    """Short trials from one backbone's probe."""

    session: Session
    data: Prepared
    base: Trial
    shorts: list[Short] = field(default_factory=list)
    moving: dict[str, float] = field(default_factory=dict)

    def plan(self) -> Plan:
        """Find who fits, let them try, and give the best what is left."""
        if self.session.recipe.strategy.name == "probe":
            return Plan(None, "the recipe asks for a probe")
        left = self.left()
        fitting, refused = self.fitting(left)
        if not fitting:
            tried = "; of ".join(refused)
            return Plan(None, f"the budget leaves {max(left, 0):.0f} s, room for too few epochs (of {tried})")
        best, speed, why = self.explore(fitting, EXPLORE * left)
        left = self.left() * (FIRST_SHARE if self.session.recipe.search.asked else 1.0)
        epochs = self.given_epochs or max(1, min(MAX_EPOCHS, speed.epochs(left, self.fits)))
        memory = {} if speed.micro_batch is None else {"micro_batch": speed.micro_batch}
        candidate = replace(best, settings={**best.settings, **memory, "epochs": epochs})
        reason = f"{why}; {self.title(best)}: {speed.epoch:.1f} s an epoch, {epochs} epochs fit {left:.0f} s"
        return Plan(candidate, reason, speed.seconds(epochs, self.fits), tuple(self.shorts), self.moving)

    def fitting(self, left: float) -> tuple[list[tuple[Candidate, Pace]], list[str]]:
        """Return who gets an epoch in, and how many epochs the others would get.

        Measuring a pace takes seconds, so it ends with the first who fits when there is no time to try things out.
        """
        found: list[tuple[Candidate, Pace]] = []
        refused = []
        for one in self.contenders():
            speed = pace.measured(self.session, self.data, one)
            if speed.epochs(left, self.fits) >= MIN_EPOCHS or (self.given_epochs and not speed.refused):
                found.append((one, speed))
                few = affords(self.data, speed, EXPLORE * left / 4) < FEWEST_STEPS * self.session.recipe.batch_size
                if few or (self.given_epochs is None and speed.epochs(left, self.fits) < ENOUGH_EPOCHS):
                    break
            else:
                refused.append(f"{self.title(one)} {speed.refused or speed.epochs(left, self.fits)}")
        return found, refused

    @property
    def fits(self) -> int:
        """Count the fits of one trial: one, or one per fold and one on all of train."""
        return len(self.data.splits.folds) + 1 if self.data.splits.folds else 1

    @property
    def given_epochs(self) -> int | None:
        """Return the epochs that the recipe asks for."""
        return self.session.recipe.epochs

    def left(self) -> float:
        """Return the seconds that a plan may fill."""
        return pace.SPARE * (self.session.seconds_left() - pace.closing_seconds(self.data, self.base))

    def contenders(self) -> Iterator[Candidate]:
        """Yield what may be tried, in the order in which it is taken when nothing can be tried out."""
        given = self.session.recipe.strategy
        if given.name not in (None, "lp_ft") or "depth" in given.options:
            yield self.contender(given.name or "lp_ft")
            return
        yield self.contender("lp_ft")
        if self.smaller is not None:
            yield self.contender("lp_ft", size=self.smaller)
        for depth in dict.fromkeys((self.moving_depth(), 2, 1)):
            if depth is not None:
                yield self.contender("lp_ft", {"depth": depth})
        if given.name is None:
            yield self.contender("full")
            yield self.contender("l2_sp")

    def contender(
        self, name: str, options: Mapping[str, object] | None = None, *, size: int | None = None
    ) -> Candidate:
        """Return a candidate on the best probe's backbone, at its usual learning rate."""
        given, base = self.session.recipe.strategy, self.base.candidate
        choice = Choice(name, {**(options or {}), **(given.options if given.name == name else {})})
        made = Candidate(base.backbone, size or base.image_size, choice)
        return replace(made, settings={"optim.lr": self.rate(made)})

    @property
    def smaller(self) -> int | None:
        """Return the smallest input size of the backbone, where more epochs fit; None when there is no choice."""
        if not self.session.sourced.was_open("data.image_size"):
            return None
        least = min(choosing.sizes(self.base.trained.card))
        return least if least < self.base.candidate.image_size else None

    def title(self, candidate: Candidate) -> str:
        """Name a contender, with its input size where that is not the probe's."""
        size = candidate.image_size
        return named(candidate) + (f" at {size} px" if size != self.base.candidate.image_size else "")

    def moving_depth(self) -> int | None:
        """Return how many of the last layer groups hold most of the relative gradient; None when that is all."""
        ready = tune.build(self.session, self.data, replace(self.base.candidate, strategy=Choice("lp_ft")))
        from warmstart import gradients  # it brings torch, which a run on known features does without

        self.moving = gradients.relative(self.session, self.data, ready)
        shares = np.array(list(self.moving.values()))[::-1]
        if not shares.sum():
            return None
        depth = int(np.searchsorted(np.cumsum(shares) / shares.sum(), MOVING)) + 1
        return depth if depth < len(shares) else None

    def explore(self, fitting: Sequence[tuple[Candidate, Pace]], seconds: float) -> tuple[Candidate, Pace, str]:
        """Let contenders try: strategies and depths first, then learning rates of the best."""
        usual = fitting[0]
        if seconds <= 0 or len(fitting) == 1:
            return *usual, "every epoch was worth more than trying things out, so the usual was taken"
        winner, told = self.round(fitting, seconds * 2 / 3)
        if winner is None:
            return *usual, f"{seconds:.0f} s are too few to try things out, so the usual was taken"
        if self.session.recipe.optim.lr is not None:
            return *winner, told
        again, faster = self.round([winner, *(self.at_rate(winner, factor) for factor in RATES)], seconds / 3)
        return (*winner, told) if again is None else (*again, f"{told}; {faster}")

    def at_rate(self, one: tuple[Candidate, Pace], factor: float) -> tuple[Candidate, Pace]:
        """Return a contender with another learning rate."""
        candidate, speed = one
        return replace(candidate, settings={**candidate.settings, "optim.lr": self.rate(candidate) * factor}), speed

    def rate(self, candidate: Candidate) -> float:
        """Return the learning rate of a contender: its own, the recipe's, or the usual one."""
        recipe = self.session.recipe
        strategy = config.plugin_of("strategy", candidate.strategy)
        usual = strategy.lrs[recipe.optim.name]  # type: ignore[attr-defined]
        return float(candidate.settings.get("optim.lr") or recipe.optim.lr or usual)  # type: ignore[arg-type]

    def round(
        self, contenders: Sequence[tuple[Candidate, Pace]], seconds: float
    ) -> tuple[tuple[Candidate, Pace] | None, str]:
        """Give each contender its share of the seconds; return the best, or None when too few steps fit.

        Those that come last in the list are left out first when time is short.
        """
        batch = self.session.recipe.batch_size
        while len(contenders) > 1:
            each = seconds / len(contenders)
            seen = [affords(self.data, speed, each) for _, speed in contenders]
            if min(seen) >= FEWEST_STEPS * batch or min(seen) >= len(self.data.splits.train) * 2:
                break
            contenders = contenders[:-1]
        if len(contenders) < 2:
            return None, ""
        tried = [(one, speed, num, self.short(one, num)) for (one, speed), num in zip(contenders, seen, strict=True)]
        done = [(one, speed, num, trial) for one, speed, num, trial in tried if trial is not None]
        return self.judged(done) if len(done) > 1 else (None, "")

    def short(self, candidate: Candidate, num: int) -> tuple[Predictions, float] | None:
        """Fit a contender on `num` examples, repetitions counted; None when it fails."""
        try:
            return short_fit(self.session, self.data, candidate, num, prefix=SHORT)
        except (WarmstartError, MemoryError) as error:
            log.warning("%s was left out: %s", self.title(candidate), error)
            return None

    def judged(
        self, tried: Sequence[tuple[Candidate, Pace, int, tuple[Predictions, float]]]
    ) -> tuple[tuple[Candidate, Pace], str]:
        """Compare contenders on the same examples of val, and write the round down."""
        task = self.data.task
        predictions = [trial[0] for *_, trial in tried]
        values = [tune.point(self.data, one) for one in predictions]
        sign = 1.0 if task.metrics()[0].higher_is_better else -1.0
        best = max(range(len(tried)), key=lambda at: (sign * values[at], -at))
        found = comparing.many(task, predictions, reference=best, seed=self.session.recipe.seed)
        for at, (one, _, num, (_, seconds)) in enumerate(tried):
            verdict = (
                "best"
                if at == best
                else {"tie": "cannot be told from the best", "b": "worse", "a": "better"}[found[at].verdict]
            )
            rate = self.rate(one)
            self.shorts.append(
                Short(self.title(replace(one, settings={})), rate, num, values[at], round(seconds, 2), verdict, one)
            )
        winner, speed, *_ = tried[best]
        return (winner, speed), f"{self.title(winner)} was best of {len(tried)} short trials ({values[best]:.3f})"


def short_fit(
    session: Session, data: Prepared, candidate: Candidate, num: int, *, prefix: str
) -> tuple[Predictions, float]:
    """Fit a candidate on `num` examples, repetitions counted; return what it says of val, and the seconds."""
    begun = session.seconds()
    pairs, epochs = sample(data, num, seed=session.recipe.seed)
    candidate = replace(candidate, settings={**candidate.settings, "epochs": epochs})
    found = tune.held_out(session, data, candidate, pairs, name=f"{prefix}{num}-{candidate.fit_name}")
    return found, session.seconds() - begun


def forget_fits(session: Session, prefix: str) -> None:
    """Remove the checkpoints of short fits whose results are written down."""
    for folder in (session.folder.path / "checkpoints").glob(f"{prefix}*"):
        shutil.rmtree(folder, ignore_errors=True)


def affords(data: Prepared, speed: Pace, seconds: float) -> int:
    """Return how many examples a short trial of so many seconds can learn from in each of its fits."""
    folds = len(data.splits.folds) or 1
    return min(speed.examples(seconds / folds, num_val=num_val(data)), MAX_EPOCHS * speed.num_train)


def num_val(data: Prepared) -> int:
    """Count the examples that each fit of a short trial is judged on."""
    return min(NUM_VAL, len(data.splits.val) or len(data.splits.train) // (len(data.splits.folds) or 1))


def sample(data: Prepared, num: int, *, seed: int) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """Return (train, val) rows of a short trial that sees `num` training examples, and in how many epochs."""
    order, _ = choosing.course(data, seed=seed)
    if data.splits.folds:
        return list(data.splits.folds), max(1, num // len(data.splits.train))
    train = order[np.isin(order, data.splits.train)]
    val = order[np.isin(order, data.splits.val)][:NUM_VAL]
    return [(np.sort(train[:num]), np.sort(val))], max(1, num // len(train))


def named(candidate: Candidate) -> str:
    """Name a candidate with its options and learning rate, for people.

    Example:
        >>> named(Candidate("timm/resnet50", 224, Choice("lp_ft", {"depth": 2}), {"optim.lr": 1e-3}))
        'lp_ft depth=2 lr=0.001'
    """
    rate = candidate.settings.get("optim.lr")
    parts = [candidate.name, *(f"{key}={value}" for key, value in candidate.strategy.options.items())]
    return " ".join([*parts, *([f"lr={rate:.3g}"] if isinstance(rate, float) else [])])
