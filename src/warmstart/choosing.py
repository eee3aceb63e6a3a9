"""Which backbone at which input size: a race on cached features of train and val, then the paired pick among trials."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias

import numpy as np

from warmstart import bench, catalogue, comparing, evaluation, extract, race, runtime, sources, tune
from warmstart.bench import Bench
from warmstart.config import Choice
from warmstart.errors import SourceError
from warmstart.models import Card, parts
from warmstart.prepare import Prepared
from warmstart.race import Entrant, Measured, Outcome, Rules
from warmstart.session import Session
from warmstart.tasks import Predictions
from warmstart.tune import Candidate, Trial

log = logging.getLogger(__name__)

DEFAULT_BACKBONE = "package/efficientnet_lite0"
STEP = 32
"""Input sizes are multiples of this, which most strides divide; of the patch where that does not."""
FIRST_RUNG, PER_CLASS = 96, 8
"""Examples of the first rung: that many, or that many per class."""
MOST = 2000
"""Examples, at most, on which candidates are told apart: half a point then needs a few discordant ones."""
NUM_FOLDS = 4
FEATURES_SHARE = 0.35
"""Share of the budget that frozen features of the winner may take, test included."""
RACE_SHARE = 0.15
"""Share of the budget that `run` may spend on the race."""
ENGINE_GAIN = 0.5
"""Few pictures are computed without an engine of their own; many take about this part of the time."""
MANY = 256
MACS_PER_SECOND = 2e10
"""Of one processor core or two, where nothing was measured because everything was cached."""


@dataclass(frozen=True)
class Row:
    """One line of the leaderboard."""

    backbone: str
    input_size: int
    strategy: str
    value: float | None
    """Of the task's first metric, on the examples it was judged on; None when it was not measured."""
    low: float | None
    high: float | None
    n: int
    """Examples of train and val that it was judged on, each predicted by a head that had not seen it."""
    seconds: float
    """What measuring it took."""
    seconds_per_example: float | None
    num_params: int | None
    licence: str | None
    dropped_because: str
    """Empty for those that were in the race to the end."""


@dataclass(frozen=True)
class Chosen:
    """What the race came to."""

    candidate: Candidate
    """A probe on the pick, which everything else is measured against."""
    reason: str
    metric: str = ""
    leaderboard: tuple[Row, ...] = ()
    """Best first, the pick before all."""
    finalists: tuple[Candidate, ...] = ()
    """Others that the race could not tell from the pick, on other backbones, best first."""

    def to_json(self) -> dict[str, object]:
        """Return what `choose --json` prints."""
        pick = {"backbone": self.candidate.backbone, "input_size": self.candidate.image_size, "strategy": "probe"}
        rows = [asdict(row) for row in self.leaderboard]
        return {"metric": self.metric, "leaderboard": rows, "pick": {**pick, "reason": self.reason}}

    def table(self) -> list[str]:
        """Return the leaderboard as lines, and the pick with its reason."""
        widest = max((len(row.backbone) for row in self.leaderboard), default=0)
        lines = [f"{'backbone':{widest}}  size  {self.metric:>10}  95 % interval     n  seconds"] if widest else []
        for row in self.leaderboard:
            value = " " * 10 if row.value is None else f"{row.value:10.3f}"
            sure = " " * 13 if row.low is None or row.high is None else f"{row.low:.3f} – {row.high:.3f}"
            line = f"{row.backbone:{widest}}  {row.input_size:4}  {value}  {sure}  {row.n:4}  {row.seconds:7.1f}"
            lines.append(f"{line}  {row.dropped_because}".rstrip())
        return [*lines, f"pick: {self.candidate.backbone} at {self.candidate.image_size} px", f"why:  {self.reason}"]


