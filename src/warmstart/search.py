"""Hyperparameters: once the planned fit is done and time is left, Optuna looks for better settings by short trials.

It goes on where the finals ended: the planned settings climb every rung first and are what any other has to beat, and
what the finals measured is known to the study. Rungs are seconds, since time is what is scarce; everything is judged on
the same examples of val. How trials are proposed and who climbs is in `study`.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from warmstart import config, finals, optim, pace, study, tune
from warmstart.config import Choice
from warmstart.errors import RecipeError
from warmstart.finals import Plan, Short
from warmstart.pace import Pace
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.study import ETA, Rules, Rung, Space, Tried
from warmstart.tune import MAX_EPOCHS, Candidate, Trial

log = logging.getLogger(__name__)

MOST_RUNGS = 3
FEWEST_TRIALS, MOST_TRIALS = 6, 50
MOST_FITS = 3.0
"""Unless it was asked for, a search takes at most as long as this many planned fits: about thirty trials."""
SPENT = 1.1
"""The full fit of what is found is taken to last this many times as long as the planned one."""
FIT = "search-"
"""What the names of its short fits begin with."""
PLANNED, FOUND = "search", "search found"


def suggest(session: Session, data: Prepared, plan: Plan, trials: Sequence[Trial]) -> Candidate | None:
    """Search around the planned candidate, and return what did better in short trials; None when nothing did.

    Args:
        session: The command at work.
        data: Train and val are looked at.
        plan: What the finals planned; its short trials are the first that the search knows.
        trials: What was fitted in earnest, the planned candidate last.
    """
    if plan.candidate is None:
        return None
    task = _Task(session, data, plan, plan.candidate)
    rules = task.rules(trials)
    if not rules.trials:
        return None
    with session.stage("search", planned=min(rules.seconds, _usual_seconds(rules.rungs, rules.trials))):
        session.remember(FOUND, lambda: task.found(rules))
    candidate, shorts = _read(session)
    if candidate is not None and session.planned_seconds is not None:
        session.planned_seconds += sum(short.seconds for short in shorts) + trials[-1].seconds
    return candidate


def available(session: Session) -> bool:
    """Say whether a search is wanted and possible.

    Raises:
        RecipeError: It was asked for, and Optuna is not installed.
    """
    wanted = session.recipe.search
    if wanted.trials == 0:
        return False
    if importlib.util.find_spec("optuna") is not None:
        return True
    if not wanted.asked:
        log.info("no search for better settings: optuna is not installed")
        return False
    asked = f"search.trials={wanted.trials}" if wanted.trials else "search.space"
    raise RecipeError(f"{asked} needs optuna, which is not installed", 'pip install "warmstart[search]"')


def told(session: Session) -> tuple[Short, ...]:
    """Return the trials of this run's search, for the report; none when there was no search."""
    return _read(session)[1]


def _read(session: Session) -> tuple[Candidate | None, tuple[Short, ...]]:
    known = session.folder.stage(f"decide {FOUND}")
    if known is None:
        return None, ()
    value: Any = known["value"]
    return finals.thawed(value["candidate"]), tuple(finals.thawed_short(row) for row in value["shorts"])


# --- the trials of a run


