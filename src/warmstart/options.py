"""The options that every verb shares, written once: Python keywords, command-line flags and recipe keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from warmstart import config, plugins
from warmstart.config import Recipe, Sourced
from warmstart.errors import RecipeError, closest

RECIPE_KEYS = {
    "reader": "data.reader",
    "image_column": "data.image_column",
    "target_column": "data.target_column",
    "group_column": "data.group_column",
    "split_column": "data.split_column",
    "id_column": "data.id_column",
    "separator": "data.separator",
    "duplicates": "data.duplicates",
    "task": "task.name",
    "backbone": "backbone",
    "candidates": "candidates",
    "max_params": "max_params",
    "licence": "licence",
    "strategy": "strategy.name",
    "epochs": "epochs",
    "batch_size": "batch_size",
    "seed": "seed",
    "device": "device",
    "budget": "budget",
    "memory": "memory",
    "search": "search.trials",
}
"""Option → key of the recipe that it sets."""


class Options(TypedDict, total=False):
    """Keywords of `run`, `finetune` and `audit`; each is a flag too, and most are keys of the recipe."""

    reader: str | None
    image_column: str | None
    target_column: str | None
    group_column: str | None
    split_column: str | None
    id_column: str | None
    separator: str | None
    duplicates: str | None
    task: str | None
    backbone: str | None
    candidates: str | None
    max_params: str | int | None
    licence: str | None
    strategy: str | None
    epochs: int | None
    batch_size: int | None
    seed: int | None
    device: str | None
    budget: str | float | None
    memory: str | int | None
    search: int | None
    recipe: str | Path | None
    overrides: Sequence[str] | Mapping[str, object]
    out: str | Path | None
    overwrite: bool
    cache_limit: str | None


def sourced(data: str | Path | None, options: Options) -> Sourced:
    """Read the recipe that the options and the overrides describe.

    Raises:
        RecipeError: An unknown keyword; see also `config.read_recipe`.
    """
    _refuse_strangers(options)
    named: dict[str, object] = {key: options.get(option) for option, key in RECIPE_KEYS.items()}
    recipe = options.get("recipe")
    if data is not None and str(data).endswith(".toml") and recipe is None:
        recipe = data
    else:
        named["data.path"] = None if data is None else str(data)
    overrides = options.get("overrides") or ()
    words: Sequence[str] = ()
    if isinstance(overrides, Mapping):
        named |= overrides
    else:
        words = overrides
    return config.read_recipe(recipe, words, named)


def _refuse_strangers(options: Mapping[str, object]) -> None:
    """Refuse a keyword that would be ignored, and say how a key of the recipe is given."""
    for word in sorted(options.keys() - Options.__annotations__.keys()):
        keys = [key for key in config.keys(Recipe()) if key.rpartition(".")[2] == word]
        raise RecipeError(
            f"unknown keyword {word!r}",
            f'overrides={{"{keys[0]}": {options[word]!r}}}' if keys else closest(word, Options.__annotations__),
        )


def describe(option: str) -> str:
    """Return the help of an option: the description of the recipe key that it sets."""
    section, _, rest = RECIPE_KEYS[option].partition(".")
    owner = config.SECTIONS.get(section, config.Recipe)
    wanted = rest if section in config.SECTIONS else section
    return next(found.description for found in plugins.options(owner) if found.name == wanted)
