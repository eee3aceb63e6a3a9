"""Plug-ins are files found by name; what they say about themselves comes from their own source."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from warmstart import plugins
from warmstart.errors import RecipeError

ALL = [(kind, name) for kind in plugins.FOLDERS for name in plugins.names(kind)]
PACKAGE = Path(plugins.__file__).parent


@dataclass(frozen=True)
class Sample:
    """A plug-in for the tests below.

    More about it.
    """

    rank: int = 8
    """Width of the update,
    in directions."""
    names: tuple[str, ...] = dataclasses.field(default_factory=lambda: ("a", "b"))
    silent: float = 0.5


def test_options_come_from_fields_and_the_strings_under_them() -> None:
    assert plugins.options(Sample) == (
        plugins.Option("rank", "int", 8, "Width of the update, in directions."),
        plugins.Option("names", "tuple[str, ...]", ("a", "b"), ""),
        plugins.Option("silent", "float", 0.5, ""),
    )


def test_option_types_are_resolved() -> None:
    assert plugins.option_types(Sample) == {"rank": int, "names": tuple[str, ...], "silent": float}


def test_summary_is_the_first_line() -> None:
    assert plugins.summary(Sample) == "A plug-in for the tests below."


def test_unknown_name_gets_the_closest() -> None:
    with pytest.raises(RecipeError) as caught:
        plugins.load("strategy", "prob")
    assert str(caught.value) == "unknown strategy 'prob'\n  fix: did you mean 'probe'?"


@pytest.mark.parametrize("kind", plugins.FOLDERS)
def test_names_are_the_files_of_the_folder(kind: str) -> None:
    folder = PACKAGE / plugins.FOLDERS[kind]
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert set(plugins.names(kind)) == {name for name in files if not name.startswith("_")}
    assert list(plugins.names(kind)) == sorted(plugins.names(kind))


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_plugin_is_one_frozen_class_that_describes_itself(kind: str, name: str) -> None:
    plugin = plugins.load(kind, name)
    path = PACKAGE / plugins.FOLDERS[kind] / f"{name}.py"
    assert path.read_text().rstrip().splitlines()[-1] == f"PLUGIN = {plugin.__name__}"
    with pytest.raises(dataclasses.FrozenInstanceError):
        plugin().anything = 1
    assert plugins.summary(plugin).endswith(".")
    assert [option.name for option in plugins.options(plugin) if not option.description] == []
    assert set(plugins.option_types(plugin)) == {option.name for option in plugins.options(plugin)}


def test_listing_every_plugin_loads_no_heavy_library() -> None:
    source = (
        "import sys, json; from warmstart import plugins\n"
        "rows = [plugins.options(plugins.load(k, n)) for k in plugins.FOLDERS for n in plugins.names(k)]\n"
        "heavy = {'torch', 'torchvision', 'timm', 'sklearn', 'scipy', 'onnxruntime', 'accelerate', 'pyarrow'}\n"
        "print(json.dumps([len(rows), sorted(heavy & sys.modules.keys())]))"
    )
    done = subprocess.run([sys.executable, "-c", source], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [len(ALL), []]


def test_nobody_imports_a_concrete_plugin() -> None:
    """`plugins.load` brings them by name; only a plug-in's own siblings may lean on it."""
    concrete = {f"warmstart.{plugins.FOLDERS[kind].replace('/', '.')}.{name}": kind for kind, name in ALL}
    offenders = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            kind = concrete.get(node.module or "") if isinstance(node, ast.ImportFrom) else None
            if kind and path.parent != PACKAGE / plugins.FOLDERS[kind]:
                offenders.append(f"{path.relative_to(PACKAGE)}:{node.lineno} imports {node.module}")
    assert offenders == []


THIRD_PARTY = '''
from dataclasses import dataclass

@dataclass(frozen=True)
class Mine:
    """A strategy of somebody else."""

    depth: int = 3
    """How deep."""

PLUGIN = Mine
'''


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a package with an entry point on the path, as an installer would."""
    (tmp_path / "their_warmstart.py").write_text(THIRD_PARTY)
    info = tmp_path / "their_warmstart-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-warmstart\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[warmstart.strategy]\nmine = their_warmstart\nmine_by_class = their_warmstart:Mine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    _forget()
    yield
    monkeypatch.undo()
    sys.modules.pop("their_warmstart", None)
    _forget()


def _forget() -> None:
    for remembered in (plugins.names, plugins.load, plugins._third_party):
        remembered.cache_clear()


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize("name", ["mine", "mine_by_class"])
def test_entry_points_add_plugins(name: str) -> None:
    assert name in plugins.names("strategy")
    assert plugins.options(plugins.load("strategy", name)) == (plugins.Option("depth", "int", 3, "How deep."),)
