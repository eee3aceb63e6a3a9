"""What lives while a command runs: decisions, stages, bars; and tuning on folds and views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from warmstart import bars, config, heads, prepare, tune, workflow
from warmstart.cache import Cache
from warmstart.config import Choice
from warmstart.data import Dataset, read
from warmstart.options import Options
from warmstart.rundir import RunDir
from warmstart.session import Session
from warmstart.tune import Candidate

TINY = "random/test_resnet"


def data(num: int = 30) -> Dataset:
    rng = np.random.default_rng(0)
    names = ["dark" if at % 2 else "light" for at in range(num)]
    lift = np.array([60 * (name == "light") for name in names])[:, None, None, None]
    return read.from_arrays((rng.integers(0, 120, (num, 24, 24, 3)) + lift).astype(np.uint8), names)


def given(tmp_path: Path, **overrides: object) -> Options:
    return {"backbone": TINY, "overrides": {"data.image_size": 32, "data.workers": 1, **overrides}, "out": tmp_path}


def session(folder: Path, *words: str) -> Session:
    sourced = config.read_recipe(overrides=words)
    return Session(sourced, RunDir.open(folder, recipe=sourced.to_toml(), fingerprint="x"), Cache())


# --- decisions


def test_what_was_given_is_not_decided(tmp_path: Path) -> None:
    own = session(tmp_path, "epochs=4")
    assert own.decide("epochs", lambda: pytest.fail("asked")) == 4
    assert own.decisions == []
    own.folder.close()


def test_a_decision_is_remembered_by_the_next_command(tmp_path: Path) -> None:
    first = session(tmp_path)
    assert first.decide("epochs", lambda: (7, "it fits")) == 7
    assert (first.recipe.epochs, first.sourced.origins["epochs"]) == (7, "decided: it fits")
    first.folder.close()
    again = session(tmp_path)
    assert again.recipe.epochs is None
    assert again.decide("epochs", lambda: pytest.fail("asked again")) == 7
    assert again.decisions == first.decisions
    again.folder.close()


def test_nothing_is_remembered_of_a_decision_that_failed(tmp_path: Path) -> None:
    own = session(tmp_path)
    with pytest.raises(ZeroDivisionError):
        own.decide("epochs", lambda: (1 // 0, ""))
    assert own.decide("epochs", lambda: (3, "second try")) == 3
    own.folder.close()


def test_stages_add_up_and_end_when_they_fail(tmp_path: Path) -> None:
    own, ended = session(tmp_path), []
    own.progress = type("Told", (), {"begin": lambda *_: print, "end": lambda _, name, spent: ended.append(name)})()
    for _ in range(2):
        with own.stage("fit", planned=2.0):
            pass
    with pytest.raises(KeyError), own.stage("read"):
        raise KeyError
    assert list(own.stages) == ["fit", "read"] and ended == ["fit", "fit", "read"]
    assert own.planned == {"fit": 4.0}
    own.folder.close()


def test_the_budget_runs_from_the_start_of_the_command(tmp_path: Path) -> None:
    own = session(tmp_path, "budget=60")
    own.started -= 50
    assert 9 < own.seconds_left() < 10.01
    own.folder.close()
    assert session(tmp_path / "open").seconds_left() == float("inf")


# --- bars


def test_only_a_stage_that_lasts_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [100.0]
    monkeypatch.setattr("warmstart.bars.time.monotonic", lambda: clock[0])
    shown = bars.Bars()
    advance = shown.begin("short")
    advance(1, 2)
    shown.end("short", 0.5)
    assert capsys.readouterr().err == ""
    advance = shown.begin("features")
    clock[0] += 4.0
    advance(8, 10)
    shown.end("features", 4.2)
    assert "features   4.2 s" in capsys.readouterr().err
    assert capsys.readouterr().out == ""


# --- folds and views


@pytest.mark.parametrize("strategy", ["probe", "lp_ft"])
def test_small_data_is_validated_on_what_each_fold_did_not_see(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a label changed, predictions of its own fold stay and those of the other folds move."""
    seen: list[np.ndarray] = []
    monkeypatch.setattr(heads, "L2S", (0.1,))
    for lie in (False, True):
        dataset = data()
        with workflow.opened("finetune", dataset, given(tmp_path / f"{lie}", epochs=1), None) as own:
            ready = prepare.prepare(own, dataset)
            assert len(ready.splits.folds) == 5 and not len(ready.splits.val)
            held_out = ready.splits.folds[0][1]
            if lie:
                ready.targets[held_out[0]] = 1 - ready.targets[held_out[0]]
            trial = tune.tune(own, ready, Candidate(TINY, 32, Choice(strategy)))
            assert trial.val.index.tolist() == ready.splits.train.tolist()
            seen.append(trial.val.outputs)
    moved = np.abs(seen[0] - seen[1]).max(1) > 1e-6
    assert not moved[np.isin(trial.val.index, held_out)].any()
    assert moved[~np.isin(trial.val.index, held_out)].all()


def test_views_are_learned_from_and_never_validated_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[int]] = {}
    real = heads.solve

    def solve(link: heads.Link, features: np.ndarray, targets: np.ndarray, **rest: object) -> heads.Solved:
        folds = rest["folds"]
        asked["rows"] = [len(features), len(targets), len(rest["train"])]  # type: ignore[arg-type]
        asked["folds"] = [len(fit) for fit, _ in folds]  # type: ignore[attr-defined]
        asked["held out"] = [int(val.max()) for _, val in folds]  # type: ignore[attr-defined]
        return real(link, features, targets, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(heads, "solve", solve)
    dataset = data()
    with workflow.opened("finetune", dataset, given(tmp_path, **{"data.views": 3}), None) as own:
        ready = prepare.prepare(own, dataset)
        num = len(ready.splits.train)
        trial = tune.tune(own, ready, Candidate(TINY, 32, Choice("probe")))
    assert asked["rows"] == [3 * num] * 3
    assert asked["folds"] == [3 * len(fit) for fit, _ in ready.splits.folds]
    assert max(asked["held out"]) < num, "plain pictures only"
    assert len(trial.val.index) == num
    assert [one.computed for one in trial.extracted] == [num] * 3


def test_positions() -> None:
    assert tune.positions(np.array([2, 5, 9]), np.array([9, 2])).tolist() == [2, 0]
