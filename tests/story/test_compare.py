"""`warmstart compare`: two runs side by side on val and on test, and runs that cannot be compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import kills

from story.command import refused, warmstart

pytestmark = pytest.mark.slow


def test_two_runs_are_compared_and_strangers_are_refused(tmp_path: Path) -> None:
    kills.pictures(tmp_path / "data")
    for name, strategy in (("A", "probe"), ("B", "full")):
        words = ("finetune", "data", "--strategy", strategy, *kills.COMMON, "--out", name)
        assert warmstart(tmp_path, *words).code == 0
    told = warmstart(tmp_path, "compare", "A", "B", "--json").json
    assert (told["split"], told["metric"], told["n"]) == ("val", "accuracy", 12)
    assert {one["run"] for one in told["runs"]} == {"A", "B"}
    (pair,) = told["pairs"]
    assert pair["low"] <= pair["difference"] <= pair["high"]
    assert pair["p_corrected"] == pair["p_value"]

    fix = "warmstart evaluate A --split test, which opens test and is recorded"
    refused(warmstart(tmp_path, "compare", "A", "B", "--split", "test"), "RunError: A has no predictions on test", fix)
    for name in ("A", "B"):
        assert warmstart(tmp_path, "evaluate", name, "--split", "test").code == 0
    done = warmstart(tmp_path, "compare", "A", "B")
    assert done.code == 0, done.err
    assert done.out.startswith("accuracy on test, n = 12, 95 % intervals\n")

    smaller = tmp_path / "smaller"
    kills.pictures(smaller)
    for file in (smaller / "val/red").iterdir():
        file.unlink()
        break
    words = ("finetune", "smaller", "--strategy", "probe", *kills.COMMON, "--out", "C")
    assert warmstart(tmp_path, *words).code == 0
    problem = "DataError: A and C have different val examples: 12 and 11, 11 of them shared"
    fix = "run both on data that says its split (folders train/ val/ test/, or --split-column)"
    refused(warmstart(tmp_path, "compare", "A", "C"), problem, fix)
    refused(
        warmstart(tmp_path, "compare", "A"),
        "RecipeError: 1 run was named, expected at least 2",
        "warmstart compare RUN RUN",
        code=2,
    )
