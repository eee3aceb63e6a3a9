"""Every recipe says what it is, parses, and runs two steps on other data and another backbone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from warmstart import config, runtime, workflow

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.toml"))
BATCH, STEPS = 8, 2


def test_there_are_as_many_recipes_as_we_know_of() -> None:
    assert len(RECIPES) == 4


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_header_states_what_it_is_the_command_and_what_to_expect(recipe: Path) -> None:
    lines = recipe.read_text(encoding="utf-8").splitlines()
    header = lines[: next(at for at, line in enumerate(lines) if not line.startswith("#"))]
    assert len(header[0]) > 20
    assert any(
        line.startswith("#   warmstart ") and line.endswith(f"--recipe recipes/{recipe.name}") for line in header
    )
    assert any(line.startswith("# Expect: ") for line in header)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_it_runs_two_steps(recipe: Path, tmp_path: Path) -> None:
    # Random weights come without a classifier of their own.
    fresh = ["strategy.head=fresh"] if config.read_recipe(recipe).recipe.strategy.options["head"] == "own" else []
    run = workflow.finetune(
        _pictures(tmp_path / "photos"),
        recipe=recipe,
        backbone="random/test_resnet",
        epochs=1,
        batch_size=BATCH,
        overrides=["data.image_size=32", "data.resize=36", *fresh],
        out=tmp_path / "run",
    )
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "loss" in line]) == STEPS
    assert run.metrics[0].split == "val"


def test_none_is_a_word_where_it_can_be_chosen_and_leaves_open_where_it_cannot() -> None:
    said = ["data.augment=none", "data.resize=none", "task.name=classification", "task.class_weights=none"]
    recipe = config.read_recipe(overrides=said).recipe
    assert (recipe.data.augment, recipe.data.resize, recipe.task.options["class_weights"]) == ("none", None, "none")


def _pictures(folder: Path) -> Path:
    for split, label, number in (("train", k % 2, k) for k in range(BATCH * STEPS)):
        _save(folder / split / f"class{label}" / f"{number}.png", number)
    for number in range(4):
        _save(folder / "val" / f"class{number % 2}" / f"{number}.png", 100 + number)
    return folder


def _save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(runtime.rng(seed, "pixels").integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(path)
