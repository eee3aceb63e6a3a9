"""Ctrl-C and SIGTERM: said once, a run ends with its best so far; said twice, or before there is anything, it leaves.

A handler stands only in the main thread, only where nobody else has put one, and only while a command runs.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Listener: TypeAlias = Callable[[int], bool]
"""Told the number of a signal; False when it does not take it, and the process is to leave at once."""


class Stopped(BaseException):
    """An optional part of the work was given up because somebody asked to stop; `Session.stoppable` takes it.

    It is no `Exception`, so that nothing that deals with failures takes it for one.
    """


@dataclass
class Stop:
    """Whether somebody asked a command to stop, and what it has done of what it can do without."""

    asked: str = ""
    """Name of the signal; empty while nobody asked."""
    has_answer: bool = False
    """Whether something could be tested and reported if the command had to end now."""
    stopped: bool = False
    """Whether anything was given up."""
    done: list[str] = field(default_factory=list)
    """Parts that were done."""
    before: frozenset[str] = frozenset()
    """Parts that were done before the stop of an earlier command that this one repeats; they are done again."""
    part: str | None = None
    """The part at work."""

    @staticmethod
    def known(record: Mapping[str, object] | None) -> Stop:
        """Take up the stop of an earlier command, from what `record` wrote: the same is tested again, nothing else."""
        if record is None:
            return Stop()
        parts = record["done"]
        assert isinstance(parts, list)
        return Stop(str(record["asked"]), before=frozenset(parts))

    def record(self) -> dict[str, object]:
        """Return what a repeated command has to know, JSON-ready."""
        return {"asked": self.asked, "done": list(self.done)}

    def resume(self) -> None:
        """Stay stopped: what an earlier command ended early was taken up."""
        self.asked, self.stopped = self.asked or "an earlier signal", True

    def hear(self, signum: int) -> bool:
        """Take the first signal that comes once there is an answer."""
        if self.asked or not self.has_answer:
            return False
        self.asked = signal.Signals(signum).name
        log.warning("stopping: the best so far is tested and reported; once more leaves at once")
        return True

    def should_end(self) -> bool:
        """Say whether what is at work should end early, and remember that it did."""
        ends = bool(self.asked) and self.has_answer and self.part not in self.before
        self.stopped |= ends
        return ends

    def check(self) -> None:
        """Give the part at work up when it should end.

        Raises:
            Stopped: It should.
        """
        if self.should_end():
            raise Stopped

    @contextmanager
    def doing(self, part: str) -> Iterator[None]:
        """Do a part, unless it should not begin."""
        outer, self.part = self.part, part
        try:
            self.check()
            yield
        finally:
            self.part = outer
        self.done.append(part)


class _Handler:
    """A handler of ours, which another of ours may stand in for."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def __call__(self, signum: int, frame: object) -> None:
        if not self.listener(signum):
            leave(signum)


def leave(signum: int) -> NoReturn:
    """Leave at once, with the exit code that a shell expects: 130 for Ctrl-C, 143 for SIGTERM.

    Raises:
        KeyboardInterrupt: For SIGINT.
        SystemExit: For SIGTERM.
    """
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signum)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Let a listener hear SIGINT and SIGTERM for a while; what the listener does not take leaves at once."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            known = signal.getsignal(signum)
            if isinstance(known, _Handler) or known in (signal.SIG_DFL, signal.default_int_handler):
                before[signum] = signal.signal(signum, _Handler(listener))
    try:
        yield
    finally:
        for signum, known in before.items():
            signal.signal(signum, known)
