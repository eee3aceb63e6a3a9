"""The benchmark of scores: what is judged, and that its truth does not look at what the scores saw."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from benchmarks.common import Measured

from warmstart import plugins

ROOT = Path(__file__).resolve().parents[2]


PRIORS = {"a": 1.0, "b": None, "c": 2.0}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("benchmarks.scores")
    judge = module._told

    def told(name: str, backbone: str, one: dict[str, object]) -> tuple[float | None, float]:
        return (PRIORS[backbone], 0.0) if name == "prior" else judge(name, backbone, one)

    monkeypatch.setattr(module, "_told", told)
    return module


def rows(values: dict[str, float | None], accuracies: list[float]) -> dict[str, dict[str, object]]:
    names = list(values)
    return {
        name: {
            "accuracy": accuracy,
            "values": {} if values[name] is None else {"knn": {"value": values[name], "seconds": 0.5}},
        }
        for name, accuracy in zip(names, accuracies, strict=True)
    }


def test_a_score_that_is_right_has_tau_one_and_no_regret(bench: ModuleType) -> None:
    found = {"task": rows({"a": 1.0, "b": 5.0, "c": 3.0}, [0.5, 0.9, 0.7])}
    (one,) = bench._judged("knn", found)
    assert (one.facts["tau"], one.facts["regret"], one.facts["pick"], one.facts["covers"]) == (1.0, 0.0, "b", 3)
    assert one.seconds == 1.5
    (prior,) = bench._judged("prior", found)  # it does not know b, the best
    assert (prior.facts["covers"], prior.facts["tau_known"]) == (2, 1.0)
    assert prior.facts["tau"] < 0 and prior.facts["regret"] == pytest.approx(0.2)


def test_a_score_that_is_upside_down_has_tau_minus_one_and_the_whole_regret(bench: ModuleType) -> None:
    (one,) = bench._judged("knn", {"task": rows({"a": -1.0, "b": -5.0, "c": -3.0}, [0.5, 0.9, 0.7])})
    assert one.facts["tau"] == pytest.approx(-1.0)
    assert one.facts["regret"] == pytest.approx(0.4)


def test_what_a_score_cannot_judge_stands_behind_what_it_can(bench: ModuleType) -> None:
    (one,) = bench._judged("knn", {"task": rows({"a": -9.0, "b": None, "c": -8.0}, [0.7, 0.5, 0.9])})
    assert (one.facts["tau"], one.facts["covers"]) == (1.0, 2)


def test_every_backbone_shows_the_scores_the_same_examples_in_equal_shares(bench: ModuleType) -> None:
    targets = np.arange(300) % 3
    seen = bench._draw(targets, 60)
    assert np.bincount(targets[seen]).tolist() == [20, 20, 20]
    assert np.array_equal(seen, bench._draw(targets, 60))
    features = np.random.default_rng(0).normal(size=(300, 4)) + 4.0 * np.eye(3, 4)[targets]
    accuracy, num = bench._truth(features.astype(np.float32), targets, seen)
    assert num == 240 and accuracy > 0.9


def test_the_table_has_the_best_score_first(bench: ModuleType) -> None:
    def runs(tau: float) -> list[Measured]:
        return [Measured(1.0, facts={"tau": tau, "tau_known": tau / 2, "regret": 0.01, "covers": 4})] * 2

    *_, first, second = bench.table({"prior": runs(0.4), "knn": runs(0.8)})
    assert first == "| `knn` | 4 | 0.80 (0.80 to 0.80) | 0.40, above it in 2 | 1.0 | 1.0 | 0.250 |"
    assert second == "| `prior` | 4 | 0.40 (0.40 to 0.40) | 0.20 | 1.0 | 1.0 | 0.250 |"


def test_the_guide_shows_the_table_that_was_measured(bench: ModuleType) -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "scores.json").read_text("utf-8"))
    measured = {
        name: [Measured(run["seconds"], facts=run["facts"]) for run in runs] for name, runs in result["runs"].items()
    }
    guide = (ROOT / "docs" / "guide" / "scores.md").read_text("utf-8")
    assert "\n".join(bench.table(measured)) in guide
    assert set(plugins.names("score")) <= set(measured)
