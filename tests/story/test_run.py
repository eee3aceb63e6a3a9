"""The main job: one command from a folder of photos to a tested, reported model, and what can be done with it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import assets
from story.command import Done, environment, warmstart

pytestmark = [pytest.mark.slow, pytest.mark.assets]

BUDGET = 60


@dataclass(frozen=True)
class Story:
    """A folder in which the command was run."""

    cwd: Path
    done: Done

    @property
    def run(self) -> Path:
        return self.cwd / "R"


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    cwd = tmp_path_factory.mktemp("main")
    for split, count in {"train": 300, "test": 100}.items():
        pixels, labels = assets.cifar10(split, count)  # type: ignore[arg-type]
        assets.write_folder(cwd / "photos" / split, pixels, labels, assets.CIFAR10_CLASSES)
    words = ("--backbone", "package/efficientnet_lite0", "--budget", f"{BUDGET}s", "data.image_size=64")
    return Story(cwd, warmstart(cwd, "run", "photos", *words, "--out", "R", "--json"))


def weights(run: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted((run / "weights").iterdir())}


def test_the_last_line_is_one_object_that_holds_the_answer(story: Story) -> None:
    done = story.done
    assert done.code == 0, done.err
    assert done.err == "", "quiet when not a terminal"
    answer = done.json
    assert set(answer) == {"run", "report", "seconds", "planned_seconds", "decisions", "metrics", "stopped", "warnings"}
    assert answer["run"] == "R"
    assert answer["report"] == "R/report.html"
    assert 0 < answer["seconds"] <= 1.3 * BUDGET, "a machine may be busier than it was when the plan was made"
    assert answer["planned_seconds"] is not None
    assert 0 < answer["planned_seconds"] <= BUDGET
    for decision in answer["decisions"]:
        assert set(decision) == {"key", "value", "reason"}
        assert decision["reason"]
    for metric in answer["metrics"]:
        assert set(metric) == {"name", "value", "low", "high", "n", "split"}
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert (metric["n"], metric["split"]) == (100, "test")
    accuracy = answer["metrics"][0]
    assert accuracy["name"] == "accuracy"
    assert accuracy["low"] > 0.3, "chance is 0.1; a frozen lite0 with 300 pictures gives about 0.55"
    assert len({metric["name"] for metric in answer["metrics"]}) == len(answer["metrics"]) >= 15


def test_the_run_folder_holds_everything(story: Story) -> None:
    names = {path.name for path in story.run.iterdir()} - {".lock"}
    expected = {"recipe.toml", "manifest.json", "weights", "predictions", "report.html", "report.json", "README.md"}
    fitted = {"metrics.jsonl", "checkpoints"}
    assert names in (expected, expected | fitted)
    assert {"model.safetensors", "head.safetensors", "card.json", "model.json"} == set(weights(story.run))
    if names >= fitted:
        lines = [json.loads(line) for line in (story.run / "metrics.jsonl").read_text().splitlines()]
        assert {"stage", "step"} <= set.intersection(*map(set, lines))
    manifest = json.loads((story.run / "manifest.json").read_text())
    assert manifest["status"] == "done"
    for name, sha256 in weights(story.run).items():
        assert manifest["files"][f"weights/{name}"]["sha256"] == sha256
    assert len(manifest["ledger"]) == 1, "test is opened once"
    card = json.loads((story.run / "weights/card.json").read_text())
    assert card["licence"] == "Apache-2.0"


def test_the_recipe_says_where_each_value_comes_from(story: Story) -> None:
    text = (story.run / "recipe.toml").read_text()
    recipe = tomllib.loads(text)
    assert recipe["backbone"] == "package/efficientnet_lite0"
    assert recipe["budget"] == BUDGET
    assert recipe["data"]["image_size"] == 64
    assert "image_size = 64  # command line" in text
    assert 'name = "classification"  # decided: targets: single' in text
    assert "batch_size = 32  # default" in text
    assert all("#" in line for line in text.splitlines() if "=" in line)


def test_the_report_stands_alone(story: Story) -> None:
    page = (story.run / "report.html").read_text()
    accuracy = story.done.json["metrics"][0]
    assert re.search(rf"{accuracy['value']:.2f}|{100 * accuracy['value']:.0f}", page)
    outside = re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:|#)([^"'\s>]+)""", page)
    assert [link for link in outside if not link.startswith("https://")] == [], "nothing beside the page is needed"
    assert not re.search(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=[\"']?(?:https?:)?//", page)
    assert "@import" not in page
    assert not re.search(r"url\((?!['\"]?(?:data:|#))", page)
    assert page.count("data:image/") >= 10, "pictures are inside"
    facts = json.loads((story.run / "report.json").read_text())
    assert facts["metrics"] == story.done.json["metrics"]
    readme = (story.run / "README.md").read_text()
    assert "warmstart predict" in readme
    assert str(story.cwd) not in page, "where it was made is nobody's business"


def test_new_pictures_are_predicted_and_bad_ones_named(story: Story) -> None:
    pictures = sorted((story.cwd / "photos/test").glob("*/*.png"))[:20]
    (story.cwd / "torn.png").write_bytes(pictures[0].read_bytes()[:200])
    done = warmstart(story.cwd, "predict", "R", *pictures, "torn.png", "--json")
    *rows, torn = done.json["predictions"]
    assert [row["file"] for row in rows] == list(map(str, pictures))
    for row in rows:
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)
        assert row["confidence"] == pytest.approx(max(row["probabilities"].values()))
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    right = np.mean([row["prediction"] == Path(row["file"]).parent.name for row in rows])
    assert right > 0.25
    assert torn["file"] == "torn.png"
    assert torn["error"]
    plain = warmstart(story.cwd, "predict", "R", pictures[0], "torn.png")
    first, second = plain.out.splitlines()
    assert re.fullmatch(rf"{pictures[0]}  {rows[0]['prediction']}  {rows[0]['confidence']:.3f}", first)
    assert second == f"torn.png  {torn['error']}"
    assert plain.code == 1, "one of them could not be predicted"


