"""The recipe: a complete description of one run, and where each of its values came from.

A recipe is read from TOML, overridden by `key=value` words and command-line options, checked as a whole, and written
back resolved. `None` means "decide for me": one pure function resolves it and records value and reason.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, cast

from warmstart import plugins, runtime
from warmstart.errors import SHOWN, RecipeError, closest

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
MAGNITUDES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
COUNTED = {"max_params": "30M", "memory": "4GB"}
"""Keys whose numbers are written with magnitudes, each with an example."""
DEFAULT, FILE, COMMAND = "default", "recipe", "command line"


@dataclass(frozen=True)
class DataConfig:
    """Where the examples are and how they become tensors."""

    path: str | None = None
    """Folder, table or file of examples."""
    reader: str | None = None
    """Which reader; decided from the files when not given."""
    image_column: str | None = None
    """Column of a table that holds the path of each picture."""
    target_column: str | None = None
    """Column that holds the target; several, separated by commas, are a vector."""
    group_column: str | None = None
    """Column of groups (patients, film rolls) that must not be on both sides of a split."""
    split_column: str | None = None
    """Column that says train, val or test."""
    id_column: str | None = None
    """Column of unique names; the row number when not given."""
    separator: str | None = None
    """Separates several labels in one cell; given, the task is multi-label."""
    image_size: int | None = None
    """Side in pixels that the backbone sees; decided from the weights, the data and the budget when not given."""
    resize: int | None = None
    """Shorter side in pixels before the centre crop; `image_size` when not given, so that nothing is cropped away."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """How a picture that is not square becomes one."""
    augment: Literal["none", "flip", "standard", "strong"] | None = None
    """Random changes to training pictures: `standard` when all layers learn, none when a frozen part is cached."""
    views: int = 1
    """How many views of each training example are cached for a frozen backbone; 1 is the plain picture."""
    val_fraction: float | None = None
    """Share of the training examples to validate on; 0.2 when not given. No effect when the data says its own."""
    test_fraction: float | None = None
    """Share of all examples to test on; 0.2 when not given. No effect when the data says its own."""
    duplicates: Literal["stop", "drop-test", "allow"] = "stop"
    """What to do when a test example, or its group, is also in train."""
    workers: int | None = None
    """Threads that decode pictures; the number of processors when not given. Never changes a result."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer. No effect on a solved head."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """Which optimizer."""
    lr: float | None = None
    """Learning rate; decided from optimizer and strategy when not given."""
    momentum: float = 0.9
    """Momentum of sgd; no effect on the others."""
    nesterov: bool = False
    """Look ahead along the momentum; no effect unless sgd has momentum."""
    weight_decay: float | None = None
    """Decay of weights; 0.05 for adamw and 1e-4 for the others when not given."""
    decay_all: bool = False
    """Decay biases and the parameters of normalisation as well, as plain PyTorch optimizers do."""
    clip_norm: float | None = 1.0
    """Gradients are scaled down to this norm; none when not given a number. `0` turns it off."""


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves from the first step to the last."""

    name: Literal["cosine", "linear", "constant", "step", "plateau"] = "cosine"
    """Shape after the warm-up."""
    warmup_fraction: float = 0.1
    """Share of all steps in which the rate rises from 0."""
    step_epochs: int = 30
    """Epochs between the drops of `step`, and without improvement before a drop of `plateau`."""
    factor: float = 0.1
    """What a drop of `step` or `plateau` multiplies the rate by."""


@dataclass(frozen=True)
class SearchConfig:
    """The search for better settings that follows the planned fit of `run`."""

    trials: int | None = None
    """Settings to try by short trials after the planned fit; what the budget allows when not given, 0 for none."""
    space: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """What to try for each key: two numbers are a range, anything else lists choices; the usual when not given."""

    @property
    def asked(self) -> bool:
        """Say whether somebody asked for a search."""
        return self.trials != 0 and bool(self.trials or self.space)


@dataclass(frozen=True)
class Choice:
    """A plug-in by name, with the options that were given for it."""

    name: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A complete description of one run."""

    data: DataConfig = field(default_factory=DataConfig)
    """Where the examples are and how they become tensors."""
    task: Choice = field(default_factory=Choice)
    """What the targets mean; decided from the targets when not given."""
    backbone: str | None = None
    """Where the weights come from: `source/name`, or a folder of weights."""
    candidates: str | None = None
    """Backbones to choose among: names and patterns, separated by commas. No effect when `backbone` is given."""
    max_params: int | None = None
    """Largest number of parameters of a candidate, such as 30M."""
    licence: Literal["any", "permissive"] = "any"
    """Which candidates may be chosen; `permissive` leaves out unknown licences too."""
    strategy: Choice = field(default_factory=Choice)
    """How to fine-tune."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the learning rate moves."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """The search for better settings."""
    epochs: int | None = None
    """Passes over the training examples; what the budget allows, at most 30, when not given."""
    batch_size: int = 32
    """Examples per optimizer step."""
    micro_batch: int | None = None
    """Examples per forward pass, the knob for memory; `batch_size` when not given."""
    early_stopping: int | None = None
    """Epochs without improvement on val before the fit ends; never when not given."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then what is validated and kept."""
    on_nan: Literal["stop", "skip"] = "stop"
    """What to do when a loss is not a number."""
    seed: int = 0
    """Seed of splits, order, augmentation and heads."""
    device: runtime.Device = "auto"
    """Where to compute."""
    precision: runtime.Precision = "auto"
    """Number format of the forward pass; fp32 on a CPU."""
    budget: float | None = None
    """Seconds for the whole command; words such as 90s, 10m and 2h are understood."""
    memory: int | None = None
    """Bytes that the command may use at its peak, such as 4GB; what is free when not given."""