def choose(session: Session, data: Prepared, *, share: float = RACE_SHARE) -> Chosen:
    """Race the candidates that the recipe leaves open, and return the pick.

    Args:
        session: The command at work.
        data: Train and val are looked at; test is not.
        share: Part of the budget that the race may take.

    Raises:
        SourceError: No candidate could be had.
    """
    recipe = session.recipe
    if recipe.backbone is not None and recipe.data.image_size is not None:
        return Chosen(_probe(recipe.backbone, recipe.data.image_size), "it was asked for")
    value, reason = session.remember("race", lambda: _raced(session, data, share))
    assert isinstance(value, dict)
    found = Chosen(
        _probe(**value["pick"]),
        reason,
        value["metric"],
        tuple(Row(**row) for row in value["leaderboard"]),
        tuple(_probe(**one) for one in value["finalists"]),
    )
    session.decide("backbone", lambda: (found.candidate.backbone, reason))
    session.decide("data.image_size", lambda: (found.candidate.image_size, reason))
    return found


def _probe(backbone: str, image_size: int) -> Candidate:
    return Candidate(backbone, image_size, Choice("probe"))


def _raced(session: Session, data: Prepared, share: float) -> tuple[object, str]:
    """Run the race and return it JSON-ready, with the reason of the pick."""
    course = Course(session, data, cards(session))
    with session.stage("race"):
        outcome = course.run(share)
    rows, metric = course.leaderboard(outcome)
    pick = course.at(outcome.pick.entrant.name)
    others = [course.at(s.entrant.name) for s in outcome.standings if s.alive]
    finalists = list({name: (name, size) for name, size in reversed(others) if name != pick[0]}.values())[::-1]
    return {
        "pick": {"backbone": pick[0], "image_size": pick[1]},
        "metric": metric,
        "leaderboard": [asdict(row) for row in rows],
        "finalists": [{"backbone": name, "image_size": size} for name, size in finalists],
    }, outcome.reason


def cards(session: Session) -> list[Card]:
    """Return the cards of the backbones that the recipe leaves to choose from.

    Raises:
        SourceError: The backbone that was named is unknown.
        RecipeError: Patterns that match nothing, or limits that leave nothing.
    """
    recipe = session.recipe
    if recipe.backbone is not None:
        return [sources.card(recipe.backbone)]
    return catalogue.candidates(
        recipe.candidates,
        max_params=recipe.max_params,
        licence=recipe.licence,
        budget_seconds=recipe.budget,
    )


