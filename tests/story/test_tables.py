"""Tables and folders as people have them: groups, splits, several labels, numbers, little data."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import assets
from story.command import Done, warmstart

pytestmark = pytest.mark.slow

QUICK = (
    "--backbone",
    "random/test_resnet",
    "data.image_size=32",
    "--budget",
    "1h",
    "--strategy",
    "probe",
    "--out",
    "R",
)


def table(cwd: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with (cwd / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return cwd / "labels.csv"


def tint(path: Path, colour: Sequence[float], rng: np.random.Generator) -> str:
    """Write a noisy picture of one colour, and return its name."""
    pixels = np.clip(np.array(colour) + rng.normal(0, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path.name


def facts(cwd: Path) -> dict:
    return json.loads((cwd / "R/report.json").read_text())


def value(done: Done, name: str, split: str = "test") -> float:
    assert done.code == 0, done.err
    return next(m["value"] for m in done.json["metrics"] if (m["name"], m["split"]) == (name, split))


def test_a_table_with_groups_and_splits_is_honoured(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(1), []
    for number in range(90):
        red = number % 2 == 0
        name = tint(tmp_path / f"photos/{number}.png", (180, 60, 60) if red else (60, 60, 180), rng)
        split = ("train", "train", "train", "val", "test")[number // 18]
        rows.append((f"photos/{name}", "red" if red else "blue", f"patient {number // 6}", split))
    table(tmp_path, ("file", "diagnosis", "patient", "part"), rows)
    words = ("--image-column", "file", "--target-column", "diagnosis", "--group-column", "patient")
    done = warmstart(tmp_path, "run", "labels.csv", *words, "--split-column", "part", *QUICK, "--json")
    assert value(done, "accuracy") > 0.9
    assert {m["n"] for m in done.json["metrics"]} == {18}
    splits = facts(tmp_path)["splits"]
    assert (splits["train"], splits["val"], splits["test"]) == (54, 18, 18)
    rows[0] = (*rows[0][:2], rows[-1][2], "train")  # now one patient is in train and in test
    table(tmp_path, ("file", "diagnosis", "patient", "part"), rows)
    done = warmstart(tmp_path, "run", "labels.csv", *words, "--split-column", "part", *QUICK[:-1], "S")
    assert done.code == 1
    assert done.err == (
        "DataError: 1 of 15 groups stands in more than one split (first: 'patient 14' in train and test)\n"
        "  fix: --duplicates drop-test, or --duplicates allow\n"
    )


def test_groups_never_stand_on_both_sides_of_our_own_split(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(2), []
    for number in range(80):
        red = number // 4 % 2 == 0
        name = tint(tmp_path / f"{number}.png", (180, 60, 60) if red else (60, 60, 180), rng)
        rows.append((name, "red" if red else "blue", number // 4))
    table(tmp_path, ("file", "label", "roll"), rows)
    done = warmstart(tmp_path, "run", "labels.csv", "--group-column", "roll", *QUICK, "--json")
    assert value(done, "accuracy") > 0.9
    told = warmstart(tmp_path, "audit", "labels.csv", "--group-column", "roll", *QUICK[:3], "--json").json["findings"]
    assert [finding["status"] for finding in told if "group" in finding["text"]] == ["ok"]


def test_several_labels_in_one_cell_make_a_multi_label_task(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(3), []
    for number in range(80):
        has = rng.integers(0, 2, 3)
        name = tint(tmp_path / f"{number}.png", 60 + 120 * has, rng)
        rows.append((name, "|".join(np.array(["red", "green", "blue"])[has.astype(bool)])))
    table(tmp_path, ("file", "labels"), rows)
    done = warmstart(tmp_path, "run", "labels.csv", "--separator", "|", *QUICK, "--json")
    assert done.code == 0, done.err
    assert done.json["metrics"][0]["value"] > 0.7, done.json["metrics"][0]
    assert facts(tmp_path)["answer"]["kind"] == "multi"
    told = warmstart(tmp_path, "predict", "R", "0.png", "--json").json["predictions"][0]
    assert set(told["probabilities"]) == {"red", "green", "blue"}
    assert told["prediction"] == [name for name, p in told["probabilities"].items() if p >= 0.5]


def test_numbers_make_a_regression(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(4), []
    for number in range(100):
        bright = float(rng.uniform(30, 220))
        rows.append((tint(tmp_path / f"{number}.png", (bright,) * 3, rng), round(bright / 10, 3)))
    table(tmp_path, ("file", "brightness"), rows)
    done = warmstart(tmp_path, "run", "labels.csv", *QUICK, "--json")
    assert value(done, "r2") > 0.8
    assert {"mse", "rmse", "mae", "r2", "spearman"} <= {metric["name"] for metric in done.json["metrics"]}
    told = warmstart(tmp_path, "predict", "R", "0.png", "--json").json["predictions"][0]
    assert told["prediction"] == pytest.approx(rows[0][1], abs=4)


def test_a_flat_folder_of_little_data_is_cross_validated_and_finetuned(tmp_path: Path) -> None:
    assets.noise_folder(tmp_path / "photos", {"red": 16, "green": 16, "blue": 16}, size=32)
    words = ("--backbone", "random/test_resnet", "data.image_size=32", "--budget", "1h", "epochs=2")
    done = warmstart(tmp_path, "run", "photos", *words, "search.trials=0", "--out", "R", "--json")
    assert value(done, "accuracy") > 0.8
    assert facts(tmp_path)["splits"]["folds"] == 5
    probe, tuned = (attempt["name"] for attempt in facts(tmp_path)["attempts"])
    assert probe == "probe"
    assert " lr=" in tuned, "the finals found a strategy and a learning rate"
    stages = {json.loads(line)["stage"] for line in (tmp_path / "R/metrics.jsonl").read_text().splitlines()}
    own = {stage for stage in stages if not stage.startswith("short-")}
    (whole,) = (stage for stage in own if "-fold" not in stage)
    assert own == {whole, *(f"{whole}-fold{number}" for number in range(5))}
    recipe = tomllib.loads((tmp_path / "R/recipe.toml").read_text())
    assert recipe["epochs"] == 2


def test_a_folder_that_brings_its_splits_keeps_them(tmp_path: Path) -> None:
    for seed, (split, count) in enumerate({"train": 20, "valid": 8, "test": 7}.items()):
        assets.noise_folder(tmp_path / "photos" / split, {"red": count, "blue": count}, size=32, seed=seed)
    done = warmstart(tmp_path, "finetune", "photos", *QUICK[:3], "--strategy", "probe", "--out", "R", "--json")
    assert value(done, "accuracy", "val") > 0.9
    assert {m["split"] for m in done.json["metrics"]} == {"val"}, "finetune leaves test sealed"
    assert json.loads((tmp_path / "R/manifest.json").read_text())["ledger"] == []
    splits = facts(tmp_path)["splits"]
    assert (splits["train"], splits["val"], splits["test"]) == (40, 16, 14)
    opened = warmstart(tmp_path, "evaluate", "R")
    assert opened.out.endswith("test was opened 1 time\n")