LEAST = {
    "data.image_size": 1,
    "data.resize": 1,
    "data.views": 1,
    "data.workers": 0,
    "schedule.step_epochs": 1,
    "epochs": 1,
    "batch_size": 1,
    "micro_batch": 1,
    "early_stopping": 1,
    "max_params": 1,
    "memory": 1,
    "search.trials": 0,
}
"""The smallest value of each count."""

Owner = TypeVar("Owner")
Value = TypeVar("Value")
PLUGIN_KEYS = {"task": "task", "strategy": "strategy"}
SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "optim": OptimConfig,
    "schedule": ScheduleConfig,
    "search": SearchConfig,
}
SPACE = "search.space."
"""What the keys of a search space begin with; the key that is tried follows."""
TRIED = ("data.augment", "batch_size", "ema")
"""Keys that may be tried beside those of optimizer, schedule and strategy."""


@dataclass(frozen=True)
class Decision:
    """A value that was decided, and why."""

    key: str
    value: object
    reason: str


@dataclass(frozen=True)
class Sourced:
    """A recipe with the origin of every value that is not a default."""

    recipe: Recipe
    origins: Mapping[str, str]

    def decide(self, key: str, value: object, reason: str) -> Sourced:
        """Fill in one value that was left open; the reason becomes its origin."""
        return Sourced(set_key(self.recipe, key, value), {**self.origins, key: f"decided: {reason}"})

    def was_open(self, key: str) -> bool:
        """Say whether a value was left open by whoever wrote the recipe."""
        return get_key(self.recipe, key) is None or self.origins.get(key, "").startswith("decided: ")

    def to_toml(self) -> str:
        """Write the recipe with the origin of each value as a comment."""
        return to_toml(self.recipe, self.origins)


