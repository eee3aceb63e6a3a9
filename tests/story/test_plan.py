"""Planning as a user does it: a table before anything is paid for, and refusals that say what would do."""

from __future__ import annotations

from pathlib import Path

import pytest

import assets
from story.command import refused, warmstart

TINY = ("--candidates", "random/test_resnet", "data.image_size=32", "data.workers=1")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return assets.noise_folder(tmp_path / "photos", {"a": 30, "b": 30})


@pytest.mark.slow
def test_plan_prints_every_option_and_trains_nothing(photos: Path, tmp_path: Path) -> None:
    done = warmstart(tmp_path, "plan", photos, *TINY, "--budget", "10m", "--json")
    assert done.code == 0, done.err
    told = done.json
    assert len(told["options"]) == 8
    for option in told["options"]:
        assert option["backbone"] == "random/test_resnet"
        assert (option["input_size"], option["micro_batch"], option["fits"]) == (32, 32, True)
        assert 0 < option["seconds"] < 600
        assert option["peak_bytes"] > 100e6
        assert option["disk_bytes"] > 0
    assert 0 < told["seconds"] < 60
    assert not (tmp_path / "runs").exists()
    again = warmstart(tmp_path, "plan", photos, *TINY, "--budget", "10m", "--json").json
    same = ("strategy", "epoch_seconds", "peak_bytes", "disk_bytes")  # what was measured is remembered
    assert [[row[key] for key in same] for row in again["options"]] == [
        [row[key] for key in same] for row in told["options"]
    ]
    table = warmstart(tmp_path, "plan", photos, *TINY, "--budget", "10m").out
    assert table.splitlines()[0].split() == [
        "backbone", "px", "strategy", "epochs", "minutes", "memory", "disk", "batch", "rank", "fits",
    ]  # fmt: skip
    assert "nothing was trained" in table.splitlines()[-1]


@pytest.mark.slow
def test_when_nothing_fits_the_error_says_what_would(photos: Path, tmp_path: Path) -> None:
    done = warmstart(tmp_path, "plan", photos, *TINY, "--budget", "1s")
    assert done.code == 2
    problem, fix = done.err.rstrip("\n").split("\n")
    assert problem.startswith("RecipeError: no option fits budget=1s; the quickest is ")
    budget = fix.removeprefix("  fix: --budget ")
    assert warmstart(tmp_path, "plan", photos, *TINY, "--budget", budget).code == 0
    done = warmstart(tmp_path, "plan", photos, *TINY, "--memory", "100MB")
    assert done.code == 2
    problem, fix = done.err.rstrip("\n").split("\n")
    assert problem.startswith("RecipeError: no option fits memory=95.4 MiB; the smallest is ")
    memory = fix.removeprefix("  fix: --memory ")
    assert warmstart(tmp_path, "plan", photos, *TINY, "--memory", memory).code == 0


@pytest.mark.slow
def test_limits_that_contradict_each_other_are_refused_at_once(photos: Path, tmp_path: Path) -> None:
    done = warmstart(tmp_path, "plan", photos, "--candidates", "nowhere/*")
    assert done.code == 2
    assert done.err.startswith("RecipeError: no backbone matches 'nowhere/*'\n  fix: ")
    refused(
        warmstart(tmp_path, "plan", photos, "--budget", "soon"),
        "RecipeError: budget='soon' is no duration",
        "--budget 10m (or 90s, 1h30m, 2h)",
        code=2,
    )
