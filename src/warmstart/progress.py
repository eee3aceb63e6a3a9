"""How far along a stage is, for whoever wants to know; silent unless somebody listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Advance = Callable[[int, int], None]
"""Called with (done, total)."""


class Progress(Protocol):
    """Shows stages as they run."""

    def begin(self, stage: str) -> Advance:
        """Announce a stage and return what to call as it advances."""
        ...

    def end(self, stage: str, seconds: float) -> None:
        """Announce that a stage is over."""
        ...


class Silent:
    """Shows nothing."""

    def begin(self, stage: str) -> Advance:
        """Ignore the stage."""
        return lambda done, total: None

    def end(self, stage: str, seconds: float) -> None:
        """Ignore the end."""
