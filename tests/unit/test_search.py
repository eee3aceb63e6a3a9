"""The search for better settings: the space, the study that can be killed anywhere, and a run that ends with one."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

import warmstart as ws
from warmstart import config, finals, options, pace, prepare, resources, search, study, workflow
from warmstart.config import Choice, Recipe, read_recipe
from warmstart.data import Dataset, read
from warmstart.errors import RecipeError, TrainingError
from warmstart.options import Options
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.study import Rules, Rung, Tried
from warmstart.tune import Candidate, Trial

SPACE = {"optim.lr": (1e-5, 1e-1), "data.augment": ("none", "flip"), "strategy.depth": (1, 4)}
RULES = Rules(SPACE, (1.0, 3.0, 9.0), trials=12, seconds=1e9)


def value_of(params: Mapping[str, object], rung: int) -> float:
    """Best at a learning rate of 1e-3 with flips, and a little better on every rung."""
    rate = float(str(params["optim.lr"]))
    return 1 - abs(math.log10(rate) + 3) / 4 + 0.1 * (params["data.augment"] == "flip") + 0.01 * rung


def measure(params: Mapping[str, object], rung: int) -> Rung:
    return Rung(value_of(params, rung), 100 * 3**rung, RULES.rungs[rung])


def explored(folder: Path, rules: Rules = RULES, **given: object) -> list[Tried]:
    folder.mkdir(exist_ok=True)
    return list(study.explore(folder / "journal.log", rules, given.pop("measure", measure), **given))  # type: ignore[arg-type]


# --- the space in a recipe


def test_a_space_is_read_from_every_place_and_written_back(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        '[search]\ntrials = 20\n[search.space]\n"optim.lr" = [1e-5, 1e-3]\n'
        'data.augment = ["none", "flip"]\nstrategy.depth = ["none", 2]\n'
    )
    wanted = {"optim.lr": (1e-5, 1e-3), "data.augment": ("none", "flip"), "strategy.depth": (None, 2)}
    from_file = read_recipe(path)
    words = ["search.space.optim.lr=1e-5,1e-3", "search.space.data.augment=[none, 'flip']"]
    from_words = read_recipe(None, [*words, "search.space.strategy.depth=[none,2]", "search.trials=20"])
    from_python = read_recipe(None, (), {"search.space": {k: list(v) for k, v in wanted.items()}, "search.trials": 20})
    for found in (from_file, from_words, from_python):
        assert (found.recipe.search.space, found.recipe.search.trials) == (wanted, 20)
        assert found.recipe.search.asked
    path.write_text(from_file.to_toml())
    assert read_recipe(path).recipe == from_file.recipe
    assert config.get_key(from_file.recipe, "search.space.optim.lr") == (1e-5, 1e-3)
    assert config.get_key(Recipe(), "search.space.optim.lr") is None
    assert not Recipe().search.asked and not read_recipe(overrides=["search.trials=0"]).recipe.search.asked


def test_a_space_may_name_options_of_the_strategy_that_is_given_or_of_any() -> None:
    for strategy in ([], ["strategy=lp_ft"], ["strategy=probe"]):
        assert read_recipe(overrides=[*strategy, "search.space.strategy.depth=[1,3]"]).recipe.search.space
    with pytest.raises(RecipeError, match=r"'strategy\.deep' is no key that can be searched\n  fix: did you mean 'str"):
        read_recipe(overrides=["strategy=lp_ft", "search.space.strategy.deep=[1,3]"])


@pytest.mark.parametrize(
    ("word", "problem", "fix"),
    [
        ("optim.lrr=[1,2]", "search.space.optim.lrr: 'optim.lrr' is no key that can be searched", "did you mean 'opt"),
        ("seed=[1,2]", "search.space.seed: 'seed' is no key that can be searched", "known: batch_size, data.augment"),
        (
            "optim.lr=[1e-3,1e-5]",
            "search.space.optim.lr=[0.001, 1e-05] is no range (expected low < high)",
            "search.space.optim.lr=[1e-05, 0.001]",
        ),
        (
            "strategy.depth=[2,2]",
            "search.space.strategy.depth=[2, 2] is no range (expected low < high)",
            "search.space.strategy.depth=[2]",
        ),
        (
            "data.augment=[none,flop]",
            "search.space.data.augment='flop' does not fit (expected 'none', 'flip', 'standard' or 'strong')",
            'search.space.data.augment=["none", "flip", "standard", "strong"]',
        ),
        (
            "optim.lr=3",
            "search.space.optim.lr=3 is neither a range nor a list of choices",
            "search.space.optim.lr=[0.0001, 0.001]",
        ),
        (
            "batch_size=[]",
            "search.space.batch_size=[] is neither a range nor a list of choices",
            "search.space.batch_size=[1, 4]",
        ),
        (
            "batch_size=[0,8]",
            "search.space.batch_size=0 does not fit (expected at least 1)",
            "search.space.batch_size=[1, 4]",
        ),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_searched(word: str, problem: str, fix: str) -> None:
    with pytest.raises(RecipeError) as error:
        read_recipe(overrides=[f"search.space.{word}"])
    assert error.value.problem == problem
    assert error.value.fix.startswith(fix)
    read_recipe(overrides=[error.value.fix] if "=" in fix else [])


def test_a_space_without_keys() -> None:
    with pytest.raises(
        RecipeError, match=r"search\.space=3 names no key\n  fix: search\.space\.optim\.lr=\[1e-4, 1e-3\]"
    ):
        read_recipe(overrides=["search.space=3"])


def test_the_flag_sets_the_number_of_trials() -> None:
    assert options.sourced("photos", {"search": 20}).recipe.search.trials == 20
    assert options.describe("search").startswith("Settings to try by short trials after the planned fit")
    with pytest.raises(RecipeError, match=r"search\.trials='many' does not fit \(expected int \| none\)"):
        options.sourced("photos", {"search": "many"})  # type: ignore[typeddict-item]


def test_ranges_are_logarithmic_when_their_ends_are_far_apart() -> None:
    found = study.distributions({**SPACE, "schedule.warmup_fraction": (0.0, 0.3), "strategy.lr_decay": (0.6, 1.0)})
    said = {key: (type(one).__name__, getattr(one, "log", None)) for key, one in found.items()}
    assert said == {
        "optim.lr": ("FloatDistribution", True),
        "data.augment": ("CategoricalDistribution", None),
        "strategy.depth": ("IntDistribution", False),
        "schedule.warmup_fraction": ("FloatDistribution", False),
        "strategy.lr_decay": ("FloatDistribution", False),
    }


# --- the study


def test_a_search_finds_what_is_better(tmp_path: Path) -> None:
    found = explored(tmp_path, replace(RULES, trials=30))
    assert len(found) == 30
    best = max((one for one in found if one.state == "complete"), key=lambda one: one.rungs[-1].value)
    assert best.params["data.augment"] == "flip" and 10**-3.5 < best.params["optim.lr"] < 10**-2.5  # type: ignore[operator]
    assert all(isinstance(one.params["strategy.depth"], int) for one in found)
    climbed = [sum(len(one.rungs) > rung for one in found) for rung in range(3)]
    assert climbed[0] == 30 and climbed[1] <= 20 and 1 <= climbed[2] <= climbed[1], "few climb on"
    assert len({str(one.params) for one in found}) == 30
    worst = explored(tmp_path / "worst", replace(RULES, trials=30, higher_is_better=False))
    assert [one.params for one in worst[: study.STARTUP]] == [one.params for one in found[: study.STARTUP]]
    late, wrong = (np.mean([value_of(one.params, 0) for one in trials[10:]]) for trials in (found, worst))
    assert late > wrong + 0.1, "it learns from what it saw"


def test_smaller_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    rules = replace(RULES, trials=20, higher_is_better=False)
    found = explored(tmp_path / "low", rules, measure=lambda p, r: replace(measure(p, r), value=-value_of(p, r)))
    assert [one.params for one in found] == [
        one.params for one in explored(tmp_path / "high", replace(rules, higher_is_better=True))
    ]


@pytest.mark.parametrize("fits_before", [0, 1, 2, 5, 9, 14])
def test_a_killed_search_goes_on_and_ends_the_same(tmp_path: Path, fits_before: int) -> None:
    whole = explored(tmp_path / "whole")
    fits = 0

    def killed(params: Mapping[str, object], rung: int) -> Rung:
        nonlocal fits
        if fits == fits_before:
            raise KeyboardInterrupt
        fits += 1
        return measure(params, rung)

    with pytest.raises(KeyboardInterrupt):
        explored(tmp_path / "killed", measure=killed)
    assert explored(tmp_path / "killed") == whole
    assert explored(tmp_path / "killed", measure=forbidden) == whole, "nothing is measured again"


def forbidden(*_: object, **__: object) -> Rung:
    raise AssertionError("nothing is computed again")


def test_a_torn_line_and_a_lock_that_was_left_are_no_obstacle(tmp_path: Path) -> None:
    whole = explored(tmp_path / "whole")
    explored(tmp_path / "torn", replace(RULES, trials=4))
    journal = tmp_path / "torn" / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:37])
    (tmp_path / "torn" / "journal.log.lock").touch()
    assert explored(tmp_path / "torn") == whole


def test_the_journal_is_lines_of_json(tmp_path: Path) -> None:
    found = explored(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "journal.log").read_text().splitlines()]
    assert sum("intermediate_values" in line for line in lines) == len(found) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["journal.log"]


def test_another_seed_proposes_other_settings(tmp_path: Path) -> None:
    first, other = explored(tmp_path / "a"), explored(tmp_path / "b", replace(RULES, seed=1))
    assert first[0].params != other[0].params


def test_what_is_known_is_not_measured_and_what_waits_comes_first(tmp_path: Path) -> None:
    top = {"optim.lr": 1e-3, "data.augment": "flip", "strategy.depth": 2}
    known = [
        Tried(top, tuple(measure(top, rung) for rung in range(3)), "complete", known=True),
        Tried({**top, "optim.lr": 3e-3}, (Rung(0.9, 100, 0.0),), "pruned", "of the finals", known=True),
    ]
    waits = [{**top, "optim.lr": 1e-2}, {**top, "data.augment": "none"}]
    found = explored(tmp_path, known=known, queue=waits)
    assert len(found) == 12, "known ones are no trials"
    assert [one.params for one in found[:2]] == waits
    assert all(len(one.rungs) == 1 for one in found[:2]), "they stand against what is known"
    assert explored(tmp_path, known=known, queue=waits, measure=forbidden) == found
    assert found[2:] != explored(tmp_path / "without")[2:]


def test_time_ends_a_search_before_a_fit_that_does_not_fit(tmp_path: Path) -> None:
    spent = 0.0

    def timed(params: Mapping[str, object], rung: int) -> Rung:
        nonlocal spent
        spent += RULES.rungs[rung]
        return measure(params, rung)

    found = explored(tmp_path / "a", measure=timed, has_time=lambda need: spent + need <= 20)
    assert 0 < len(found) < 12 and 17 < spent <= 20
    assert sum(one.seconds for one in found) == spent
    cut = [one for one in found if one.because == "its time was up"]
    assert all(one.state == "pruned" and one.rungs for one in cut)
    allowed = explored(tmp_path / "b", replace(RULES, seconds=20.0))
    assert 0 < len(allowed) < 12
    assert explored(tmp_path / "b", replace(RULES, seconds=20.0), measure=forbidden) == allowed, "and stays ended"


def test_settings_that_fail_are_recorded_and_the_search_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(params: Mapping[str, object], rung: int) -> Rung:
        if params["data.augment"] == "none":
            raise TrainingError("the loss is not a number", "optim.lr=1e-5")
        return Rung(math.nan, 1, 1.0) if params["strategy.depth"] == 1 else measure(params, rung)

    found = explored(tmp_path, measure=fails)
    assert len(found) == 12
    reasons = {one.because for one in found if one.state == "failed"}
    assert reasons == {"the loss is not a number", "not a number"}
    assert any("was left out: the loss is not a number" in record.message for record in caplog.records)
    assert explored(tmp_path, measure=forbidden) == found


def test_a_space_of_few_choices_fits_nothing_twice(tmp_path: Path) -> None:
    seen: list[object] = []

    def counted(params: Mapping[str, object], rung: int) -> Rung:
        seen.append((params["data.augment"], rung))
        return Rung(0.5, 1, 1.0)

    rules = replace(RULES, space={"data.augment": ("none", "flip", None)}, rungs=(1.0,))
    found = explored(tmp_path, rules, measure=counted)
    assert len(found) == 12 and len(seen) == len(set(seen)) == 3
    assert sum(one.seconds for one in found) == 3.0


def test_optuna_says_nothing_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    explored(tmp_path, replace(RULES, trials=3))
    assert capfd.readouterr().err == ""


def test_inside() -> None:
    inside = {"optim.lr": 1e-3, "data.augment": "flip", "strategy.depth": 2}
    assert study.inside(inside, SPACE)
    for key, value in (("optim.lr", 1.0), ("data.augment", "strong"), ("strategy.depth", None)):
        assert not study.inside({**inside, key: value}, SPACE)


# --- what a run makes of it, with a made-up pace and made-up fits

RATE, FULL = 3e-4, 300.0
PLANNED = Candidate("random/test_resnet", 32, Choice("lp_ft"), {"optim.lr": RATE, "epochs": 30})


def short(rate: float, value: float, examples: int = 400, **options: object) -> finals.Short:
    tried = replace(PLANNED, strategy=Choice("lp_ft", options), settings={"optim.lr": rate})
    return finals.Short("lp_ft", rate, examples, value, 5.5, "worse", tried)


SHORTS = (short(RATE, 0.6, depth=1), short(RATE / 3, 0.7), short(RATE * 3, 0.75), short(RATE, 0.8))
PLAN = finals.Plan(PLANNED, "it was best", FULL, SHORTS)


@dataclass
class Bed:
    """A command in which a fit of so many seconds takes no time, or moves the clock."""

    session: Session
    data: Prepared
    fits: list[Candidate] = field(default_factory=list)
    clock: float = 0.0
    """How much of its seconds a fit takes."""
    killed_at: int = 10**9

    def measure(self, task: object, candidate: Candidate, seconds: float) -> Rung:
        if len(self.fits) == self.killed_at:
            raise KeyboardInterrupt
        self.fits.append(candidate)
        self.session.started -= self.clock * seconds
        lr = float(str(candidate.settings["optim.lr"]))
        flips = candidate.settings.get("data.augment") == "flip"
        return Rung(
            0.9 - abs(math.log10(lr / 1e-3)) / 5 + 0.05 * flips - 0.01 * seconds, round(100 * seconds - 150), seconds
        )

    def suggest(self, plan: finals.Plan = PLAN) -> Candidate | None:
        trial = cast("Trial", SimpleNamespace(seconds=FULL))
        return search.suggest(self.session, self.data, plan, [trial])

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.session.folder.path / "search/journal.log").read_text().splitlines()]


@contextmanager
def bed(folder: Path, monkeypatch: pytest.MonkeyPatch, **given: object) -> Iterator[Bed]:
    data, words = shades(500), ["data.val_fraction=0.3", *cast("list[str]", given.pop("overrides", []))]
    options = cast("Options", {"strategy": "lp_ft", "budget": "1h", "out": folder, "overrides": words, **given})
    with workflow.opened("run", data, options, None) as session:
        ready = prepare.prepare(session, data)
        made = Bed(session, ready)
        speed = pace.Pace(0.0, 0.01, 1000, 100)
        monkeypatch.setattr(pace, "measured", lambda *_: speed)
        monkeypatch.setattr(search._Task, "measure", lambda *given: made.measure(*given))
        monkeypatch.setattr(finals, "num_val", lambda _: 0)
        yield made


def test_a_run_with_time_left_ends_with_better_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bed(tmp_path / "run", monkeypatch) as here:
        found = here.suggest()
        assert found is not None
        assert found.settings["epochs"] == 30 and found.settings["data.augment"] == "flip"
        assert 7e-4 < float(str(found.settings["optim.lr"])) < 1.5e-3
        assert (found.backbone, found.image_size, found.strategy.name) == ("random/test_resnet", 32, "lp_ft")
        told = search.told(here.session)
        assert told[0].verdict == "as planned" and told[0].lr == RATE
        best = [row for row in told if row.verdict == "best of the search"]
        assert [row.candidate for row in best] == [replace(found, settings=replaced(found))]
        assert best[0].examples == max(row.examples for row in told), "who left early had it easier"
        assert {row.verdict for row in told} > {"left at rung 1 of 3"}
        reasons = {one.key: one.reason for one in here.session.decisions}
        assert reasons["search.trials"].endswith(" s beside another full fit")
        assert set(reasons) >= {f"search.space.{key}" for key in ("optim.lr", "data.augment", "strategy.lr_decay")}
        assert [fit for fit in here.fits if fit == PLANNED_SHORT][:3] == here.fits[:3], (
            "the planned settings climb first"
        )
        measured = len(here.fits)
        assert here.suggest() == found and len(here.fits) == measured, "it is remembered"


PLANNED_SHORT = replace(PLANNED, settings={"optim.lr": RATE})


def replaced(found: Candidate) -> dict[str, object]:
    return {key: value for key, value in found.settings.items() if key != "epochs"}


def test_what_the_finals_measured_begins_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = "search.space.optim.lr=[1e-5,1e-2]"
    with bed(tmp_path / "a", monkeypatch, overrides=[known], search=3) as here:
        here.suggest()
        trials = [line for line in here.lines() if "intermediate_values" in line]
        values = [(line["params"], line["intermediate_values"]) for line in trials]
        assert [params for params, _ in values[:3]] == [{"optim.lr": rate} for rate in (RATE, RATE / 3, RATE * 3)]
        assert [numbers for _, numbers in values[1:3]] == [{"1": 0.7}, {"1": 0.75}], "of another depth is another story"
        assert len(values[0][1]) == 3 and len(trials) == 3 + 3  # type: ignore[arg-type]
    other = finals.Plan(PLANNED, "it was best", FULL, (short(RATE / 3, 0.7, 999), *SHORTS[-1:]))
    with bed(tmp_path / "b", monkeypatch, overrides=[known], search=3) as here:
        here.suggest(other)
        assert here.fits[3].settings["optim.lr"] == RATE / 3, "what saw another number of examples is tried again first"


@pytest.mark.parametrize("killed_at", [0, 2, 3, 7, 12])
def test_a_killed_run_suggests_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int) -> None:
    with bed(tmp_path / "whole", monkeypatch, search=10) as here:
        wanted, told = here.suggest(), search.told(here.session)
    with bed(tmp_path / "killed", monkeypatch, search=10) as here:
        here.killed_at = killed_at
        with pytest.raises(KeyboardInterrupt):
            here.suggest()
    with bed(tmp_path / "killed", monkeypatch, search=10) as here:
        here.session.started -= 100.0  # another time is left
        assert (here.suggest(), search.told(here.session)) == (wanted, told)
        assert len(here.fits) >= 1


def test_time_is_kept_for_the_full_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bed(tmp_path / "run", monkeypatch, search=1000) as here:
        here.clock = 3.0
        here.suggest()
        assert 10 < len(search.told(here.session)) < 200
        assert here.session.seconds_left() * pace.SPARE > FULL


def test_little_time_is_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with bed(tmp_path / "a", monkeypatch, budget="400s") as here:
        assert here.suggest() is None and not here.fits and not search.told(here.session)
        decision = here.session.decisions[-1]
        assert (decision.key, decision.value) == ("search.trials", 0)
        assert re.fullmatch(r"(29|30) s beside another full fit, and a short trial takes 5 s", decision.reason)
    with bed(tmp_path / "b", monkeypatch, budget="370s", search=5) as here:
        assert here.suggest() is None and not here.fits
        assert " s beside another full fit, and a short trial takes 5 s" in caplog.text


def test_settings_that_nothing_beats_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = replace(PLANNED, settings={"optim.lr": 1e-3, "data.augment": "flip"})
    with bed(tmp_path / "run", monkeypatch, search=5) as here:
        assert here.suggest(finals.Plan(best, "it was best", FULL)) is None
        assert search.told(here.session)[0].verdict == "best of the search, as planned"
    with bed(tmp_path / "off", monkeypatch, search=0) as here:
        assert not search.available(here.session)
        assert search.suggest(here.session, here.data, finals.Plan(None, "a probe was asked for"), []) is None


def test_what_is_given_stays_and_what_the_strategy_lacks_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["optim.weight_decay=0.01", "schedule.warmup_fraction=0.2", "strategy.lr_decay=0.9"]
    with bed(tmp_path / "a", monkeypatch, overrides=words) as here:
        here.suggest()
        assert set(here.session.recipe.search.space) == {"optim.lr", "data.augment"}
    words = ["search.space.strategy.alpha=[0.1,1]", "search.space.optim.lr=[1e-4,1e-2]"]
    with bed(tmp_path / "b", monkeypatch, overrides=words, search=2) as here:
        here.suggest()
        assert "not searched, since lp_ft has no such option: strategy.alpha" in caplog.text
        assert all(set(fit.settings) == {"optim.lr"} for fit in here.fits)
    deep = replace(PLANNED, strategy=Choice("lp_ft", {"depth": 2}))
    with bed(tmp_path / "c", monkeypatch, search=2) as here:
        here.suggest(finals.Plan(deep, "it was best", FULL))
        assert here.session.recipe.search.space["strategy.depth"] == (1, 3)
        assert "data.augment" not in here.session.recipe.search.space, "cached values are not augmented"


def test_without_optuna_only_those_who_asked_hear_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda _: None)
    caplog.set_level(logging.INFO)
    with bed(tmp_path / "a", monkeypatch) as here:
        assert not search.available(here.session)
        assert "no search for better settings: optuna is not installed" in caplog.text
    for given in ({"search": 20}, {"overrides": ["search.space.optim.lr=[1e-4,1e-2]"]}):
        with bed(tmp_path / next(iter(given)), monkeypatch, **given) as here, pytest.raises(RecipeError) as error:
            search.available(here.session)
        named = "search.trials=20" if "search" in given else "search.space"
        assert error.value.problem == f"{named} needs optuna, which is not installed"
        assert error.value.fix == 'pip install "warmstart[search]"'


# --- a run


def shades(num: int = 320) -> Dataset:
    """Two shades under much noise, which no short fit gets all right."""
    rng = np.random.default_rng(0)
    labels = ["dark" if at % 2 else "light" for at in range(num)]
    noise = rng.integers(0, 200, (num, 24, 24, 3))
    pixels = (noise + np.array([12 * (name == "light") for name in labels])[:, None, None, None]).astype(np.uint8)
    return read.from_arrays(pixels, labels, name="shades")


GIVEN: Options = {
    "backbone": "random/test_resnet",
    "strategy": "lp_ft",
    "budget": "10m",
    "overrides": {"data.image_size": 32, "data.workers": 1, "epochs": 2, "data.val_fraction": 0.45},
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short trials of a few steps, so that a search takes seconds."""
    monkeypatch.setattr(finals, "FEWEST_STEPS", 1)
    monkeypatch.setattr(finals, "EXPLORE", 0.0)
    monkeypatch.setattr(pace, "STARTING_SECONDS", 0.01)
    monkeypatch.setattr(resources, "trim", lambda: None)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_run_searches_when_asked_and_reports_it(tmp_path: Path) -> None:
    run = ws.run(shades(), out=tmp_path / "run", search=4, **GIVEN)
    facts = run.facts
    told = [short for short in facts.short_trials if "data.augment=" in short.name]
    assert len(told) >= 3 and all(short.seconds > 0 for short in told)
    assert sum(short.verdict.startswith("best of the search") for short in told) == 1
    settings = {setting.key: setting for setting in facts.recipe}
    assert settings["search.trials"].value == "4"
    assert settings["search.space.data.augment"].value == "('none', 'flip', 'standard', 'strong')"
    assert settings["search.space.optim.lr"].origin == "decided: a tenth to ten times the planned one"
    assert (tmp_path / "run" / "search" / "journal.log").is_file()
    assert not list((tmp_path / "run" / "checkpoints").glob("search-*")), "they are not kept"
    recipe = read_recipe(tmp_path / "run" / "recipe.toml").recipe
    assert recipe.search.space["optim.lr"] == (3e-5, 3e-3)
    assert "search" in {stage.name for stage in facts.stages}
    best = next(short for short in told if short.verdict.startswith("best"))
    assert len(facts.attempts) == (2 if best.verdict.endswith("as planned") else 3)
