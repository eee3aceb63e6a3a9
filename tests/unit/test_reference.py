"""The reference pages are what the plug-ins say today."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from warmstart import plugins

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_reference", ROOT / "docs" / "build_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_up_to_date(build: ModuleType) -> None:
    written = {str(path.relative_to(FOLDER)): path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.md")}
    assert written == build.pages(), "run python docs/build_reference.py"


def test_there_is_a_page_for_each_plugin_and_an_index(build: ModuleType) -> None:
    kinds = ("strategy", "task", "reader", "source", "score")
    assert len(build.pages()) == 1 + sum(len(plugins.names(kind)) for kind in kinds) == 31


@pytest.mark.parametrize("name", plugins.names("strategy"))
def test_a_strategy_says_what_it_needs_its_relations_and_its_cost(build: ModuleType, name: str) -> None:
    text = build.page("strategy", name)
    assert all(f"\n## {title}\n" in text for title in ("Needs", "Relations", "Cost", "Options"))
    options = plugins.options(plugins.load("strategy", name))
    assert all(f"| `strategy.{option.name}` |" in text for option in options)


@pytest.mark.parametrize("name", plugins.names("score"))
def test_a_score_says_its_paper_what_it_needs_its_relations_and_its_cost(build: ModuleType, name: str) -> None:
    text = build.page("score", name)
    assert all(f"\n## {title}\n" in text for title in ("Needs", "Relations", "Cost", "Options", "Background"))
    assert "arXiv" in text or name == "loo_ridge"  # Allen, 1974
    assert name == "prior" or "Where we\ndiffer" in text or "Where we differ" in text
