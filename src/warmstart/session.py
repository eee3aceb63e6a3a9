"""What lives while a command runs: the recipe, the run folder, the clock, and the decisions made so far.

Whatever a measurement decides is written down before it is acted on, so a command that was killed and repeated
decides the same and ends in the same bits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from warmstart import config, runtime
from warmstart.cache import Cache
from warmstart.config import Decision, Recipe, Sourced
from warmstart.interrupts import Stop, Stopped
from warmstart.progress import Advance, Progress, Silent
from warmstart.rundir import RunDir

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@dataclass
class Session:
    """One command at work on one run folder."""

    sourced: Sourced
    folder: RunDir
    cache: Cache
    progress: Progress = field(default_factory=Silent)
    started: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage of this invocation, in order."""
    planned: dict[str, float] = field(default_factory=dict)
    """Seconds that were forecast for a stage before it began."""
    planned_seconds: float | None = None
    """Forecast of the whole command, made as soon as there was something to measure."""
    closing_seconds: float = 0.0
    """Forecast of what has to follow the last fit, which its deadline leaves room for."""
    decisions: list[Decision] = field(default_factory=list)
    stop: Stop = field(default_factory=Stop)

    @property
    def recipe(self) -> Recipe:
        """Return the recipe as decided so far."""
        return self.sourced.recipe

    @property
    def finished(self) -> bool:
        """Say whether this run was finished by an earlier command."""
        return self.folder.status == "done"

    @property
    def workers(self) -> int:
        """Return how many threads decode pictures."""
        return self.recipe.data.workers or runtime.num_cpus()

    @property
    def device(self) -> torch.device:
        """Return where to compute."""
        return runtime.pick_device(self.recipe.device)

    def seconds(self) -> float:
        """Return the wall time of this command so far."""
        return time.monotonic() - self.started

    def seconds_left(self) -> float:
        """Return what the budget leaves; infinite without one."""
        return float("inf") if self.recipe.budget is None else self.recipe.budget - self.seconds()

    def with_values(self, values: Mapping[str, object]) -> Session:
        """Return this session with other values of some keys; clock, folder and decisions are shared."""
        if not values:
            return self
        recipe = self.recipe
        for key, value in values.items():
            recipe = config.set_key(recipe, key, value)
        return replace(self, sourced=Sourced(recipe, self.sourced.origins))

    @property
    def has_answer(self) -> bool:
        """Say whether something could be tested and reported if the command had to end now."""
        return self.stop.has_answer

    @has_answer.setter
    def has_answer(self, value: bool) -> None:
        """Say so, for every session of this command."""
        self.stop.has_answer = value

    @property
    def stopping(self) -> bool:
        """Say whether somebody asked to stop and there is an answer to stop with."""
        return bool(self.stop.asked) and self.stop.has_answer

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Do something that the answer can do without, such as a further trial.

        It does not begin once somebody asked to stop, and the next tick of a stage in it gives it up. What is in no
        part is always done.

        Args:
            name: Its own among the parts of this command, and the same when the command is repeated.

        Raises:
            Stopped: Somebody asked to stop; `stoppable` takes it.
        """
        with self.stop.doing(name):
            yield

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Go on after this block when a part in it was given up."""
        try:
            yield
        except Stopped:
            self.seal_stop()

    def seal_stop(self) -> None:
        """Write down what was done before a stop, so that the command, repeated, does no more and tests the same."""
        if self.stop.stopped:
            self.folder.finish_stage("stopped", self.stop.record(), seconds=0.0)

    def _watched(self, advance: Advance) -> Advance:
        """Let each tick give up the part at work."""

        def tick(done: int, total: int) -> None:
            advance(done, total)
            self.stop.check()

        return tick

    @contextmanager
    def stage(self, name: str, *, planned: float | None = None, ends_itself: bool = False) -> Iterator[Advance]:
        """Time one stage and show its progress.

        Args:
            name: Shown, and the key of its seconds.
            planned: Seconds that were forecast.
            ends_itself: It looks at `stop.should_end`, so its ticks never give a part up.
        """
        if planned is not None:
            self.planned[name] = self.planned.get(name, 0.0) + planned
        begun = time.monotonic()
        try:
            advance = self.progress.begin(name)
            yield advance if self.stop.part is None or ends_itself else self._watched(advance)
        finally:
            spent = time.monotonic() - begun
            self.stages[name] = self.stages.get(name, 0.0) + spent
            self.progress.end(name, spent)

    def decide(self, key: str, decider: Callable[[], tuple[object, str]]) -> object:
        """Return the recipe's value of a key; when it is open, decide once for this run and remember.

        Args:
            key: A dotted key of the recipe.
            decider: Returns the value, JSON-ready, and the reason. Not called when the run has decided before.
        """
        given = config.get_key(self.recipe, key)
        if given is not None:
            return given
        value, reason = self.remember(key, decider)
        self.sourced = self.sourced.decide(key, value, reason)
        self.decisions.append(Decision(key, value, reason))
        return value

    def remember(self, key: str, decider: Callable[[], tuple[object, str]]) -> tuple[object, str]:
        """Return what this run decided about anything, deciding it when it has not."""
        name = f"decide {key}"
        known = self.folder.stage(name)
        if known is None:
            begun = time.monotonic()
            value, reason = decider()
            known = {"value": value, "reason": reason}
            self.folder.finish_stage(name, known, seconds=time.monotonic() - begun)
            log.info("%s = %s: %s", key, value, reason)
        return known["value"], str(known["reason"])