def read_recipe(
    path: Path | str | None = None, overrides: Sequence[str] = (), named: Mapping[str, object] | None = None
) -> Sourced:
    """Read a recipe file, then apply `key=value` words, then named values; check everything together.

    Args:
        path: A TOML file, or None for an empty recipe.
        overrides: Words such as `optim.lr=1e-3`; a bare option of the chosen strategy (`rank=8`) is understood.
        named: Values by dotted key; those that are None are left out.

    Raises:
        RecipeError: Unknown keys, wrong types, unknown plug-ins or options; all of them are listed.

    Example:
        >>> read_recipe(overrides=["optim.lr=1e-3"]).recipe.optim.lr
        0.001
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    if path is not None:
        _merge(values, origins, _flat(_load_toml(Path(path))), f"{FILE} {Path(path).name}")
    _merge(values, origins, {key: value for key, value in (named or {}).items() if value is not None}, COMMAND)
    _merge(values, origins, dict(_split_word(word) for word in overrides), COMMAND)
    return Sourced(build(values), _spelt_out(origins, values.get("strategy.name")))


def build(values: Mapping[str, object]) -> Recipe:
    """Build a recipe from dotted keys, naming every problem at once.

    Raises:
        RecipeError: See `read_recipe`.
    """
    values = _spelt_out(values, values.get("strategy.name"))
    problems: list[tuple[str, str]] = []
    recipe = Recipe()
    for key, value in values.items():
        try:
            recipe = set_key(recipe, key, _checked(key, value, values))
        except RecipeError as error:
            problems.append((error.problem, error.fix))
    if len(problems) == 1:
        raise RecipeError(*problems[0])
    if problems:
        lines = "\n".join(f"  - {problem} ({fix})" for problem, fix in problems[:SHOWN])
        rest = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise RecipeError(f"{len(problems)} problems in the recipe\n{lines}{rest}", "warmstart show RECIPE")
    return recipe


def plugin_of(kind: str, choice: Choice) -> object:
    """Build the chosen plug-in with its options.

    Raises:
        RecipeError: An option that the plug-in refuses.
    """
    assert choice.name is not None, f"{kind} was not decided"
    return plugins.load(kind, choice.name)(**choice.options)


def set_key(recipe: Recipe, key: str, value: object) -> Recipe:
    """Return the recipe with one dotted key changed."""
    section, _, rest = key.partition(".")
    changed = value
    if key.startswith(SPACE):
        space = {**recipe.search.space, key.removeprefix(SPACE): tuple(cast("Sequence[object]", value))}
        changed = _replaced(recipe.search, "space", space)
    elif section in PLUGIN_KEYS:
        choice: Choice = getattr(recipe, section)
        if rest in ("", "name"):
            changed = _replaced(choice, "name", value)
        else:
            changed = Choice(choice.name, {**choice.options, rest: value})
    elif section in SECTIONS:
        changed = _replaced(getattr(recipe, section), rest or "name", value)
    return _replaced(recipe, section, changed)


def _replaced(owner: Owner, name: str, value: object) -> Owner:
    return dataclasses.replace(owner, **{name: value})  # type: ignore[type-var]


def get_key(recipe: Recipe, key: str) -> object:
    """Return the value of one dotted key; `strategy` means `strategy.name`."""
    if key.startswith(SPACE):
        return recipe.search.space.get(key.removeprefix(SPACE))
    section, _, rest = key.partition(".")
    value = getattr(recipe, section)
    if section in PLUGIN_KEYS:
        return value.name if rest in ("", "name") else value.options.get(rest)
    return getattr(value, rest) if rest else value


def keys(recipe: Recipe) -> list[str]:
    """List every dotted key of a recipe, in reading order."""
    found = []
    for entry in dataclasses.fields(recipe):
        value = getattr(recipe, entry.name)
        if isinstance(value, Choice):
            found += [f"{entry.name}.name", *(f"{entry.name}.{option}" for option in value.options)]
        elif isinstance(value, SearchConfig):
            found += ["search.trials", *(SPACE + tried for tried in value.space)]
        elif dataclasses.is_dataclass(value):
            found += [f"{entry.name}.{inner.name}" for inner in dataclasses.fields(value)]
        else:
            found.append(entry.name)
    return found


def to_toml(recipe: Recipe, origins: Mapping[str, str]) -> str:
    """Write a recipe as TOML that reads back as the same: what is open is a comment, what was turned off says so."""
    plain: list[str] = []
    tables: dict[str, list[str]] = {}
    for key in keys(recipe):
        value = get_key(recipe, key)
        section, _, rest = key.partition(".")
        if value is None:
            value = "none"
        origin = origins.get(key) or origins.get(section if rest == "name" else key, DEFAULT)
        line = f"{rest or key} = {_toml_value(value)}  # {_one_line(origin)}"
        if value == "none" and get_key(Recipe(), key) is None:
            line = f"# {rest or key} is open"
        tables.setdefault(section, []).append(line) if rest else plain.append(line)
    blocks = ["\n".join(plain)] + [f"[{name}]\n" + "\n".join(lines) for name, lines in tables.items()]
    return "\n\n".join(blocks) + "\n"


def fingerprint(recipe: Recipe) -> str:
    """Hash what a result depends on: the recipe without the number of workers."""
    shown = {key: get_key(recipe, key) for key in keys(recipe) if key != "data.workers"}
    return runtime.digest(json.dumps(shown, sort_keys=True, default=str))


def parse_seconds(text: str | float) -> float:
    """Read a duration.

    Raises:
        RecipeError: Neither a number of seconds nor words such as 90s, 10m, 1h30m.

    Example:
        >>> parse_seconds("1h30m")
        5400.0
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool) and 0 < text < math.inf:
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", str(text))
    if parts and re.fullmatch(r"(\s*\d+(?:\.\d+)?\s*[smhd]\s*)+", str(text)):
        seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
        if seconds > 0:
            return seconds
    if re.fullmatch(r"\d+(\.\d+)?", str(text).strip()) and float(text) > 0:
        return float(text)
    raise RecipeError(f"budget={text!r} is no duration", "--budget 10m (or 90s, 1h30m, 2h)")