@dataclass
class Course:
    """What the race runs on: the order of the examples, their folds, and the backbones that were loaded."""

    session: Session
    data: Prepared
    cards: Sequence[Card]

    def __post_init__(self) -> None:
        self.order, self.fold = course(self.data, seed=self.session.recipe.seed)
        self.benches: dict[str, Bench] = {}
        self.by_name: dict[str, tuple[Card, int]] = {}

    def run(self, share: float) -> Outcome:
        """Race every candidate at its smallest size, and larger ones of those that survive."""
        data, budget = self.data, self.session.recipe.budget or float("inf")
        first = max(FIRST_RUNG, PER_CLASS * data.task.num_outputs if data.task.link != "identity" else 0)
        rungs = race.rungs(len(self.order), first=first, cap=MOST)
        entrants = [entrant for card in self.cards for entrant in self._entrants(card, len(rungs))]
        rules = Rules(
            rungs,
            num_examples=len(data.dataset),
            seconds=share * budget,
            full_seconds=FEATURES_SHARE * budget,
            higher_is_better=data.task.metrics()[0].higher_is_better,
        )
        return race.run(entrants, rules, measure=self.measure, compare=self.compare)

    def _entrants(self, card: Card, num_rungs: int) -> list[Entrant]:
        """Enter a backbone at its smallest size; larger ones wait for that to survive, where rungs are enough."""
        given = self.session.recipe.data.image_size
        tried = sizes(card) if given is None else (given,)
        found: list[Entrant] = []
        for size in tried:
            name = f"{card.name} at {size} px"
            self.by_name[name] = (card, size)
            waits = bool(found) and num_rungs > len(tried)
            after = found[-1].name if waits else None
            found.append(Entrant(name, catalogue.prior(card), work(card, size), after))
        return found

    def at(self, name: str) -> tuple[str, int]:
        """Return backbone and input size of an entrant."""
        card, size = self.by_name[name]
        return card.name, size

    def measure(self, entrant: Entrant, n: int) -> Measured:
        """Predict the first n examples, each by a head solved on the other folds.

        Raises:
            WarmstartError: The weights are not here, or give no usable features.
        """
        clock = self.session.seconds()
        card, size = self.by_name[entrant.name]
        place = self._bench(card, size)
        rows = self.order[:n]
        folds = [(np.sort(rows[self.fold[:n] != k]), np.sort(rows[self.fold[:n] == k])) for k in range(NUM_FOLDS)]
        folds = [(fit, held_out) for fit, held_out in folds if len(held_out)]
        with bench.taken(card.name, size):
            head = tune.solve_head(place, folds)
        found = head.val(place, folds)
        return Measured(found, tune.point(self.data, found), self.session.seconds() - clock, _rate(head, card, size))

    def compare(self, found: Sequence[Predictions], leader: int) -> Sequence[comparing.Comparison]:
        """Compare everybody with the leader on the same examples, corrected for their number."""
        return comparing.many(self.data.task, found, reference=leader, seed=self.session.recipe.seed)

    def _bench(self, card: Card, size: int) -> Bench:
        """Load a backbone once, whatever the sizes it runs at."""
        if card.name not in self.benches:
            self.benches[card.name] = bench.load(self.session, self.data, card.name, size)
        place = self.benches[card.name]
        return replace(place, framing=replace(place.framing, image_size=size))

    def leaderboard(self, outcome: Outcome) -> tuple[tuple[Row, ...], str]:
        """Return the lines of the leaderboard with their intervals, and the name of the metric."""
        metric = self.data.task.metrics()[0].name
        return tuple(self._row(standing, metric) for standing in outcome.standings), metric

    def _row(self, standing: race.Standing, metric: str) -> Row:
        card, size = self.by_name[standing.entrant.name]
        value = low = high = None
        if standing.measured is not None:
            predictions, seed = standing.measured.predictions, self.session.recipe.seed
            found = evaluation.metrics(self.data.task, predictions, split="val", seed=seed, only=(metric,))[0]
            value, low, high = found.value, found.low, found.high
        return Row(
            card.name,
            size,
            "probe",
            value,
            low,
            high,
            standing.n,
            round(standing.seconds, 3),
            standing.cost if standing.measured is not None else None,
            card.num_params,
            card.licence,
            standing.dropped_because,
        )


