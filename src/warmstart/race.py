"""Successive halving among candidates: examples are added in rungs, and who is worse by a paired interval leaves.

The race (Jamieson & Talwalkar, 2015, arXiv 1502.07943, with a test in place of the fixed halving; as in the F-race of
Birattari et al., 2002) knows no networks: it asks for predictions on the first n examples of a fixed order, the same
for everybody, and what an earlier rung computed is not computed again. Nobody is dropped for a difference that chance
explains, so a race may end with several who are equal; the pick is then the cheapest of those within half a point.
Where the limit does not let all of them go on, the most promising do, and the others wait where they are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from warmstart.comparing import Comparison
from warmstart.errors import SourceError, WarmstartError
from warmstart.tasks import Predictions

log = logging.getLogger(__name__)

CLOSE = 0.005
"""Half a point: candidates that differ by less, as far as is known, are equal enough for their cost to decide."""
CROSSING = 0.03
"""How much a candidate may catch up whenever the examples double."""
HASTY = 2.0
"""How far above the limit a pace has to be to count when it was measured once or guessed."""
LESS = "a smaller data.image_size, or other --candidates"
ETA = 2
"""Each rung has this many times the examples of the one before."""


@dataclass(frozen=True)
class Entrant:
    """Somebody in the race."""

    name: str
    """Unique: backbone and input size."""
    prior: float | None = None
    """What is expected of it before anything is measured, in any unit; None when nothing is known."""
    work: float = 0.0
    """Multiply-adds of one example: what the model will cost its user, by which equals are told apart."""
    after: str | None = None
    """Joins only when this entrant, a cheaper sibling, has survived its first rung."""


@dataclass(frozen=True)
class Measured:
    """What one entrant gave on the first n examples."""

    predictions: Predictions
    value: float
    seconds: float
    """Spent on this measurement."""
    seconds_per_example: float
    """Forecast of computing one more example."""


@dataclass(frozen=True)
class Standing:
    """How far an entrant came."""

    entrant: Entrant
    measured: Measured | None = None
    n: int = 0
    """Examples that it was last judged on."""
    path: tuple[tuple[int, float], ...] = ()
    """(n, value) of every rung that it was in."""
    seconds: float = 0.0
    dropped_because: str = ""
    """Empty while it is in the race."""
    waits: bool = False
    """Nobody has shown that it is worse, but the limit let others go on."""

    @property
    def runs(self) -> bool:
        """Say whether it goes on to the next rung."""
        return self.alive and not self.waits

    @property
    def alive(self) -> bool:
        """Say whether it is in the race and was measured."""
        return not self.dropped_because and self.measured is not None

    @property
    def cost(self) -> float:
        """Return seconds per example; infinite when unknown."""
        return math.inf if self.measured is None else self.measured.seconds_per_example


@dataclass(frozen=True)
class Rules:
    """How a race is run."""

    rungs: tuple[int, ...]
    """Numbers of examples, ascending."""
    num_examples: int
    """How many the winner will have to process: what probing it fully costs."""
    cost_share: float = 0.25
    """Most of the seconds that probing every entrant fully would take which the race may spend."""
    seconds: float = math.inf
    """Most that the race may take."""
    full_seconds: float = math.inf
    """Most that the winner may take for all its examples."""
    higher_is_better: bool = True


@dataclass(frozen=True)
class Outcome:
    """Everybody, best first, the pick, and why."""

    standings: tuple[Standing, ...]
    pick: Standing
    reason: str


@dataclass
class _Field:
    """The race as it stands."""

    rules: Rules
    standings: dict[str, Standing]
    last: tuple[tuple[str, Comparison], ...] = ()
    """The others of the last rung, each compared with its leader."""
    stopped: str = ""

    def alive(self) -> list[Standing]:
        return [s for s in self.standings.values() if s.alive]

    def running(self) -> list[Standing]:
        return [s for s in self.standings.values() if s.runs]

    def drop(self, name: str, why: str) -> None:
        self.standings[name] = replace(self.standings[name], dropped_because=why)
        log.info("%s leaves the race: %s", name, why)

    def spent(self) -> float:
        return sum(s.seconds for s in self.standings.values())

    def better(self, a: float, b: float) -> float:
        """Return by how much a is better than b."""
        return a - b if self.rules.higher_is_better else b - a


def rungs(num: int, *, first: int, cap: int) -> tuple[int, ...]:
    """Return numbers of examples from `first`, doubling, to `cap` or all.

    Example:
        >>> rungs(1000, first=100, cap=2000)
        (100, 200, 400, 800, 1000)
    """
    last = min(num, cap)
    found = []
    n = min(first, last)
    while n < last:
        found.append(n)
        n *= ETA
    if found and last < 1.25 * found[-1]:  # a last rung that adds next to nothing
        found.pop()
    return (*found, last)


def run(
    entrants: Sequence[Entrant],
    rules: Rules,
    *,
    measure: Callable[[Entrant, int], Measured],
    compare: Callable[[Sequence[Predictions], int], Sequence[Comparison]],
) -> Outcome:
    """Race the entrants.

    Args:
        entrants: In any order; those with `after` behind the one they wait for.
        rules: How the race is run.
        measure: Predictions of one entrant on the first n examples. A `WarmstartError` or a lack of memory takes it
            out of the race, with the message as reason.
        compare: Compares each of the predictions with the one at the given place, all at once, corrected for their
            number.

    Raises:
        WarmstartError: Nobody could be measured.
    """
    race = _Field(rules, {entrant.name: Standing(entrant) for entrant in entrants})
    failures: list[WarmstartError] = []
    for position, n in enumerate(rules.rungs):
        _rung(race, n, measure, failures)
        running = race.running()
        if not running:
            break
        _judge(race, running, n, compare)
        if len(race.running()) < 2 and not _joining(race):
            race.stopped = "nobody else is left"
            break
        if position + 1 < len(rules.rungs) and not _go_on(race, n, rules.rungs[position + 1]):
            break
    return _outcome(race, failures)


def _rung(race: _Field, n: int, measure: Callable[[Entrant, int], Measured], failures: list[WarmstartError]) -> None:
    """Measure all who are in on n examples: the leader, then the cheapest first, so that a limit hits the dearest."""
    ranked = sorted(race.running(), key=lambda s: -race.better(s.measured.value, 0.0) if s.measured else 0.0)
    joining = _joining(race) if ranked else [s for s in _unmeasured(race) if s.entrant.after is None]
    others = [*ranked[1:], *joining]
    for standing in [*ranked[:1], *sorted(others, key=lambda s: (s.cost, s.entrant.work))]:
        name = standing.entrant.name
        over = _too_slow(race, standing)
        if over:
            race.drop(name, over)
            continue
        if race.spent() > race.rules.seconds and any(s.n == n for s in race.running()):
            _leave_out(race, standing)
            continue
        try:
            found = measure(standing.entrant, n)
        except (WarmstartError, MemoryError) as error:
            failures.append(
                error if isinstance(error, WarmstartError) else SourceError(f"out of memory: {error}", LESS)
            )
            race.drop(name, failures[-1].problem)
            continue
        # The best pace so far counts: a busy minute of the machine slows one rung and says nothing of the next.
        found = replace(found, seconds_per_example=min(found.seconds_per_example, standing.cost))
        race.standings[name] = replace(
            standing,
            measured=found,
            n=n,
            path=(*standing.path, (n, found.value)),
            seconds=standing.seconds + found.seconds,
        )
        over = _too_slow(race, race.standings[name])
        if over and len(race.running()) > 1:
            race.drop(name, over)


def _leave_out(race: _Field, standing: Standing) -> None:
    """Let somebody wait for whom the time of the race is over; a rung may take longer than was forecast."""
    name = standing.entrant.name
    if standing.measured is None:
        race.drop(name, "not tried: the time of the race was over")
    else:
        race.standings[name] = replace(standing, waits=True)
    race.stopped = "its share of the budget was used up"


def _joining(race: _Field) -> list[Standing]:
    """Return who has not begun and may, between rungs: its cheaper sibling was measured and is still in."""
    return [s for s in _unmeasured(race) if s.entrant.after is not None and race.standings[s.entrant.after].runs]


def _too_slow(race: _Field, standing: Standing) -> str:
    """Say why an entrant costs more than the winner may, by far while its pace was measured only once."""
    seconds = standing.cost * race.rules.num_examples
    if standing.measured is None:
        sibling = race.standings.get(standing.entrant.after or "")
        seconds = sibling.cost * race.rules.num_examples if sibling is not None and sibling.measured else 0.0
    slack = 1.0 if standing.n > race.rules.rungs[0] else HASTY
    if seconds <= slack * race.rules.full_seconds:
        return ""
    return f"its features alone would take {seconds:.0f} s of the budget"


def _judge(
    race: _Field,
    alive: Sequence[Standing],
    n: int,
    compare: Callable[[Sequence[Predictions], int], Sequence[Comparison]],
) -> None:
    """Drop who is worse than the leader by the paired interval, and by more than it may still catch up."""
    values = [s.measured.value for s in alive if s.measured is not None]
    lead = max(range(len(alive)), key=lambda at: (race.better(values[at], 0.0), -alive[at].entrant.work))
    leader = alive[lead]
    found = compare([s.measured.predictions for s in alive if s.measured is not None], lead)
    names = [s.entrant.name for s in alive]
    race.last = tuple((name, one) for name, one in zip(names, found, strict=True) if name != leader.entrant.name)
    slack = CROSSING * math.log2(race.rules.rungs[-1] / n)
    for standing, comparison in zip(alive, found, strict=True):
        if standing is leader or comparison.verdict != "b":
            continue
        best_case = comparison.high if race.rules.higher_is_better else -comparison.low
        scale = 1.0 if race.rules.higher_is_better else abs(comparison.b)
        if best_case < -slack * scale:
            race.drop(
                standing.entrant.name, f"worse than {leader.entrant.name} on {n:,} examples: {_numbers(comparison)}"
            )


def _numbers(found: Comparison) -> str:
    return f"{found.metric} {found.a:.3f} against {found.b:.3f} ({found.low:+.3f} to {found.high:+.3f})"


def _go_on(race: _Field, n: int, following: int) -> bool:
    """Let go on whom the limits allow, the most promising first, and let the others wait; say whether two do."""
    rules = race.rules
    known = [s.cost for s in race.standings.values() if s.measured is not None]
    exhaustive = rules.num_examples * (sum(known) + sum(_guess(race, s) for s in _unmeasured(race)))
    limit = min(rules.seconds, rules.cost_share * exhaustive)
    left = limit - race.spent()
    running, joining = race.running(), _joining(race)
    coming = sum(s.cost * (following - n) for s in running) + sum(_guess(race, s) * following for s in joining)
    if coming <= left:
        return True
    values = shrunk(running)
    names = []
    order = sorted(range(len(running)), key=lambda at: (-race.better(values[at], 0.0), running[at].entrant.work))
    leader = running[order[0]].entrant.name
    for at in order:
        larger = sum(_guess(race, s) * following for s in joining if s.entrant.after == running[at].entrant.name)
        seconds = running[at].cost * (following - n) + larger
        if seconds <= left:
            names.append(running[at].entrant.name)
            left -= seconds
    share = f"{rules.cost_share:.0%} of probing all of them" if limit < rules.seconds else "its share of the budget"
    race.stopped = f"going on to {following:,} examples with all of them would cost {coming:.0f} s, more than {share}"
    companions = [s for s in joining if s.entrant.after in names]
    if leader not in names or len(names) + len(companions) < 2:  # without the leader, others would run for second place
        return False
    for standing in running:
        if standing.entrant.name not in names:
            race.standings[standing.entrant.name] = replace(standing, waits=True)
    return True


def _unmeasured(race: _Field) -> list[Standing]:
    return [s for s in race.standings.values() if s.measured is None and not s.dropped_because]


def _guess(race: _Field, standing: Standing) -> float:
    """Forecast the seconds per example of somebody not yet measured: twice its cheaper sibling's."""
    sibling = race.standings.get(standing.entrant.after or "")
    return 2.0 * sibling.cost if sibling is not None and sibling.measured is not None else 0.0