def parse_count(text: str, *, key: str = "max_params") -> int:
    """Read a count or a number of bytes with a magnitude of a thousand each: 30M, 1.5B, 4GB, 512 MB.

    Raises:
        RecipeError: No number, or an unknown magnitude.

    Example:
        >>> parse_count("30M")
        30000000
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgtb]?)(?:b|ib)?", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise RecipeError(f"{key}={text!r} is no number", f"{key}={COUNTED.get(key, '30M')}")
    return round(float(found[1]) * MAGNITUDES[found[2]])


def _load_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"no recipe at {path}", "ls recipes/, or warmstart show to print the defaults") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}", "key = value lines under [sections]; see recipes/") from error


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _merge(values: dict[str, object], origins: dict[str, str], new: Mapping[str, object], origin: str) -> None:
    for key, value in _flat(new).items():
        name = f"{key}.name" if key in (*PLUGIN_KEYS, "optim", "schedule") else key
        values[name] = value
        origins[name] = origin


def _split_word(word: str) -> tuple[str, object]:
    key, equals, text = word.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{word!r} is no override (expected key=value)", "optim.lr=1e-3")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text


def _spelt_out(table: Mapping[str, Value], strategy: object) -> dict[str, Value]:
    """Read a bare `rank=8` as `strategy.rank=8` when only the chosen strategy knows it."""
    top = {entry.name for entry in dataclasses.fields(Recipe)}
    if not isinstance(strategy, str) or strategy not in plugins.names("strategy"):
        return dict(table)
    known = {option.name for option in plugins.options(plugins.load("strategy", strategy))} - top
    return {(f"strategy.{key}" if key in known else key): value for key, value in table.items()}


def _checked(key: str, value: object, values: Mapping[str, object]) -> object:
    """Return the value in its declared type."""
    if key == "budget":
        return parse_seconds(value)  # type: ignore[arg-type]
    if key in COUNTED and isinstance(value, str) and value != "none":
        return parse_count(value, key=key)
    section, _, rest = key.partition(".")
    if section in PLUGIN_KEYS and rest == "name":
        plugins.load(section, str(value))
        return str(value)
    if key.startswith(SPACE):
        return _choices(key, value, values)
    if key == SPACE[:-1]:
        raise RecipeError(f"{key}={value!r} names no key", f"{SPACE}optim.lr=[1e-4, 1e-3]")
    converted, least = _convert(key, value, _type_of(key, values)), LEAST.get(key)
    if least is not None and isinstance(converted, int) and converted < least:
        raise RecipeError(f"{key}={value!r} does not fit (expected at least {least})", f"{key}={least}")
    return converted


def _type_of(key: str, values: Mapping[str, object]) -> object:
    section, _, rest = key.partition(".")
    if section in PLUGIN_KEYS:
        name = values.get(f"{section}.name")
        if name is None:
            raise RecipeError(f"{key} is given, but no {section}", f"--{section} {plugins.names(section)[0]}")
        owner, wanted, prefix = plugins.load(section, str(name)), rest, f"{section}."
    elif rest and section in SECTIONS:
        owner, wanted, prefix = SECTIONS[section], rest, f"{section}."
    else:
        owner, wanted, prefix = Recipe, key, ""
    types = plugins.option_types(owner)
    if wanted not in types or (owner is Recipe and wanted in (*SECTIONS, *PLUGIN_KEYS)):
        everything = [prefix + name for name in types] + keys(Recipe())
        raise RecipeError(f"unknown key {key!r}", closest(key, everything))
    return types[wanted]


def _choices(key: str, value: object, values: Mapping[str, object]) -> tuple[object, ...]:
    """Return what is to be tried for a key, each in that key's type; words separated by commas are a list too."""
    tried, known = key.removeprefix(SPACE), _searchable(values)
    if tried not in known:
        raise RecipeError(f"{key}: {tried!r} is no key that can be searched", closest(tried, known))
    example = f"{key}={_toml_value(_words(known[tried]) or ([1e-4, 1e-3] if _takes(known[tried], float) else [1, 4]))}"
    value = value.strip("[] ").split(",") if isinstance(value, str) else value
    if not isinstance(value, (list, tuple)) or not value:
        raise RecipeError(f"{key}={value!r} is neither a range nor a list of choices", example)
    try:
        words = (one.strip(" \"'") if isinstance(one, str) else one for one in value)
        found = tuple(_convert(key, word, known[tried]) for word in words)
    except RecipeError as error:
        raise RecipeError(error.problem, example) from error
    least = LEAST.get(tried)
    for one in found if least is not None else ():
        if isinstance(one, int) and one < cast("int", least):
            raise RecipeError(f"{key}={one} does not fit (expected at least {least})", example)
    if is_range(found) and found[0] >= found[1]:  # type: ignore[operator]
        turned = _toml_value(sorted(set(found)))  # type: ignore[type-var]
        raise RecipeError(f"{key}={list(found)} is no range (expected low < high)", f"{key}={turned}")
    return found


