"""Nested dataclasses ↔ strict JSON, by their type hints."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def plain(value: object) -> object:
    """Make a value of `asdict` strict JSON: tuples → lists, numpy scalars → numbers, not finite → None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def build(kind: type[T], value: object) -> T:
    """Build a dataclass from a dict, by its type hints; unknown keys are ignored.

    Raises:
        TypeError: A value has another shape than its hint, or a field without default is missing.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{kind.__name__} is {type(value).__name__}, expected an object")
    hints = get_type_hints(kind, localns={"SplitName": str})  # tasks.Metric imports that name for checkers only
    return kind(**{key: _typed(hints[key], item) for key, item in value.items() if key in hints})


def _typed(hint: object, value: object) -> object:
    """Give a JSON value the type of its hint."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [arg for arg in args if arg is not type(None)]
        return None if value is None else _typed(inner[0], value)
    if origin is tuple:
        return _typed_tuple(args, value)
    if origin is dict and isinstance(value, Mapping):
        return {key: _typed(args[1], item) for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value)
    if hint is float:
        return math.nan if value is None else float(value)  # type: ignore[arg-type]
    return value


def _typed_tuple(args: tuple[object, ...], value: object) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r} is no list")
    inner = args[:1] * len(value) if args[-1] is Ellipsis else args
    return tuple(_typed(hint, item) for hint, item in zip(inner, value, strict=True))