def test_evaluating_again_counts_the_same_weights_once(story: Story) -> None:
    before, manifest = weights(story.run), story.run / "manifest.json"
    for _ in range(2):
        done = warmstart(story.cwd, "evaluate", "R", "--split", "test", "--json")
        assert done.code == 0, done.err
        assert done.json["openings"] == 1
        expected = {metric["name"]: metric["value"] for metric in story.done.json["metrics"]}
        assert {m["name"]: m["value"] for m in done.json["metrics"]} == pytest.approx(expected, abs=1e-6)
    assert weights(story.run) == before
    assert json.loads(manifest.read_text())["status"] == "done"


def test_the_report_is_drawn_again(story: Story) -> None:
    page = story.run / "report.html"
    before = page.read_bytes()
    page.unlink()
    done = warmstart(story.cwd, "report", "R")
    assert (done.code, done.out) == (0, "R/report.html\n")
    assert page.read_bytes() == before


def test_the_same_command_again_costs_nothing(story: Story) -> None:
    words = ("--backbone", "package/efficientnet_lite0", "--budget", f"{BUDGET}s", "data.image_size=64")
    again = warmstart(story.cwd, "run", "photos", *words, "--out", "R", "--json")
    assert again.json == {**story.done.json, "seconds": again.json["seconds"]}
    assert again.json["seconds"] == pytest.approx(story.done.json["seconds"], rel=0.1), "it says what the run took"


def test_python_loads_what_the_command_made(story: Story) -> None:
    pictures = [str(path) for path in sorted((story.cwd / "photos/test").glob("*/*.png"))[:5]]
    program = (
        "import json, sys, warmstart as ws\n"
        "assert 'torch' not in sys.modules, 'importing warmstart imports torch'\n"
        "model = ws.load('R')\n"
        f"pictures = {pictures!r}\n"
        "told = model.predict(pictures)\n"
        "model.save('copy')\n"
        "assert ws.load('copy').predict(pictures) == told\n"
        "print(json.dumps(told))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=story.cwd, env=environment(story.cwd), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = warmstart(story.cwd, "predict", "R", *pictures, "--json").json["predictions"]
    assert json.loads(done.stdout) == [row["prediction"] for row in rows]
    copied = {name: sha for name, sha in weights(story.run).items() if name.endswith(".safetensors")}
    for name, sha256 in copied.items():
        assert hashlib.sha256((story.cwd / "copy" / name).read_bytes()).hexdigest() == sha256


def test_a_finished_run_belongs_to_its_recipe(story: Story) -> None:
    done = warmstart(story.cwd, "run", "photos", "--seed", "3", "--out", "R")
    assert done.code == 1
    problem, fix = done.err.splitlines()
    assert problem.startswith("RunError: R belongs to another recipe (backbone: there package/efficientnet_lite0, here")
    assert fix == "  fix: --out NEW, or --overwrite"
    assert (story.run / "report.html").exists()
