"""The search for better settings: the space, the study that can be killed anywhere, and a run that ends with one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import warmstart as ws
from warmstart import config, finals, options, pace, study
from warmstart.config import Recipe, read_recipe
from warmstart.data import Dataset, read
from warmstart.errors import RecipeError, TrainingError
from warmstart.options import Options
from warmstart.study import Rules, Rung, Tried

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
        ("optim.lrr=[1,2]", "search.space.optim.lrr: 'optim.lrr' is no key that can be searched", "did you mean 'optim.lr"),
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
    late = [value_of(one.params, 0) for one in found[15:]]
    assert np.mean(late) > np.mean([value_of(one.params, 0) for one in found[:8]]), "it learns from what it saw"


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


# --- a run


def shades(num: int = 160) -> Dataset:
    """Two shades under much noise, which no short fit gets all right."""
    rng = np.random.default_rng(0)
    labels = ["dark" if at % 2 else "light" for at in range(num)]
    noise = rng.integers(0, 200, (num, 24, 24, 3))
    pixels = (noise + np.array([6 * (name == "light") for name in labels])[:, None, None, None]).astype(np.uint8)
    return read.from_arrays(pixels, labels, name="shades")


GIVEN: Options = {
    "backbone": "random/test_resnet",
    "strategy": "lp_ft",
    "budget": "10m",
    "overrides": {"data.image_size": 32, "data.workers": 1, "epochs": 2, "data.val_fraction": 0.4},
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short trials of a few steps, so that a search takes seconds."""
    monkeypatch.setattr(finals, "FEWEST_STEPS", 1)
    monkeypatch.setattr(finals, "EXPLORE", 0.0)
    monkeypatch.setattr(pace, "STARTING_SECONDS", 0.01)


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
