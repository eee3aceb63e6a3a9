"""Choosing among pretrained backbones from the command line, and a run that chooses for itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import assets
from story.command import refused, warmstart

pytestmark = pytest.mark.slow

NOISE = "random/test_resnet,random/test_vit"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small real photos of ten kinds, a hundred of them for test."""
    cwd = tmp_path_factory.mktemp("choose")
    for split, count in {"train": 300, "test": 100}.items():
        pixels, labels = assets.cifar10(split, count)  # type: ignore[arg-type]
        assets.write_folder(cwd / "photos" / split, pixels, labels, assets.CIFAR10_CLASSES)
    return cwd


@pytest.mark.assets
def test_a_pretrained_backbone_beats_random_ones_and_the_leaderboard_says_why(photos: Path) -> None:
    done = warmstart(
        photos, "choose", "photos", "--candidates", f"package/efficientnet_lite0,{NOISE}", "--budget", "2m",
        "data.image_size=64", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    board = done.json["leaderboard"]
    assert done.json["pick"]["backbone"] == board[0]["backbone"] == "package/efficientnet_lite0"
    assert done.json["metric"] == "accuracy"
    assert {row["backbone"] for row in board} == {"package/efficientnet_lite0", *NOISE.split(",")}
    for row in board[1:]:
        assert row["low"] <= row["value"] <= row["high"] < board[0]["low"]
        assert row["dropped_because"].startswith("worse than package/efficientnet_lite0 at 64 px on ")
    assert not (photos / "runs").exists(), "choosing leaves no run behind"


@pytest.mark.assets
def test_a_run_that_chooses_for_itself_tells_the_race(photos: Path) -> None:
    words = ("--candidates", "package/efficientnet_lite0,random/test_resnet,timm/resnet18.a1_in1k", "--budget", "60s")
    done = warmstart(photos, "run", "photos", *words, "data.image_size=64", "--out", "R", "--json")
    assert done.code == 0, done.err
    facts = json.loads((photos / "R/report.json").read_text("utf-8"))
    assert facts["answer"]["backbone"] == "package/efficientnet_lite0"
    rows = {row["backbone"]: row for row in facts["leaderboard"]}
    assert rows["package/efficientnet_lite0"]["chosen"]
    assert rows["timm/resnet18.a1_in1k"]["metric"] is None
    assert rows["timm/resnet18.a1_in1k"]["dropped_because"].startswith("no weights for timm/resnet18.a1_in1k")
    page = (photos / "R/report.html").read_text("utf-8")
    assert "The race among backbones" in page
    assert 'backbone = "package/efficientnet_lite0"' in (photos / "R/recipe.toml").read_text("utf-8")


def test_choosing_among_what_is_not_there(tmp_path: Path) -> None:
    assets.noise_folder(tmp_path / "good", {"red": 20, "blue": 20})
    choose = ("choose", "good", "--candidates")
    refused(
        warmstart(tmp_path, *choose, "package/efficientnet_light*"),
        "RecipeError: no backbone matches 'package/efficientnet_light*'",
        "did you mean 'package/efficientnet_lite2'?",
        code=2,
    )
    refused(
        warmstart(tmp_path, *choose, "package/*", "--max-params", "1k"),
        "RecipeError: max_params=1,000 leaves none of 9 candidates; "
        "the smallest is package/squeezenet with 722,496 parameters",
        "--max-params 0.8M, or other --candidates",
        code=2,
    )
    refused(
        warmstart(tmp_path, *choose, NOISE, "--budget", "soon"),
        "RecipeError: budget='soon' is no duration",
        "--budget 10m (or 90s, 1h30m, 2h)",
        code=2,
    )
    gone = warmstart(tmp_path, *choose, "timm/resnet18.a1_in1k,timm/resnet50.a1_in1k", "data.image_size=64")
    assert gone.code == 1
    assert gone.err.startswith("SourceError: none of 2 candidates could be used (the first: no weights for timm/resnet")
    assert "Traceback" not in gone.err
