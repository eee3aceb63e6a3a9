"""What can go wrong, said in two lines: what is wrong and what was expected, then the next command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

SHOWN = 20


class WarmstartError(Exception):
    """The root of every error that a user can cause.

    Args:
        problem: What is wrong, with the value, and what was expected. Lower case, no full stop.
        fix: What to do next, copy-pastable.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem}\n  fix: {self.fix}"


class RecipeError(WarmstartError):
    """A recipe, an option or a name that cannot be used as written."""


class DataError(WarmstartError):
    """Files, tables or targets that cannot be learned from as they are."""


class SourceError(WarmstartError):
    """Weights that are not where they were looked for, or are not what their card says."""


class RunError(WarmstartError):
    """A run folder that is missing, locked, unfinished or belongs to another recipe."""


class CheckpointError(WarmstartError):
    """A checkpoint or weights file that is corrupt, foreign or does not fit the model."""


class CacheError(WarmstartError):
    """A cache that has no room or no permission."""


class TrainingError(WarmstartError):
    """A fit that cannot go on: a loss that is not a number, a guard that failed."""


def closest(name: str, names: Iterable[str]) -> str:
    """Say which known name was probably meant.

    Returns:
        `did you mean 'x'?` for the nearest name, else the sorted list of names.

    Example:
        >>> closest("prob", ["probe", "full"])
        "did you mean 'probe'?"
    """
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {listed(known)}"


def listed(items: Sequence[str], shown: int = SHOWN) -> str:
    """Join the first `shown` items and count the rest.

    Example:
        >>> listed(["a", "b", "c"], shown=2)
        'a, b and 1 more'
    """
    head = ", ".join(items[:shown])
    return f"{head} and {len(items) - shown} more" if len(items) > shown else head
