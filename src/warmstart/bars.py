"""Progress bars with rate and time left, for a terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from warmstart.progress import Advance

PATIENCE_SECONDS = 2.0
"""A stage shows itself only once it has lasted this long."""


class Bars:
    """Shows each stage that lasts longer than two seconds on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._shown: TaskID | None = None

    def begin(self, stage: str) -> Advance:
        """Wait for the stage to last, then show it."""
        started = time.monotonic()

        def advance(done: int, total: int) -> None:
            elapsed = time.monotonic() - started
            if elapsed < PATIENCE_SECONDS:
                return
            if self._shown is None:
                self._bars.start()
                self._shown = self._bars.add_task(stage, total=total, rate="")
            self._bars.update(self._shown, completed=done, total=total, rate=f"{done / elapsed:.0f}/s")

        return advance

    def end(self, stage: str, seconds: float) -> None:
        """Take the bar away and leave one line where there was one."""
        if self._shown is not None:
            self._bars.remove_task(self._shown)
            self._bars.stop()
            self._shown = None
        if seconds >= PATIENCE_SECONDS:
            self._console.print(f"[dim]{stage:<10} {seconds:.1f} s[/dim]", highlight=False)
