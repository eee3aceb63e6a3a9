"""Plug-ins by kind and name: a folder listing plus entry points, nothing else.

A plug-in is one file. The file's name is the plug-in's name, and its last line is `PLUGIN = ClassName`: a frozen
dataclass whose fields are its options. The string under a field is the option's only description; help, docs and
templates read it through `options`.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

from warmstart.errors import RecipeError, closest

FOLDERS = {
    "reader": "data/readers",
    "source": "sources",
    "task": "tasks",
    "method": "methods",
    "strategy": "strategies",
    "score": "scores",
}


@dataclass(frozen=True)
class Option:
    """One option of a plug-in: its name, type as written, default and description."""

    name: str
    type: str
    default: object
    description: str


@cache
def names(kind: str) -> tuple[str, ...]:
    """List the plug-ins of a kind, sorted, without importing any of them.

    Args:
        kind: One of `FOLDERS`.
    """
    folder = Path(__file__).parent / FOLDERS[kind]
    own = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    return tuple(sorted(own | set(_third_party(kind))))


@cache
def load(kind: str, name: str) -> type:
    """Import one plug-in and return its class.

    Raises:
        RecipeError: No plug-in of this kind has this name; the closest name is given.
    """
    if name not in names(kind):
        raise RecipeError(f"unknown {kind} {name!r}", closest(name, names(kind)))
    third_party = _third_party(kind)
    module: ModuleType | type
    if name in third_party:
        module = third_party[name].load()
    else:
        module = importlib.import_module(f"warmstart.{FOLDERS[kind].replace('/', '.')}.{name}")
    plugin = module if isinstance(module, type) else module.PLUGIN
    assert isinstance(plugin, type) and dataclasses.is_dataclass(plugin), f"{kind} {name}: PLUGIN is a frozen dataclass"
    return plugin


@cache
def options(plugin: type) -> tuple[Option, ...]:
    """Read the options of a plug-in from its fields and the strings under them.

    Example:
        >>> [option.name for option in options(Option)][:2]
        ['name', 'type']
    """
    described = _field_docs(plugin)
    found = []
    for field in dataclasses.fields(plugin):
        default = field.default_factory() if callable(field.default_factory) else field.default
        kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        found.append(Option(field.name, kind, default, described.get(field.name, "")))
    return tuple(found)


def option_types(plugin: type) -> dict[str, object]:
    """Resolve the annotations of a plug-in's options."""
    hints = get_type_hints(plugin)
    return {field.name: hints[field.name] for field in dataclasses.fields(plugin)}


def summary(plugin: type) -> str:
    """Return the first line of a plug-in's docstring."""
    return (inspect.getdoc(plugin) or "").partition("\n")[0]


@cache
def _third_party(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"warmstart.{kind}")}


def _field_docs(plugin: type) -> dict[str, str]:
    """Map each annotated field to the string literal that stands under it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(plugin)))
    body = tree.body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = inspect.cleandoc(text).replace("\n", " ")
    return docs
