"""The benchmark of the race: regret and τ by hand, and the guide shows what was measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
from benchmarks.common import Measured

from warmstart import race

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("benchmarks.race")


def raced(bench: ModuleType, order: list[str], tested: dict[str, float], exhaustive: dict[str, float]) -> object:
    standings = tuple(race.Standing(race.Entrant(name), seconds=1.0) for name in order)
    return bench.Raced(race.Outcome(standings, standings[0], "why"), tested, exhaustive, 12.0, 500, 100, 0)


def test_regret_is_from_the_mean_over_orders_and_tau_from_the_leaderboard(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.catalogue, "prior", {"a": 70.0, "b": 80.0, "c": None}.get)
    monkeypatch.setattr(bench.sources, "card", lambda name: name)
    one = raced(bench, ["a", "b", "c"], {"a": 0.8, "b": 0.9, "c": 0.5}, {"a": 0.1, "b": 0.3, "c": 0.2})
    two = raced(bench, ["b", "a", "c"], {"a": 0.9, "b": 0.7, "c": 0.5}, {"a": 0.3, "b": 0.1, "c": 0.2})
    first, second = bench.judged([one, two])  # a is best with 0.85, b has 0.80, c 0.50
    assert (first.facts["regret"], first.facts["tau"], first.facts["cost_share"]) == (0.0, 1.0, 0.25)
    assert second.facts["regret"] == pytest.approx(0.05) and second.facts["tau"] < 1
    assert first.facts["regret_of_probing_all"] == pytest.approx(0.05)
    assert second.facts["regret_to_probing_all"] == pytest.approx(0.05)
    assert first.facts["regret_of_prior"] == pytest.approx(0.05)
    assert second.facts["tau"] == first.facts["tau_of_prior"], "the prior has b, a, and the unknown last"


def test_the_guide_shows_the_table_that_was_measured(bench: ModuleType) -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "race.json").read_text("utf-8"))
    measured = {
        name: [Measured(run["seconds"], facts=run["facts"]) for run in runs] for name, runs in result["runs"].items()
    }
    assert "\n".join(bench.table(measured)) in (ROOT / "docs" / "guide" / "numbers.md").read_text("utf-8")
