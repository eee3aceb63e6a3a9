"""A plug-in of somebody else, found through entry points, works like one of ours: the whole way through `finetune`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from warmstart import catalogue, plugins, runtime, workflow
from warmstart.check import check_strategy, check_task
from warmstart.errors import RecipeError

CODE = '''
"""A strategy and a task of somebody else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from warmstart import plugins
from warmstart.strategies import thaw


@dataclass(frozen=True)
class FirstAndHead:
    """Fine-tune the first layer groups and the head."""

    first: int = 1
    """Layer groups that learn, counted from the input."""

    lrs: ClassVar[Mapping[str, float]] = {"adamw": 1e-3, "adam": 1e-3, "sgd": 1e-2}

    @property
    def head_start(self):
        return "fresh"

    def prepare(self, model):
        groups = model.layer_groups()
        return thaw((*groups[: self.first], groups[-1]))

    def penalty(self, model):
        return None


@dataclass(frozen=True)
class Verdict:
    """Classes, under another name."""

    smooth: float = 0.1
    """Label smoothing."""

    @property
    def inner(self):
        return plugins.load("task", "classification")(label_smoothing=self.smooth)

    def check(self, dataset):
        self.inner.check(dataset)

    def bind(self, dataset):
        return self.inner.bind(dataset)

    def restore(self, facts):
        return self.inner.restore(facts)
'''
POINTS = """
[warmstart.strategy]
first_and_head = their_plugins:FirstAndHead

[warmstart.task]
verdict = their_plugins:Verdict
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a distribution on the path, as an installer would."""
    site = tmp_path / "site"
    info = site / "their_plugins-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "their_plugins.py").write_text(CODE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-plugins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    _forget()
    yield
    monkeypatch.undo()
    sys.modules.pop("their_plugins", None)
    _forget()


def _forget() -> None:
    for remembered in (plugins.names, plugins.load, plugins._third_party):
        remembered.cache_clear()


def test_they_keep_the_contract() -> None:
    check_strategy(plugins.load("strategy", "first_and_head")(first=2))
    check_task(plugins.load("task", "verdict")())


def test_they_are_listed_beside_ours() -> None:
    listed = {row["name"]: row["about"] for row in catalogue.rows("strategies")}
    assert listed["first_and_head"] == "Fine-tune the first layer groups and the head."
    assert "probe" in listed


def test_a_run_with_both_is_trained_saved_loaded_and_predicts(tmp_path: Path) -> None:
    run = workflow.finetune(
        _pictures(tmp_path / "photos"),
        backbone="random/test_resnet",
        strategy="first_and_head",
        task="verdict",
        epochs=2,
        overrides=["strategy.first=2", "task.smooth=0.2", "data.image_size=32"],
        out=tmp_path / "run",
    )
    assert run.metrics[0].split == "val"
    rows = workflow.predict(run.folder, [tmp_path / "photos" / "val" / "a" / "0.png"])
    assert set(rows[0]["probabilities"]) == {"a", "b"}  # type: ignore[call-overload]


def test_their_options_are_checked_like_ours(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        workflow.finetune(tmp_path, strategy="first_and_head", overrides=["strategy.frist=2"], out=tmp_path / "run")
    assert str(caught.value) == "unknown key 'strategy.frist'\n  fix: did you mean 'strategy.first'?"


def _pictures(folder: Path) -> Path:
    for split, count in (("train", 8), ("val", 4)):
        for number in range(2 * count):
            path = folder / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = runtime.rng(number, split).integers(0, 256, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(path)
    return folder