@dataclass
class _Task:
    """What a search is about: the planned candidate, and settings around it."""

    session: Session
    data: Prepared
    plan: Plan
    planned: Candidate
    reserved: float = field(default=0.0, init=False)
    """Seconds that the full fit of what is found will take."""

    @property
    def base(self) -> Candidate:
        """Return the planned candidate without its number of epochs."""
        return replace(self.planned, settings={k: v for k, v in self.planned.settings.items() if k != "epochs"})

    @property
    def sign(self) -> float:
        """Return what makes a higher value better."""
        return 1.0 if self.data.task.metrics()[0].higher_is_better else -1.0

    def left(self) -> float:
        """Return the seconds that trials may take from now on."""
        session = self.session
        return pace.SPARE * (session.seconds_left() - session.closing_seconds) - self.reserved

    def rules(self, trials: Sequence[Trial]) -> Rules:
        """Decide once how many trials of how many rungs over which space."""
        self.reserved = SPENT * max(trials[-1].seconds, self.plan.seconds)
        value, reason = self.session.remember(PLANNED, self.room)
        assert isinstance(value, dict)
        self.session.decide("search.trials", lambda: (value["trials"], reason))
        space = self.space() if value["trials"] else {}
        num, seed = value["trials"] if space else 0, self.session.recipe.seed
        return Rules(space, tuple(value["rungs"]), num, value["seconds"], seed, self.sign > 0)

    def room(self) -> tuple[object, str]:
        """Return rungs, number of trials and seconds that what is left has room for."""
        asked, seconds = self.session.recipe.search, self.left()
        nothing = {"trials": 0, "rungs": [], "seconds": 0.0}
        seconds = seconds if asked.asked else min(seconds, MOST_FITS * self.reserved / SPENT)
        rungs = self.rungs(seconds)
        each = _usual_seconds(rungs, 1) - sum(rungs)
        fitting = math.floor(min((seconds - sum(rungs)) / each, MOST_TRIALS))
        trials = fitting if asked.trials is None else asked.trials
        if fitting < (1 if asked.asked else FEWEST_TRIALS):
            why = f"{max(seconds, 0):.0f} s beside another full fit, and a short trial takes {rungs[0]:.0f} s"
            if asked.asked:
                log.warning("no search: %s", why)
            return nothing, why
        return {"trials": trials, "rungs": rungs, "seconds": seconds}, f"{seconds:.0f} s beside another full fit"

    def rungs(self, seconds: float) -> list[float]:
        """Return the seconds of each rung: the first is what the finals gave each, if that leaves room for many."""
        speed, batch = self.pace(self.base), self.session.recipe.batch_size
        fewest = _seconds(self.data, speed, min(finals.FEWEST_STEPS * batch, 2 * speed.num_train))
        known = [_seconds(self.data, speed, short.examples) for short in self.plan.shorts if self.is_planned(short)]
        full = self.reserved / SPENT
        first = known[-1] if known else full / ETA**MOST_RUNGS
        units = [float(ETA**number) for number in range(MOST_RUNGS)]
        share = seconds / _usual_seconds(units, self.session.recipe.search.trials or FEWEST_TRIALS)
        first = max(fewest, min(first, share))
        found, seen = [first], [self.rows(speed, first)]
        while len(found) < MOST_RUNGS and first * ETA ** len(found) <= min(seconds / FEWEST_TRIALS, full / 2):
            further = first * ETA ** len(found)
            if self.rows(speed, further) == seen[-1]:
                break
            found.append(further)
            seen.append(self.rows(speed, further))
        return found

    def rows(self, speed: Pace, seconds: float) -> tuple[int, int]:
        """Return how many examples a short trial of so many seconds learns from, and how often."""
        pairs, epochs = finals.sample(self.data, finals.affords(self.data, speed, seconds), seed=0)
        return len(pairs[0][0]), epochs

    def pace(self, candidate: Candidate) -> Pace:
        """Return how fast a candidate learns."""
        return pace.measured(self.session, self.data, candidate)

    def is_planned(self, short: Short) -> bool:
        """Say whether a short trial was that of the planned candidate."""
        one, other = short.candidate, self.planned
        return (
            one is not None
            and (one.backbone, one.image_size, one.strategy) == (other.backbone, other.image_size, other.strategy)
            and short.lr == other.settings.get("optim.lr")
        )

    def space(self) -> dict[str, tuple[object, ...]]:
        """Return the space of the recipe without what the strategy does not know, or the usual one, decided by key."""
        given = self.session.recipe.search.space
        known = vars(config.plugin_of("strategy", self.planned.strategy))
        if not given:
            for key, (choices, reason) in usual_space(self.session, self.planned).items():
                self.session.decide(config.SPACE + key, partial(_known, list(choices), reason))
            given = self.session.recipe.search.space
        section = "strategy."
        fitting = {k: v for k, v in given.items() if not k.startswith(section) or k.removeprefix(section) in known}
        if fitting.keys() != given.keys():
            strange = ", ".join(sorted(given.keys() - fitting.keys()))
            log.warning("not searched, since %s has no such option: %s", self.planned.strategy.name, strange)
        return fitting

    def at(self, params: Mapping[str, object]) -> Candidate:
        """Return the planned candidate with other settings."""
        options = {k.removeprefix("strategy."): v for k, v in params.items() if k.startswith("strategy.")}
        settings = {k: v for k, v in params.items() if not k.startswith("strategy.")}
        strategy = Choice(self.base.strategy.name, {**self.base.strategy.options, **options})
        return replace(self.base, strategy=strategy, settings={**self.base.settings, **settings})

    def measure(self, candidate: Candidate, seconds: float) -> Rung:
        """Fit a candidate for so many seconds, and judge it on the same examples as every other."""
        num = finals.affords(self.data, self.pace(candidate), seconds)
        predictions, seconds = finals.short_fit(self.session, self.data, candidate, num, prefix=FIT)
        return Rung(tune.point(self.data, predictions), num, seconds)

    def reference(self, rules: Rules) -> Tried:
        """Let the planned settings climb every rung: what anything else has to beat."""

        def climbed() -> tuple[object, str]:
            rungs = [asdict(self.measure(self.base, seconds)) for seconds in rules.rungs]
            return rungs, f"{finals.named(self.base)} as planned"

        value: Any = self.session.remember("search reference", climbed)[0]
        return Tried(self.params(self.base, rules.space), tuple(Rung(**one) for one in value), "complete", known=True)

    def params(self, candidate: Candidate, space: Space) -> dict[str, object]:
        """Return the value that a candidate has for each key of a space."""
        return {key: current(self.session, candidate, key) for key in space}

    def known(self, rules: Rules) -> tuple[list[Tried], list[Mapping[str, object]]]:
        """Return what the finals measured: with values where the first rung gives as many examples, else to be tried.

        What lies outside the space is left out.
        """
        seen: list[Tried] = []
        again: list[Mapping[str, object]] = []
        for short in self.plan.shorts:
            candidate = short.candidate
            if candidate is None or self.is_planned(short):
                continue
            candidate = replace(candidate, settings={**self.base.settings, **candidate.settings})
            params = self.params(candidate, rules.space)
            if not self.is_same(self.at(params), candidate) or not study.inside(params, rules.space):
                continue
            here = finals.affords(self.data, self.pace(candidate), rules.rungs[0])
            if math.isclose(here, short.examples, rel_tol=0.1):
                rung = Rung(short.value, short.examples, 0.0)  # its time was counted where it was spent
                seen.append(Tried(params, (rung,), "pruned", "of the finals", known=True))
            else:
                again.append(params)
        return seen, again

    def is_same(self, one: Candidate, other: Candidate) -> bool:
        """Say whether two candidates are the same, whatever they leave to defaults."""

        def told(candidate: Candidate) -> object:
            strategy = config.plugin_of("strategy", candidate.strategy)
            settings = {key: current(self.session, candidate, key) for key in {**one.settings, **other.settings}}
            return candidate.backbone, candidate.image_size, strategy, settings

        return told(one) == told(other)

    def found(self, rules: Rules) -> tuple[object, str]:
        """Search, and return the best candidate, JSON-ready, with all trials for the report."""
        reference = self.reference(rules)
        seen, again = self.known(rules)
        known = [one for one in (reference, *seen) if study.inside(one.params, rules.space)]
        place = self.session.folder.path / "search"
        place.mkdir(exist_ok=True)
        rules = replace(rules, seconds=rules.seconds - reference.seconds)

        def measure(params: Mapping[str, object], rung: int) -> Rung:
            return self.measure(self.at(params), rules.rungs[rung])

        done = []
        for tried in study.explore(
            place / "journal.log", rules, measure, known=known, queue=again, has_time=lambda need: need <= self.left()
        ):
            done.append(tried)
            finals.forget_fits(self.session, FIT)
        finals.forget_fits(self.session, FIT)
        return self.concluded(reference, done)

    def concluded(self, reference: Tried, done: Sequence[Tried]) -> tuple[object, str]:
        """Return the best when it beats the planned settings, with the epochs that the rest of the budget allows."""
        best = max(
            (reference, *(one for one in done if one.state == "complete")),
            key=lambda one: self.sign * one.rungs[-1].value,
        )
        shorts = [self.short(reference, "as planned" if best is not reference else "best of the search, as planned")]
        shorts += [
            self.short(one, "best of the search" if one is best else one.because or "not the best")
            for one in done
            if one.rungs
        ]
        planned, value = reference.rungs[-1].value, best.rungs[-1].value
        candidate, reason = None, f"none of {len(done)} settings did better than the planned ones ({planned:.3f})"
        if best is not reference:
            candidate = self.in_earnest(self.at(best.params))
            reason = f"best of {len(done)} settings ({value:.3f}; the planned ones {planned:.3f})"
            reason += "" if candidate else ", but no epoch fits what is left"
        return {
            "candidate": None if candidate is None else asdict(candidate),
            "shorts": [asdict(short) for short in shorts],
        }, reason

    def in_earnest(self, candidate: Candidate) -> Candidate | None:
        """Return a candidate with as many epochs as the rest of the budget allows; None when not one fits."""
        speed, fits = self.pace(candidate), len(self.data.splits.folds) + 1 if self.data.splits.folds else 1
        epochs = self.session.recipe.epochs or min(MAX_EPOCHS, speed.epochs(self.left() + self.reserved, fits))
        memory = {} if speed.micro_batch is None else {"micro_batch": speed.micro_batch}
        return replace(candidate, settings={**candidate.settings, **memory, "epochs": epochs}) if epochs else None

    def short(self, tried: Tried, verdict: str) -> Short:
        """Tell a trial by the last rung that it reached, its time by all."""
        candidate = self.at(tried.params)
        lr = float(str(current(self.session, candidate, "optim.lr")))
        further = [
            f"{key}={_said(value)}"
            for key, value in tried.params.items()
            if key != "optim.lr" and not key.startswith("strategy.")
        ]
        strategy = Choice(candidate.strategy.name, {k: _said(v) for k, v in candidate.strategy.options.items()})
        name = " ".join([finals.named(Candidate("", 0, strategy)), *further])
        last = tried.rungs[-1]
        return Short(name, lr, last.examples, last.value, round(tried.seconds, 2), verdict, candidate)