def is_range(choices: Sequence[object]) -> bool:
    """Say whether what is to be tried for a key is a range: two numbers.

    Example:
        >>> is_range((1e-5, 1e-3)), is_range((1, 2, 4)), is_range(("none", "flip"))
        (True, False, False)
    """
    return len(choices) == 2 and all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in choices)


def _searchable(values: Mapping[str, object]) -> dict[str, object]:
    """Map each key that a search may try to its type; those of the given strategy first.

    Every strategy's options are among them: what a search tried stands in the recipe of whatever was better in the end.
    """
    given = values.get("strategy.name")
    known: dict[str, object] = {}
    for name in sorted(plugins.names("strategy"), key=lambda name: name != given):
        types = plugins.option_types(plugins.load("strategy", name))
        known = {
            f"strategy.{option}": kind for option, kind in types.items()
        } | known  # the first to have it says its type
    known |= {key: _type_of(key, values) for key in keys(Recipe()) if key.startswith(("optim.", "schedule."))}
    return known | {key: _type_of(key, values) for key in TRIED}


def _takes(wanted: object, kind: type) -> bool:
    return kind in (wanted, *getattr(wanted, "__args__", ()))


def _convert(key: str, value: object, wanted: object) -> object:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    # The word none leaves a value open, unless it is itself one of the words to choose from (data.augment).
    opens = value == "none" and type(None) in getattr(wanted, "__args__", ()) and "none" not in _words(wanted)
    if value is None or opens:
        return None
    try:
        adapter: TypeAdapter[object] = TypeAdapter(cast("type[object]", wanted), config=ConfigDict(strict=False))
        return adapter.validate_python(value)
    except ValidationError as error:
        allowed = error.errors()[0].get("ctx", {}).get("expected")
        expected = allowed or _type_name(wanted)
        raise RecipeError(
            f"{key}={value!r} does not fit (expected {expected})", _example(key, value, wanted)
        ) from error


def _example(key: str, value: object, wanted: object) -> str:
    """Return an override of this key that would be accepted."""
    literals = _words(wanted)
    if literals:
        return f"{key}={closest(str(value), literals).partition(chr(39))[2].partition(chr(39))[0] or literals[0]}"
    kinds = [wanted, *getattr(wanted, "__args__", ())]
    return f"{key}={'1e-3' if float in kinds else '10' if int in kinds else 'true' if bool in kinds else 'word'}"


def _words(wanted: object) -> list[str]:
    """List the words that a `Literal`, alone or in a union, lets one choose from."""
    choices = (wanted, *getattr(wanted, "__args__", ()))
    return [part for choice in choices for part in getattr(choice, "__args__", ()) if isinstance(part, str)]


def _type_name(wanted: object) -> str:
    name = getattr(wanted, "__name__", None) if isinstance(wanted, type) else str(wanted)
    return str(name).replace("typing.", "").replace("None", "none")


def _toml_value(value: object) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _one_line(text: str) -> str:
    """Leave out what a comment must not hold."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
