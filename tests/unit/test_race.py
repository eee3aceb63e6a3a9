"""The race on simulated entrants, whose true accuracies are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from warmstart import comparing, race
from warmstart.data import read
from warmstart.errors import SourceError
from warmstart.race import Entrant, Measured, Outcome, Rules
from warmstart.tasks import Predictions
from warmstart.tasks.classification import Classification

NUM = 4000


def bound():
    targets = np.arange(NUM) % 2
    dataset = read.from_arrays([b""] * NUM, targets=targets)
    return Classification().bind(dataset), targets


TASK, TARGETS = bound()


class Simulated:
    """Entrants of a known accuracy; what is hard is hard for all of them, half of the time."""

    def __init__(self, accuracies: dict[str, float], *, costs: dict[str, float] | None = None, seed: int = 0) -> None:
        self.accuracies, self.costs = accuracies, costs or dict.fromkeys(accuracies, 1.0)
        draw = np.random.default_rng(seed)
        self.hard, self.own = draw.random(NUM), {name: draw.random(NUM) for name in accuracies}
        self.coin = draw.random(NUM) < 0.5
        self.asked: list[tuple[str, int]] = []
        self.seen: dict[str, int] = {}

    def measure(self, entrant: Entrant, n: int) -> Measured:
        accuracy = self.accuracies[entrant.name]
        if math.isnan(accuracy):
            raise SourceError(f"no weights for {entrant.name}", "fetch them")
        difficulty = np.where(self.coin, self.hard, self.own[entrant.name])[:n]
        right = difficulty < accuracy
        said = np.where(right, TARGETS[:n], 1 - TARGETS[:n])
        values = np.eye(2, dtype=np.float32)[said]
        found = Predictions(values, values, np.arange(n), TARGETS[:n], None)
        self.asked.append((entrant.name, n))
        new, self.seen[entrant.name] = n - self.seen.get(entrant.name, 0), n
        cost = self.costs[entrant.name]
        return Measured(found, float(right.mean()), new * cost, cost)


def judge(found: Sequence[Predictions], leader: int) -> Sequence[comparing.Comparison]:
    return comparing.many(TASK, found, reference=leader, seed=0)


def raced(field: Simulated, *, entrants: list[Entrant] | None = None, **rules: object) -> Outcome:
    limits = Rules(race.rungs(NUM, first=100, cap=2000), num_examples=NUM, **rules)  # type: ignore[arg-type]
    entrants = entrants or [Entrant(name, work=field.costs[name]) for name in field.accuracies]
    return race.run(entrants, limits, measure=field.measure, compare=judge)


EIGHT = {"a": 0.90, "b": 0.895, "c": 0.86, "d": 0.82, "e": 0.75, "f": 0.7, "g": 0.55, "h": 0.5}


def test_the_pick_is_within_half_a_point_of_the_best_on_average_at_a_quarter_of_the_cost() -> None:
    regrets, shares = [], []
    for seed in range(20):
        field = Simulated(EIGHT, seed=seed)
        outcome = raced(field)
        regrets.append(0.9 - EIGHT[outcome.pick.entrant.name])
        shares.append(sum(s.seconds for s in outcome.standings) / (NUM * len(EIGHT)))
    assert np.mean(regrets) <= 0.005
    assert max(regrets) <= 0.04 + 1e-9
    assert max(shares) <= 0.25


def test_the_best_is_not_dropped_for_a_difference_that_chance_explains() -> None:
    field = Simulated({"a": 0.8, "b": 0.8, "c": 0.8, "d": 0.8}, seed=3)
    outcome = raced(field, cost_share=1.0)
    assert all(s.alive for s in outcome.standings)
    assert "cannot be told from it" in outcome.reason


def test_what_is_clearly_worse_leaves_early_with_its_numbers() -> None:
    field = Simulated({"good": 0.95, "bad": 0.5})
    outcome = raced(field, cost_share=1.0)
    bad = outcome.standings[-1]
    assert (bad.entrant.name, bad.n) == ("bad", 100)
    assert bad.dropped_because.startswith("worse than good on 100 examples: accuracy 0.")
    assert "the others were worse by a paired interval" in outcome.reason
    assert field.asked == [("good", 100), ("bad", 100)]  # with nobody left to beat, nobody runs on


def test_among_equals_the_cheaper_is_taken() -> None:
    field = Simulated({"dear": 0.9, "cheap": 0.9}, costs={"dear": 5.0, "cheap": 1.0})
    field.own["dear"] = field.own["cheap"]  # the very same predictions
    outcome = raced(field, cost_share=1.0)
    assert outcome.pick.entrant.name == "cheap"


def test_a_larger_size_joins_once_its_smaller_sibling_has_survived() -> None:
    field = Simulated({"s": 0.7, "m": 0.8, "l": 0.9, "weak": 0.5, "weak l": 0.95})
    entrants = [
        Entrant("s"),
        Entrant("m", after="s"),
        Entrant("l", after="m"),
        Entrant("weak"),
        Entrant("weak l", after="weak"),
    ]
    field.accuracies["s"] = 0.85
    outcome = raced(field, entrants=entrants, cost_share=1.0)
    assert ("m", 100) not in field.asked
    assert ("l", 400) in field.asked
    assert outcome.pick.entrant.name == "l"
    weak = next(s for s in outcome.standings if s.entrant.name == "weak l")
    assert weak.dropped_because == "not tried: weak was not in the race to the end"


def test_a_failure_is_recorded_and_the_race_goes_on() -> None:
    outcome = raced(Simulated({"here": 0.8, "gone": math.nan}))
    assert outcome.pick.entrant.name == "here"
    assert outcome.standings[1].dropped_because == "no weights for gone"


def test_nobody_left_is_an_error_that_names_the_first_failure() -> None:
    with pytest.raises(SourceError) as caught:
        raced(Simulated({"x": math.nan, "y": math.nan}))
    assert caught.value.problem == "none of 2 candidates could be used (the first: no weights for x)"
    assert caught.value.fix == "fetch them"
    with pytest.raises(SourceError, match="no weights for x\n  fix: fetch them"):
        raced(Simulated({"x": math.nan}))


def test_who_costs_more_than_the_winner_may_is_left_out_but_never_the_last_one() -> None:
    field = Simulated({"quick": 0.7, "slow": 0.9}, costs={"quick": 0.01, "slow": 1.0})
    outcome = raced(field, full_seconds=100.0)
    assert outcome.pick.entrant.name == "quick"
    assert outcome.standings[1].dropped_because == "its features alone would take 4000 s of the budget"
    alone = raced(Simulated({"slow": 0.9}, costs={"slow": 1.0}), full_seconds=100.0)
    assert alone.pick.entrant.name == "slow"


def test_a_race_stops_at_its_seconds_and_says_what_it_would_take() -> None:
    outcome = raced(Simulated({"a": 0.81, "b": 0.8}, seed=5), seconds=500.0)
    assert sum(s.seconds for s in outcome.standings) <= 500
    assert "more than its share of the budget" in outcome.reason
    assert "telling them apart would take about" in outcome.reason


def test_priors_break_ties_of_few_examples_only_when_they_fit() -> None:
    names = [f"n{i}" for i in range(6)]
    field = Simulated(dict(zip(names, (0.5, 0.6, 0.7, 0.8, 0.9, 0.91), strict=True)), seed=1)
    standings = [
        race.Standing(Entrant(name, prior), field.measure(Entrant(name), 50), 50)
        for name, prior in zip(names, (50, 60, 70, 80, 90, 95), strict=True)
    ]
    values = [s.measured.value for s in standings if s.measured]
    drawn = race.shrunk(standings)
    line = np.polyval(np.polyfit((50, 60, 70, 80, 90, 95), values, 1), (50, 60, 70, 80, 90, 95))
    assert np.all(np.abs(drawn - line) <= np.abs(np.array(values) - line) + 1e-12)
    assert race.shrunk(standings[:4]) == values[:4]


def test_where_not_all_can_go_on_the_most_promising_do_and_the_others_wait() -> None:
    field = Simulated({"a": 0.9, "b": 0.9, "c": 0.8, "d": 0.8}, seed=2)
    outcome = raced(field, cost_share=0.075)  # 1,200 s: all on 200 examples, then two on 400
    waited = [s for s in outcome.standings if s.waits]
    assert {s.entrant.name for s in waited} == {"c", "d"}
    assert all(s.alive and s.n == 200 for s in waited), "nobody has shown that they are worse"
    assert [s.n for s in outcome.standings[:2]] == [400, 400]
    assert outcome.standings[0] is outcome.pick and outcome.pick.path[0][0] == 100
    assert "3 others cannot be told from it" in outcome.reason
    assert (
        "going on to 800 examples with all of them would cost 800 s, more than 8% of probing all of them"
        in outcome.reason
    )
    assert sum(s.seconds for s in outcome.standings) <= 0.075 * NUM * 4


def test_nobody_goes_on_without_the_leader() -> None:
    field = Simulated({"dear": 0.9, "a": 0.8, "b": 0.8}, costs={"dear": 10.0, "a": 1.0, "b": 1.0}, seed=4)
    outcome = raced(field, cost_share=0.03)
    assert {n for _, n in field.asked} == {100}
    assert outcome.pick.entrant.name == "dear"


def test_who_waits_is_picked_when_the_best_of_the_last_rung_was_behind_it_side_by_side() -> None:
    def standing(name: str, *path: tuple[int, float], waits: bool = False) -> race.Standing:
        n, value = path[-1]
        measured = Measured(Simulated({name: value}).measure(Entrant(name), n).predictions, value, 1.0, 1.0)
        return race.Standing(Entrant(name), measured, n, path, waits=waits)

    led = standing("led", (100, 0.8), (200, 0.85))
    other = standing("other", (100, 0.78), (200, 0.82))
    before, behind = standing("before", (100, 0.83), waits=True), standing("behind", (100, 0.75), waits=True)
    field = race._Field(Rules((100, 200), 200), {})
    found = race._expected(field, [led, other], [led, other, before, behind])
    assert found == pytest.approx([0.85, 0.82, 0.88, 0.80])


@pytest.mark.parametrize(
    ("num", "expected"), [(50, (50,)), (100, (100,)), (210, (100, 210)), (5000, (100, 200, 400, 800, 1600, 2000))]
)
def test_rungs(num: int, expected: tuple[int, ...]) -> None:
    assert race.rungs(num, first=100, cap=2000) == expected


def test_a_leader_goes_on_alone_with_its_larger_size_where_there_is_no_time_for_others() -> None:
    field = Simulated({"s": 0.88, "l": 0.96, "rival": 0.84}, costs={"s": 1.0, "l": 2.0, "rival": 9.0}, seed=4)
    entrants = [Entrant("s"), Entrant("l", after="s"), Entrant("rival", work=1.0)]
    outcome = raced(field, entrants=entrants, seconds=2000.0)
    assert ("l", 200) in field.asked
    assert ("rival", 200) not in field.asked
    assert outcome.pick.entrant.name == "l"


def test_a_rung_that_takes_longer_than_forecast_ends_with_whom_it_has() -> None:
    field = Simulated({"a": 0.9, "b": 0.89, "c": 0.88}, costs={"a": 3.0, "b": 4.0, "c": 5.0})
    entrants = [Entrant(name, work=cost) for name, cost in field.costs.items()]
    outcome = raced(field, entrants=entrants, seconds=350.0)
    assert field.asked == [("a", 100), ("b", 100)], "after 700 s there is no time for a third"
    assert outcome.standings[-1].dropped_because == "not tried: the time of the race was over"


def test_who_waited_is_picked_when_all_that_went_on_fail() -> None:
    field = Simulated({"s": 0.88, "l": 0.96, "rival": 0.84}, costs={"s": 1.0, "l": 2.0, "rival": 9.0}, seed=4)
    real = field.measure

    def measure(entrant: Entrant, n: int) -> Measured:
        if n > 100:
            raise MemoryError(f"{n} examples")
        return real(entrant, n)

    field.measure = measure  # type: ignore[method-assign]
    entrants = [Entrant("s"), Entrant("l", after="s"), Entrant("rival", work=1.0)]
    outcome = raced(field, entrants=entrants, seconds=2000.0)
    assert outcome.pick.entrant.name == "rival"
    assert {s.entrant.name: s.dropped_because for s in outcome.standings[1:]} == {
        "s": "out of memory: 200 examples",
        "l": "out of memory: 200 examples",
    }


def test_nobody_fits_the_memory() -> None:
    field = Simulated({"x": 0.9, "y": 0.8})

    def measure(entrant: Entrant, n: int) -> Measured:
        raise MemoryError(f"{n} examples")

    field.measure = measure  # type: ignore[method-assign]
    with pytest.raises(SourceError) as caught:
        raced(field)
    assert caught.value.problem == "none of 2 candidates could be used (the first: out of memory: 100 examples)"
    assert caught.value.fix == "a smaller data.image_size, or other --candidates"
