"""Ctrl-C and SIGTERM: once gives the best so far, tested and reported; twice, or too early, leaves and can go on."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from benchmarks import kills

from story.command import start, warmstart

pytestmark = pytest.mark.slow

LEFT = "stopped; the same command goes on from here\n"
STOPPING = "stopping: the best so far is tested and reported; once more leaves at once\n"
WARNING = "Stopped early by {}: this is the best of what was tried by then."


def words(verb: str) -> tuple[str, ...]:
    """A command whose fit would take minutes."""
    several = ("--budget", "1h", "--strategy", "full", *kills.COMMON, "epochs=20_000", "--out", "R")
    return (verb, "data", *several)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists(), process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    return process.communicate(timeout=60)


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_before_there_is_an_answer_it_leaves_and_goes_on(how: signal.Signals, code: int, tmp_path: Path) -> None:
    kills.pictures(tmp_path / "data")
    command = ("run", "data", "--budget", "1h", *kills.COMMON, "--out", "R")
    process = start(tmp_path, *command)
    wait_for(tmp_path / "R/manifest.json", process)
    process.send_signal(how)
    out, err = ended(process)
    assert (process.returncode, out, err) == (code, "", LEFT)
    assert json.loads((tmp_path / "R/manifest.json").read_text())["status"] == "running"
    done = warmstart(tmp_path, *command)
    assert done.code == 0, done.err
    assert (done.json["stopped"], done.json["warnings"]) == (False, [])


@pytest.mark.parametrize(
    ("verb", "how", "split"), [("run", signal.SIGTERM, "test"), ("finetune", signal.SIGINT, "val")]
)
def test_during_the_fit_it_ends_with_the_best_so_far(
    verb: str, how: signal.Signals, split: str, tmp_path: Path
) -> None:
    kills.pictures(tmp_path / "data")
    process = start(tmp_path, *words(verb))
    wait_for(tmp_path / "R/metrics.jsonl", process)
    process.send_signal(how)
    out, err = ended(process)
    assert (process.returncode, err) == (0, STOPPING)
    told = json.loads(out.splitlines()[-1])
    assert told["stopped"] is True
    assert told["warnings"] == [WARNING.format(how.name)]
    assert told["metrics"][0]["split"] == split
    assert WARNING.format(how.name) in (tmp_path / "R/report.html").read_text()
    again = warmstart(tmp_path, *words(verb))
    assert again.code == 0
    assert again.json["metrics"] == told["metrics"]
    assert warmstart(tmp_path, "evaluate", "R", "--split", "test", "--json").json["openings"] == 1


def test_twice_it_leaves_and_the_repeated_command_ends_what_was_begun(tmp_path: Path) -> None:
    kills.pictures(tmp_path / "data")
    process = start(tmp_path, *words("run"))
    wait_for(tmp_path / "R/metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    wait_for(tmp_path / "R/weights", process)
    process.send_signal(signal.SIGINT)
    out, err = ended(process)
    assert (process.returncode, out, err) == (130, "", STOPPING + LEFT)
    assert not (tmp_path / "R/report.html").exists()
    done = warmstart(tmp_path, *words("run"))
    assert done.code == 0, done.err
    assert done.json["stopped"] is True
    assert done.json["warnings"] == [WARNING.format("SIGINT")]
    assert len(json.loads((tmp_path / "R/manifest.json").read_text())["ledger"]) == 1