def _known(value: object, reason: str) -> tuple[object, str]:
    return value, reason


def _said(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _usual_seconds(rungs: Sequence[float], trials: int) -> float:
    """Return what so many trials take when each rung lets one of `ETA` climb on, and the planned settings climb all."""
    return sum(rungs) + trials * sum(seconds / ETA**number for number, seconds in enumerate(rungs))


def _seconds(data: Prepared, speed: Pace, examples: int) -> float:
    """Return the seconds of a short trial that learns from so many examples: the inverse of `finals.affords`."""
    each = pace.STARTING_SECONDS + speed.example * (examples + 0.5 + finals.num_val(data) / 3)
    return each * (len(data.splits.folds) or 1)


# --- the space


def usual_space(session: Session, planned: Candidate) -> dict[str, tuple[tuple[object, ...], str]]:
    """Return what is tried when the recipe names nothing, with the reason of each; what the recipe gives stays."""

    def around(key: str, factor: float) -> tuple[object, ...]:
        middle = float(str(current(session, planned, key)))
        return (_round(middle / factor), _round(middle * factor))

    found: dict[str, tuple[tuple[object, ...], str]] = {
        "optim.lr": (around("optim.lr", 10), "a tenth to ten times the planned one"),
        "optim.weight_decay": (around("optim.weight_decay", 10), "a tenth to ten times the planned one"),
        "schedule.warmup_fraction": ((0.0, 0.3), "none to a long one"),
        "strategy.lr_decay": ((0.6, 1.0), "from gentle steps near the input to equal ones"),
    }
    if sees_pixels(planned):
        found["data.augment"] = (("none", "flip", "standard", "strong"), "pixels are fed")
    options = vars(config.plugin_of("strategy", planned.strategy))
    depth = options.get("depth")
    if isinstance(depth, int):
        found["strategy.depth"] = ((max(1, depth - 1), depth + 1), "one layer group less to one more")
    return {key: entry for key, entry in found.items() if not is_given(session, key) and _has(options, key)}


def _has(options: Mapping[str, object], key: str) -> bool:
    return not key.startswith("strategy.") or key.removeprefix("strategy.") in options


def is_given(session: Session, key: str) -> bool:
    """Say whether the user gave a key a value, which is then not to be searched unless the space says so."""
    return not session.sourced.origins.get(key, "decided:").startswith("decided:")


def sees_pixels(candidate: Candidate) -> bool:
    """Say whether a candidate is fed pixels, which can be augmented, where the recipe asks for nothing else."""
    return (
        candidate.strategy.name != "last_k"
        and vars(config.plugin_of("strategy", candidate.strategy)).get("depth") is None
    )


def _round(value: float) -> float:
    """Return a number that reads well."""
    return float(f"{value:.2g}")


def current(session: Session, candidate: Candidate, key: str) -> object:
    """Return the value that a candidate has for a key: its own, the recipe's, or what is decided when both are open."""
    if key.startswith("strategy."):
        return getattr(config.plugin_of("strategy", candidate.strategy), key.removeprefix("strategy."))
    value = candidate.settings.get(key)
    value = config.get_key(session.recipe, key) if value is None else value
    if value is None and key == "data.augment":
        return "standard" if sees_pixels(candidate) else "none"
    if value is None and key == "optim.weight_decay":
        return optim.default_weight_decay(session.recipe.optim.name)
    return value