def course(data: Prepared, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Order the examples of train and val so that every beginning has the classes in proportion, and fold them.

    Shape:
        Returns int64 (N,) rows, and int64 (N,) the fold of each, the same for all examples of a group.
    """
    draw = runtime.rng(seed, "race")
    rows = draw.permutation(data.seen)
    dataset = data.dataset
    assert dataset.targets is not None
    rank, fold = np.arange(len(rows), dtype=float), np.arange(len(rows)) % NUM_FOLDS
    if data.task.kind == "single":
        labels = dataset.targets[rows]
        for label in np.unique(labels):
            where = np.flatnonzero(labels == label)
            rank[where] = (np.arange(len(where)) + draw.random()) / len(where)
            fold[where] = np.arange(len(where)) % NUM_FOLDS
    if dataset.groups is not None:
        _, fold = np.unique(dataset.groups[rows], return_inverse=True)
        fold = draw.permutation(fold.max() + 1)[fold] % NUM_FOLDS
    order = np.argsort(rank, kind="stable")
    return rows[order], fold[order]


def _rate(head: tune.HeadStart, card: Card, size: int) -> float:
    """Forecast the seconds of one more example."""
    rate = extract.seconds_per_example(head.extracted)
    if rate is None:
        return work(card, size) / MACS_PER_SECOND
    return rate * (ENGINE_GAIN if sum(one.computed for one in head.extracted) < MANY else 1.0)


def work(card: Card, size: int) -> float:
    """Return the multiply-adds of one picture at an input size; by the size alone where the card does not know."""
    return (card.macs or 1e9) * (size / card.spec.image_size) ** 2


def as_told(session: Session) -> Candidate:
    """Return the candidate that the recipe names: LP-FT at the weights' own input size where it leaves that open."""
    name = str(session.decide("backbone", lambda: (DEFAULT_BACKBONE, "small, permissively licensed, quick on a CPU")))
    session.decide("strategy.name", lambda: ("lp_ft", "a sound start and all layers"))
    size = session.decide("data.image_size", lambda: own_size(name))
    assert isinstance(size, int)
    return Candidate(name, size, session.recipe.strategy)


def own_size(backbone: str) -> tuple[int, str]:
    """Return the input size that the weights were trained at."""
    return sources.card(backbone).spec.image_size, "what the weights were trained at"


def sizes(card: Card) -> tuple[int, ...]:
    """Return the input sizes worth trying, ascending: about 4/7, 5/7, 6/7 and 7/7 of what the weights were trained at.

    Example:
        >>> sizes(Card("timm/resnet50"))
        (128, 160, 192, 224)
        >>> sizes(Card("timm/vit_small_patch14_dinov2.lvd142m"))
        (126, 154, 196, 224)
    """
    own = card.spec.image_size
    if card.spec.fixed_size:
        return (own,)
    patch = re.search(r"patch(\d+)", card.arch or card.name)
    step = int(patch[1]) if patch and STEP % int(patch[1]) else STEP
    scaled = {max(step, round(own * part / 7 / step) * step) for part in (4, 5, 6)}
    return tuple(sorted({size for size in scaled if size < own} | {own}))


def features(session: Session, data: Prepared, candidate: Candidate) -> np.ndarray:
    """Return frozen features of every example; a frozen winner needs them for test anyway, and the audit now.

    Shape:
        float32 (N, D).
    """
    place = bench.load(session, data, candidate.backbone, candidate.image_size)
    return np.asarray(place.values(data.everything, place.num_groups, place.plain()).values)


def features_if_any(session: Session, data: Prepared) -> np.ndarray | None:
    """Return features for an audit from the recipe's backbone or the usual one; None when its weights are not here."""
    name = session.recipe.backbone or DEFAULT_BACKBONE
    try:
        size = session.recipe.data.image_size or sizes(sources.card(name))[0]
        return features(session, data, _probe(name, size))
    except SourceError as error:
        if session.recipe.backbone is not None:
            raise
        log.warning("the audit goes on without features: %s", error.problem)
        return None


Rivalry: TypeAlias = tuple[Trial, Trial, comparing.Comparison]
"""A trial, the one that it was compared with, and what came out; a is the first."""


def pick(session: Session, data: Prepared, trials: Sequence[Trial]) -> tuple[Trial, list[Rivalry]]:
    """Keep what validates better by a paired interval; a tie goes to what answers faster, or else to the first.

    Of two that answer equally fast nobody is cheaper, and half a point decides. Stacks come last, whenever they were
    tried: they cost more with every answer.
    """
    winner, *rivals = sorted(trials, key=lambda trial: len(parts.parse(trial.candidate.backbone)))
    rivalries = []
    for rival in rivals:
        found = comparing.paired(data.task, rival.val, winner.val, seed=session.recipe.seed)
        rivalries.append((rival, winner, found))
        if beats(data, rival, winner, found):
            winner = rival
    return winner, rivalries


def beats(data: Prepared, rival: Trial, winner: Trial, found: comparing.Comparison) -> bool:
    """Say whether a rival takes the winner's place: shown to be better, or as quick to answer and seemingly better."""
    if found.verdict != "tie":
        return found.verdict == "a"
    mine, other = rival.candidate, winner.candidate
    as_quick = mine.backbone == other.backbone and mine.image_size <= other.image_size
    up = data.task.metrics()[0].higher_is_better
    gain = found.difference if up else -found.difference
    return as_quick and gain > race.close(found.b, higher_is_better=up)