def _outcome(race: _Field, failures: Sequence[WarmstartError]) -> Outcome:
    alive = race.alive()
    if not alive:
        assert failures, "a race without failures has a survivor"
        first = failures[0]
        if len(race.standings) == 1:
            raise first
        problem = f"none of {len(race.standings)} candidates could be used (the first: {first.problem})"
        raise SourceError(problem, first.fix) from first
    values = _expected(race, race.running() or alive, alive)
    best = max(range(len(alive)), key=lambda at: (race.better(values[at], 0.0), -alive[at].entrant.work))
    tolerance = close(values[best], higher_is_better=race.rules.higher_is_better)
    near = [at for at in range(len(alive)) if race.better(values[best], values[at]) <= tolerance]
    pick = alive[min(near, key=lambda at: (alive[at].entrant.work, -race.better(values[at], 0.0)))]
    for standing in _unmeasured(race):
        race.drop(standing.entrant.name, f"not tried: {standing.entrant.after} was not in the race to the end")
    order = sorted(
        race.standings.values(),
        key=lambda s: (
            s is not pick and s.entrant.name != pick.entrant.name,
            s.measured is None,
            bool(s.dropped_because),
            -s.n,
            0.0 if s.measured is None else -race.better(s.measured.value, 0.0),
        ),
    )
    return Outcome(tuple(order), pick, _reason(race, alive, alive[best], pick))


