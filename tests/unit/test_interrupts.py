"""Who hears a signal, what it ends, and that no handler is left behind."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from warmstart import config, workflow
from warmstart.cache import Cache
from warmstart.data import Dataset, read
from warmstart.interrupts import SIGNALS, Stop, Stopped, heard_by
from warmstart.options import Options
from warmstart.rundir import RunDir
from warmstart.session import Session


def session(folder: Path) -> Session:
    sourced = config.read_recipe(overrides=())
    run = RunDir.open(folder, recipe=sourced.to_toml(), fingerprint="x")
    return Session(sourced, run, Cache(), stop=Stop.known(run.stage("stopped")))


def raised(signum: int) -> None:
    """Send this process a signal and let the interpreter deal with it."""
    os.kill(os.getpid(), signum)
    for _ in range(100):
        pass


def handlers() -> list[object]:
    return [signal.getsignal(signum) for signum in SIGNALS]


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_is_heard_once_there_is_an_answer_and_leaves_before_and_after(signum: int) -> None:
    ways = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}
    before, stop = handlers(), Stop()
    with heard_by(stop.hear):
        with pytest.raises(ways[signum]):
            raised(signum)
        assert not stop.should_end()
        stop.has_answer = True
        assert not stop.should_end()
        raised(signum)
        assert (stop.asked, stop.stopped) == (signal.Signals(signum).name, False)
        assert stop.should_end() and stop.stopped
        with pytest.raises(ways[signum]) as left:
            raised(signum)
    if signum == signal.SIGTERM:
        assert left.value.code == 143
    assert handlers() == before


def test_a_handler_that_somebody_put_there_stays() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _: heard.append(signum))
    try:
        with heard_by(lambda _: pytest.fail("asked")):
            raised(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heard_by(lambda _: pytest.fail("asked")):
            raised(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, ignored)


def test_the_inner_one_hears_and_the_outer_one_hears_again() -> None:
    heard: list[str] = []

    def listener(name: str):
        return lambda _: heard.append(name) is None

    with heard_by(listener("outer")):
        with heard_by(listener("inner")):
            raised(signal.SIGTERM)
        raised(signal.SIGTERM)
    assert heard == ["inner", "outer"]


def test_other_threads_leave_the_handlers_alone() -> None:
    seen: list[object] = []

    def work() -> None:
        with heard_by(lambda _: True):
            seen.extend(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == handlers()


# --- parts


def test_what_is_asked_to_stop_gives_up_its_part_and_goes_on_after_it(tmp_path: Path) -> None:
    own, done = session(tmp_path), []
    own.has_answer = True
    with own.stoppable():
        with own.part("first"), own.stage("features") as advance:
            advance(1, 2)
            done.append("first")
        with own.part("second"):
            with own.stage("fit", ends_itself=True) as advance:
                own.stop.hear(signal.SIGINT)
                advance(1, 2)
            done.append("fit")
            with own.stage("features") as advance:
                advance(1, 2)
            done.append("never")
    with own.stage("test") as advance:
        advance(1, 2)
    assert done == ["first", "fit"]
    assert (own.stop.stopped, own.stopping, own.stop.done) == (True, True, ["first"])
    with own.stoppable(), own.part("third"):
        pytest.fail("begun")
    own.folder.close()


def test_a_stop_that_came_when_everything_was_done_gave_nothing_up(tmp_path: Path) -> None:
    own = session(tmp_path)
    own.has_answer = True
    with own.stoppable(), own.part("only"):
        pass
    own.stop.hear(signal.SIGTERM)
    own.seal_stop()
    assert not own.stop.stopped and own.folder.stage("stopped") is None
    own.folder.close()


def test_the_repeated_command_does_again_what_was_done_and_no_more(tmp_path: Path) -> None:
    own = session(tmp_path)
    own.has_answer = True
    with own.stoppable():
        with own.part("first"):
            own.stop.hear(signal.SIGTERM)
        with own.part("second"):
            pytest.fail("begun")
    own.folder.close()
    again, done = session(tmp_path), []
    again.has_answer = True
    with again.stoppable():
        with again.part("first"), again.stage("features") as advance:
            advance(1, 2)
            done.append(again.stop.should_end())
        with again.part("second"):
            pytest.fail("begun")
    assert done == [False]
    assert (again.stop.stopped, again.stop.asked) == (True, "SIGTERM")
    assert not again.stop.hear(signal.SIGINT), "a signal now leaves at once"
    again.folder.close()


def test_sessions_with_other_values_share_the_stop(tmp_path: Path) -> None:
    own = session(tmp_path)
    other = own.with_values({"epochs": 3})
    other.has_answer = True
    own.stop.hear(signal.SIGINT)
    assert other.stopping and own.stopping
    own.folder.close()


def test_stopped_is_no_failure() -> None:
    assert not issubclass(Stopped, Exception)


# --- a fit


def data(num: int = 48, *, given: bool = True) -> Dataset:
    rng = np.random.default_rng(0)
    names = ["dark" if at % 2 else "light" for at in range(num)]
    lift = np.array([60 * (name == "light") for name in names])[:, None, None, None]
    found = read.from_arrays((rng.integers(0, 120, (num, 24, 24, 3)) + lift).astype(np.uint8), names)
    parts = ["train"] * (num // 2) + ["val"] * (num // 4) + ["test"] * (num - num // 2 - num // 4)
    return replace(found, given_split=np.array(parts) if given else None)


class Impatient:
    """Sends a signal at the nth tick of a stage."""

    def __init__(self, stage: str, tick: int) -> None:
        self.stage, self.left = stage, tick

    def begin(self, stage: str):
        def advance(done: int, total: int) -> None:
            self.left -= stage == self.stage
            if self.left == 0 and stage == self.stage:
                raised(signal.SIGINT)

        return advance

    def end(self, stage: str, seconds: float) -> None:
        pass


def given(tmp_path: Path) -> Options:
    overrides = {"data.image_size": 32, "data.workers": 1, "epochs": 500, "batch_size": 8}
    return {"backbone": "random/test_resnet", "strategy": "full", "overrides": overrides, "out": tmp_path}


def test_finetune_in_python_keeps_the_best_so_far(tmp_path: Path) -> None:
    run = workflow.finetune(data(), progress=Impatient("fit", 40), **given(tmp_path / "r"))
    answer = run.facts.answer
    assert answer.stopped and answer.metric is not None and answer.metric.split == "val"
    assert answer.warnings == ("Stopped early by SIGINT: this is the best of what was tried by then.",)
    assert run.facts.attempts[0].details["ended because"] == "stopped"
    assert run.facts.attempts[0].details["steps"] == "40"
    assert run.to_json()["stopped"] is True
    assert "Stopped early by SIGINT" in run.words()
    assert run.report.is_file()
    assert workflow.finetune(data(), **given(tmp_path / "r")).facts.answer.stopped


@pytest.mark.parametrize(("stage", "folds"), [("scan", False), ("fit", True)])
def test_where_there_is_nothing_to_keep_it_leaves(stage: str, folds: bool, tmp_path: Path) -> None:
    """Before the first step; and in a cross-validation, which says something only when all folds are there."""
    with pytest.raises(KeyboardInterrupt):
        workflow.finetune(data(given=not folds), progress=Impatient(stage, 1), **given(tmp_path / "r"))
    assert RunDir.load(tmp_path / "r", finished=False).status == "running"
