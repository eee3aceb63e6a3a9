"""Nothing is lost: kill it anywhere, repeat the same command, and it ends in the same bytes."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import kills

from story.command import start, warmstart

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nursery() -> Iterator[kills.Nursery]:
    with kills.nursery() as place:
        yield place


@pytest.mark.parametrize("name", kills.COMMANDS)
def test_killed_and_repeated_it_ends_in_the_same_bytes(name: str, nursery: kills.Nursery, tmp_path: Path) -> None:
    data = kills.pictures(tmp_path / "data")
    expected, seconds = kills.undisturbed(nursery, name, data, tmp_path / "undisturbed")
    rng = random.Random(name)
    moments = [rng.uniform(part, part + 0.3) * seconds for part in (0.1, 0.4, 0.65)]  # early, in the middle, late
    life = kills.live(nursery, name, data, tmp_path / "killed", expected, moments)
    assert life.equal, life.differs
    assert life.moments, "nothing was killed"


def test_another_seed_ends_in_other_bytes(nursery: kills.Nursery, tmp_path: Path) -> None:
    """The comparison can fail."""
    data = kills.pictures(tmp_path / "data")
    expected, _ = kills.undisturbed(nursery, "full", data, tmp_path / "undisturbed")
    other = tmp_path / "other"
    other.mkdir()
    words = [*kills.COMMANDS["full"], *kills.COMMON, "optim.lr=1e-4", "--out", "R"]
    assert nursery.run([words[0], str(data), *words[1:]], other).code == 0
    found = kills.difference(expected, kills.result(other / "R"))
    assert "model.safetensors" in found
    assert "head.safetensors" in found
    assert "curve" in found


def test_a_command_from_the_shell_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    kills.pictures(tmp_path / "data")
    words = ("finetune", "data", "--strategy", "full", *kills.COMMON, "epochs=40", "--out", "R")
    process = start(tmp_path, *words)
    deadline = time.monotonic() + 60
    while not (tmp_path / "R/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    out, _ = process.communicate(timeout=60)
    assert out == ""
    assert process.returncode == -signal.SIGKILL
    looked_at = warmstart(tmp_path, "evaluate", "R")
    assert looked_at.err == (
        "RunError: run R has not finished (status running)\n  fix: repeat the command it is from\n"
    )
    finished = warmstart(tmp_path, *words)
    assert finished.code == 0, finished.err
    whole = tmp_path / "whole"
    whole.mkdir()
    assert warmstart(whole, *words[:1], "../data", *words[2:]).code == 0
    assert not kills.difference(kills.result(whole / "R"), kills.result(tmp_path / "R"))