def _expected(race: _Field, last: Sequence[Standing], alive: Sequence[Standing]) -> list[float]:
    """Return the values of the last rung; of those who wait, as far from its best as they were side by side."""
    values = dict(zip((s.entrant.name for s in last), shrunk(last), strict=True))
    leader = max(last, key=lambda s: race.better(values[s.entrant.name], 0.0))
    before, top = dict(leader.path), values[leader.entrant.name]
    waiting = {s.entrant.name: top + s.path[-1][1] - before[s.n] for s in alive if s.waits and s.n in before}
    return [{**values, **waiting}.get(s.entrant.name, s.path[-1][1]) for s in alive]


def close(best: float, *, higher_is_better: bool) -> float:
    """Return how little worse than the best is as good: half a point, or half a percent of a metric that goes down."""
    return CLOSE if higher_is_better else CLOSE * abs(best)


def shrunk(standings: Sequence[Standing]) -> list[float]:
    """Draw each value towards what the priors say of it, as far as its noise and their fit deserve (empirical Bayes).

    A line through (prior, value) predicts each value; the share of the way back to that line is noise / (noise +
    spread around it), as in Fay and Herriot (1979), and half of that, since everybody is judged on the same examples
    and shares much of the noise. With fewer than five known priors nothing is drawn.
    """
    values = np.array([s.measured.value for s in standings if s.measured is not None], float)
    priors = np.array([math.nan if s.entrant.prior is None else s.entrant.prior for s in standings], float)
    known = np.isfinite(priors)
    if known.sum() < 5 or np.ptp(priors[known]) == 0 or not ((values >= 0) & (values <= 1)).all():
        return values.tolist()
    slope, intercept = np.polyfit(priors[known], values[known], 1)
    if slope <= 0:
        return values.tolist()
    line = intercept + slope * priors[known]
    counts = np.array([s.n for s in standings], float)[known]
    noise = values[known] * (1 - values[known]) / counts
    spread = max(float(((values[known] - line) ** 2).sum() / max(known.sum() - 2, 1) - noise.mean()), 0.0)
    weight = noise / (noise + spread + 1e-12)
    values[known] += weight / 2 * (line - values[known])
    return values.tolist()


def _reason(race: _Field, alive: Sequence[Standing], best: Standing, pick: Standing) -> str:
    n = pick.n
    assert pick.measured is not None
    if len(race.standings) == 1:
        return "the only candidate"
    told = f"{pick.measured.value:.3f} on {n:,} examples"
    if len(alive) == 1:
        return f"{told}; the others were worse by a paired interval, too slow, or could not be had"
    others = len(alive) - 1
    rest = f"{others} other{'s' if others > 1 else ''} cannot be told from it"
    why = "the best of them" if pick is best else f"the cheapest within half a point of the best, {best.entrant.name}"
    need = _needed(race, pick)
    return f"{told}; {rest}; {why}{f'; {race.stopped}' if race.stopped else ''}{need}"


def _needed(race: _Field, pick: Standing) -> str:
    """Say how many examples would tell the closest rival apart, were the difference what it seems."""
    found = [one for name, one in race.last if race.standings[name].alive and name != pick.entrant.name]
    closest = min((abs(one.difference) / max(one.high - one.low, 1e-9) for one in found), default=0.0)
    if not closest:
        return ""
    ratio = (0.5 / closest) ** 2
    return f"; telling them apart would take about {pick.n * ratio:,.0f} examples" if ratio > 1 else ""
