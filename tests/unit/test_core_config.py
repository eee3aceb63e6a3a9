"""Recipes: words, files and keywords become one checked description, and every problem is said at once."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart import catalogue, config, options
from warmstart.config import Choice, Recipe, read_recipe
from warmstart.errors import RecipeError
from warmstart.strategies.gradual import Gradual
from warmstart.strategies.probe import Probe


def recipe(*words: str) -> Recipe:
    return read_recipe(overrides=words).recipe


def refused(*words: str) -> RecipeError:
    with pytest.raises(RecipeError) as found:
        recipe(*words)
    return found.value


# --- words


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("optim.lr=1e-3", "optim.lr", 1e-3),
        ("optim.lr=1", "optim.lr", 1.0),
        ("optim=sgd", "optim.name", "sgd"),
        ("schedule=step", "schedule.name", "step"),
        ("optim.nesterov=true", "optim.nesterov", True),
        ("seed=7", "seed", 7),
        (" seed =7", "seed", 7),
        ("budget=1h30m", "budget", 5400.0),
        ("budget=90", "budget", 90.0),
        ("data.path=a=b", "data.path", "a=b"),
        ("data.path='1'", "data.path", "1"),
        ("data.path=my pictures/[1]", "data.path", "my pictures/[1]"),
        ("data.separator=;", "data.separator", ";"),
        ("optim.clip_norm=none", "optim.clip_norm", None),
        ("data.image_size=none", "data.image_size", None),
        ("strategy=probe", "strategy", "probe"),
        ("strategy.name=probe", "strategy.name", "probe"),
        ("device=cpu", "device", "cpu"),
    ],
)
def test_a_word_sets_a_key(word: str, key: str, value: object) -> None:
    found = config.get_key(recipe(word), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("word", ["seed", "", "=3", " =3", "--seed"])
def test_a_word_without_key_and_value_is_refused(word: str) -> None:
    with pytest.raises(RecipeError, match=r"is no override \(expected key=value\)\n  fix: optim\.lr=1e-3") as found:
        recipe(word)
    assert repr(word) in found.value.problem


def test_a_later_word_wins_over_keywords_and_they_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("seed = 1\nbatch_size = 8\nepochs = 2\n")
    found = read_recipe(file, ["seed=3"], {"seed": 2, "batch_size": 4, "epochs": None})
    assert (found.recipe.seed, found.recipe.batch_size, found.recipe.epochs) == (3, 4, 2)
    assert found.origins == {"seed": "command line", "batch_size": "command line", "epochs": "recipe a.toml"}


# --- strategy and task options


def test_a_bare_option_belongs_to_the_chosen_strategy_and_keeps_its_origin(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[strategy]\nname = "l2_sp"\nalpha = 0.5\nbeta = 0.5\n')
    found = read_recipe(file, ["alpha=0.25"])
    assert found.recipe.strategy == Choice("l2_sp", {"alpha": 0.25, "beta": 0.5})
    assert "alpha = 0.25  # command line" in found.to_toml()
    assert "beta = 0.5  # recipe a.toml" in found.to_toml()


def test_a_bare_option_of_no_chosen_strategy_is_unknown() -> None:
    assert refused("alpha=0.25").problem == "unknown key 'alpha'"
    assert refused("strategy=probe", "alpha=0.25").problem == "unknown key 'alpha'"


def test_a_key_of_the_recipe_is_not_taken_for_an_option() -> None:
    found = recipe("strategy=gradual", "epochs=3")
    assert found.epochs == 3
    assert "epochs" not in found.strategy.options


def test_an_option_without_its_plug_in_says_which_word_is_missing() -> None:
    found = refused("strategy.alpha=0.5")
    assert found.problem == "strategy.alpha is given, but no strategy"
    assert found.fix.startswith("--strategy ")
    found = refused("task.loss=l1")
    assert found.problem == "task.loss is given, but no task"
    assert found.fix == "--task classification"


def test_options_are_converted_and_reach_the_plug_in() -> None:
    assert config.plugin_of("strategy", recipe("strategy=probe", "head=gradient").strategy) == Probe("gradient")
    assert isinstance(config.plugin_of("strategy", recipe("strategy=gradual").strategy), Gradual)


def test_an_unknown_plug_in_is_named_with_the_closest() -> None:
    found = refused("strategy=prob")
    assert (found.problem, found.fix) == ("unknown strategy 'prob'", "did you mean 'probe'?")


# --- what does not fit


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("optim.lrr=1", "did you mean 'optim.lr'?"),
        ("batchsize=1", "did you mean 'batch_size'?"),
        ("data.image_sise=96", "did you mean 'data.image_size'?"),
        ("image_size=96", "did you mean 'data.image_size'?"),
    ],
)
def test_an_unknown_key_is_told_with_the_closest(word: str, fix: str) -> None:
    found = refused(word)
    assert (found.problem, found.fix) == (f"unknown key {word.partition('=')[0]!r}", fix)


@pytest.mark.parametrize("word", ["data=x", "data.path.more=1", "optim.name.x=1", ".=1", "data.=1", "_x=1"])
def test_sections_and_made_up_keys_are_unknown_keys(word: str) -> None:
    assert refused(word).problem.startswith("unknown key ")


@pytest.mark.parametrize(
    ("word", "problem", "fix"),
    [
        ("seed=abc", "seed='abc' does not fit (expected int)", "seed=10"),
        ("seed=1.5", "seed=1.5 does not fit (expected int)", "seed=10"),
        ("optim.lr=fast", "optim.lr='fast' does not fit (expected float | none)", "optim.lr=1e-3"),
        ("optim.nesterov=maybe", "optim.nesterov='maybe' does not fit (expected bool)", "optim.nesterov=true"),
        ("optim=adan", "optim.name='adan' does not fit (expected 'adamw', 'adam' or 'sgd')", "optim.name=adam"),
        ("data.fit=squach", "data.fit='squach' does not fit (expected 'crop', 'squash' or 'pad')", "data.fit=squash"),
        ("data.path=[1]", "data.path=[1] does not fit (expected str | none)", "data.path=word"),
        ("budget=soon", "budget='soon' is no duration", "--budget 10m (or 90s, 1h30m, 2h)"),
        ("batch_size=0", "batch_size=0 does not fit (expected at least 1)", "batch_size=1"),
        ("data.image_size=-8", "data.image_size=-8 does not fit (expected at least 1)", "data.image_size=1"),
        ("data.workers=-1", "data.workers=-1 does not fit (expected at least 0)", "data.workers=0"),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_one_that_does(word: str, problem: str, fix: str) -> None:
    found = refused(word)
    assert (found.problem, found.fix) == (problem, fix)


@pytest.mark.parametrize("word", ["seed=10", "optim.name=adam", "data.fit=squash", "batch_size=1", "optim.lr=1e-3"])
def test_the_fixes_above_are_accepted(word: str) -> None:
    recipe(word)


def test_every_problem_is_said_at_once() -> None:
    found = refused("seed=x", "optim.lrr=1", "strategy=nope", "budget=soon")
    assert found.problem.splitlines() == [
        "4 problems in the recipe",
        "  - seed='x' does not fit (expected int) (seed=10)",
        "  - unknown key 'optim.lrr' (did you mean 'optim.lr'?)",
        f"  - unknown strategy 'nope' ({refused('strategy=nope').fix})",
        "  - budget='soon' is no duration (--budget 10m (or 90s, 1h30m, 2h))",
    ]


def test_no_more_than_twenty_problems_are_listed() -> None:
    found = refused(*(f"data.nope{at}=1" for at in range(25)))
    assert found.problem.startswith("25 problems in the recipe\n")
    assert found.problem.splitlines()[-1] == "  and 5 more"
    assert len(found.problem.splitlines()) == 22


# --- durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1 h 30 m", 5400),
        ("2d", 172800),
        ("1.5m", 90),
        (" 12 ", 12),
        (3, 3),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert config.parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-5", -5, 0, "5x", "m", "10m!", "1e3", True, math.nan, math.inf, None])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(RecipeError, match="is no duration\n  fix: --budget 10m"):
        config.parse_seconds(text)  # type: ignore[arg-type]


@given(st.integers(0, 5), st.integers(0, 50), st.integers(1, 50))
def test_words_of_a_duration_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert config.parse_seconds(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


# --- files


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe at .*gone\.toml\n  fix: ls recipes/"):
        read_recipe(tmp_path / "gone.toml")


@pytest.mark.parametrize("content", [b"seed = ", b"seed = 1\nseed = 2\n", b"\xff\xfe", b"<html>"])
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"a\.toml is not TOML: .+\n  fix: key = value lines under \[sections\]"):
        read_recipe(tmp_path / "a.toml")


def test_the_origin_of_every_value_stands_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('backbone = "random/resnet18"\n[optim]\nname = "sgd"\n')
    sourced = read_recipe(file, ["optim.lr=0.5", "strategy=probe"]).decide("epochs", 4, "it fits")
    lines = sourced.to_toml().splitlines()
    assert 'backbone = "random/resnet18"  # recipe a.toml' in lines
    assert 'name = "sgd"  # recipe a.toml' in lines
    assert "lr = 0.5  # command line" in lines
    assert 'name = "probe"  # command line' in lines
    assert "epochs = 4  # decided: it fits" in lines
    assert "seed = 0  # default" in lines
    assert not any(line.startswith("early_stopping") for line in lines), "open values are left out"


def test_a_reason_of_several_lines_stays_a_comment(tmp_path: Path) -> None:
    sourced = read_recipe().decide("epochs", 4, 'two\nlines\x07 = "and a bell')
    (tmp_path / "a.toml").write_text(sourced.to_toml())
    assert read_recipe(tmp_path / "a.toml").recipe == replace(Recipe(), epochs=4)


TEXT = st.sampled_from(["\x7f", "\n", "#", "a\"b'"]) | st.text(
    st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20
).filter(lambda text: text != "none")
NUMBER = st.floats(1e-12, 1e12)
VALUES = {
    "data.path": TEXT,
    "data.separator": TEXT,
    "data.image_size": st.integers(1, 10**6),
    "data.fit": st.sampled_from(["crop", "squash", "pad"]),
    "data.val_fraction": st.floats(0.01, 0.99),
    "data.workers": st.integers(0, 64),
    "backbone": TEXT,
    "optim.name": st.sampled_from(["adamw", "adam", "sgd"]),
    "optim.lr": NUMBER,
    "optim.nesterov": st.booleans(),
    "optim.clip_norm": st.just("none") | NUMBER,
    "schedule.factor": NUMBER,
    "epochs": st.integers(1, 10**6),
    "ema": st.floats(0.0, 1.0),
    "seed": st.integers(0, 2**63),
    "budget": NUMBER,
    "strategy.name": st.just("l2_sp"),
    "task.name": st.just("classification"),
}
OPTIONS = {"strategy.alpha": NUMBER, "strategy.head": st.just("fresh"), "task.label_smoothing": st.floats(0.0, 0.5)}


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({}, optional=VALUES), st.fixed_dictionaries({}, optional=OPTIONS))
def test_a_recipe_written_and_read_back_is_the_same(values: dict[str, object], more: dict[str, object]) -> None:
    values |= {key: value for key, value in more.items() if f"{key.partition('.')[0]}.name" in values}
    first = read_recipe(named=values)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.toml"
        file.write_text(first.to_toml(), encoding="utf-8", newline="")
        again = read_recipe(file)
    assert again.recipe == first.recipe
    assert config.fingerprint(again.recipe) == config.fingerprint(first.recipe)


def test_a_limit_that_was_turned_off_stays_off(tmp_path: Path) -> None:
    first = recipe("optim.clip_norm=none")
    (tmp_path / "a.toml").write_text(config.to_toml(first, {}))
    assert read_recipe(tmp_path / "a.toml").recipe == first


def test_the_fingerprint_knows_every_key_but_workers() -> None:
    plain = config.fingerprint(Recipe())
    assert config.fingerprint(recipe("data.workers=3")) == plain
    changes = ["seed=1", "optim.lr=0.1", "data.fit=pad", "strategy=probe", "task=regression", "budget=9", "epochs=1"]
    prints = {config.fingerprint(recipe(word)) for word in changes}
    assert len(prints | {plain}) == len(changes) + 1
    assert config.fingerprint(recipe("strategy=probe", "head=gradient")) not in prints


# --- keywords of the verbs


def test_every_keyword_sets_the_key_that_it_names() -> None:
    given: options.Options = {"strategy": "probe", "budget": "2m", "batch_size": 8, "target_column": "y", "task": None}
    found = options.sourced("photos", given).recipe
    assert (found.strategy.name, found.budget, found.batch_size) == ("probe", 120.0, 8)
    assert (found.data.path, found.data.target_column, found.task.name) == ("photos", "y", None)


def test_a_recipe_may_stand_where_the_data_does(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[data]\npath = "photos"\n')
    assert options.sourced(file, {}).recipe.data.path == "photos"
    assert options.sourced("other", {"recipe": file}).recipe.data.path == "other"


def test_overrides_are_words_or_a_mapping() -> None:
    for overrides in (["optim.lr=0.5"], {"optim.lr": 0.5}):
        assert options.sourced(None, {"overrides": overrides}).recipe.optim.lr == 0.5


@pytest.mark.parametrize(
    ("keyword", "value", "fix"),
    [
        ("image_size", 128, 'overrides={"data.image_size": 128}'),
        ("lr", 0.1, 'overrides={"optim.lr": 0.1}'),
        ("early_stopping", 3, 'overrides={"early_stopping": 3}'),
        ("fit", "pad", "overrides={\"data.fit\": 'pad'}"),
        ("strateggy", "probe", "did you mean 'strategy'?"),
        ("batch", 3, "did you mean 'batch_size'?"),
    ],
)
def test_an_unknown_keyword_is_refused_with_how_to_say_it(keyword: str, value: object, fix: str) -> None:
    with pytest.raises(RecipeError) as found:
        options.sourced("photos", {keyword: value})  # type: ignore[misc]
    assert (found.value.problem, found.value.fix) == (f"unknown keyword {keyword!r}", fix)


def test_each_option_has_a_description() -> None:
    assert all(options.describe(option) for option in options.RECIPE_KEYS)
    assert set(options.RECIPE_KEYS) < set(options.Options.__annotations__)


# --- list


def test_what_can_be_listed() -> None:
    assert {row["name"] for row in catalogue.rows("strategies")} >= {"probe", "full", "lp_ft", "l2_sp"}
    assert [row["name"] for row in catalogue.rows("strategies", "lp")] == ["lp_ft"]
    assert all(row["about"] for kind in ("strategies", "tasks", "readers", "sources") for row in catalogue.rows(kind))


def test_a_kind_that_is_not_there_is_told_with_the_closest() -> None:
    with pytest.raises(RecipeError, match=r"there are no 'strategy' to list\n  fix: did you mean 'strategies'\?"):
        catalogue.rows("strategy")
