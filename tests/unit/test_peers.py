"""The comparison with peers: nobody sees test labels, time is kept, memory is counted, and the counting is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from benchmarks.peers import cells, data, install, judged
from benchmarks.peers.cells import Cell, Outcome, Program

NAMES = ("cat", "dog")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make pictures of noise stand for a data set, and keep everything in a temporary folder."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (8, 8), dtype=np.uint8) for _ in range(60)]
    labels = [NAMES[row % 2] for row in range(60)]
    train, test = (pictures[:20], labels[:20]), ([*pictures[20:], pictures[0]], [*labels[20:], labels[0]])
    monkeypatch.setattr(data, "LOADERS", {"noise": lambda: (train, test)})
    monkeypatch.setattr(data.common, "SCRATCH", tmp_path / "scratch" / "benchmarks")
    monkeypatch.setattr(cells, "CELLS", tmp_path / "cells")
    monkeypatch.setattr(install, "VENVS", tmp_path / "venvs")
    monkeypatch.setattr(data, "weights", lambda: tmp_path / "model.safetensors")
    return tmp_path


def test_a_peer_sees_no_test_labels_and_no_test_picture_is_in_train(scratch: Path) -> None:
    given = data.prepare("noise")
    assert given.num_train == 20
    assert len(given.truth) == 40  # the copy of a training picture is left out
    assert sorted(path.name for path in (given.blind / "test").iterdir()) == sorted(given.truth)
    classes = [given.truth[name] for name in sorted(given.truth)]
    changes = sum(a != b for a, b in pairwise(classes))
    assert 5 < changes < 35  # neither sorted by class nor in turn
    assert not list(given.blind.rglob("*.json"))
    labelled = {path.name: path.parent.name for path in (given.labelled / "test").glob("*/*")}
    assert labelled == dict(given.truth)
    assert data.prepare("noise").truth == given.truth


def _peer(scratch: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Let a script of our own be the only peer, in an environment that is this one."""
    (scratch / "peer.py").write_text(source)
    (scratch / "venvs" / "own" / "bin").mkdir(parents=True)
    (scratch / "venvs" / "own" / "bin" / "python").symlink_to(sys.executable)
    (scratch / "venvs" / "own" / "installed.json").write_text("{}")
    monkeypatch.setattr(cells, "PROGRAMS", {"own": Program("own", "own", "peer.py")})
    monkeypatch.setattr(cells, "HERE", scratch)
    monkeypatch.setattr(install, "versions", lambda name: {name: "1"})


ANSWER = """
import json, pathlib, sys, time
block = b"x" * 150_000_000
time.sleep(0.8)
names = sorted(path.name for path in (pathlib.Path(sys.argv[1]) / "test").iterdir())
told = {"predictions": {name: "cat" for name in names}, "facts": {"epochs": 2}}
pathlib.Path(sys.argv[3]).write_text(json.dumps(told))
"""


def test_a_peer_is_measured_and_kept(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _peer(scratch, monkeypatch, ANSWER)
    monkeypatch.setattr(cells, "LOOK_SECONDS", 0.05)
    cell = Cell("noise", 60.0, "own", seed=3)
    assert cells.kept(cell) is None
    outcome = cells.run(cell)
    assert outcome.status == "done", outcome.why
    assert 0.8 < outcome.seconds < 30
    assert outcome.peak_bytes > 150_000_000
    assert outcome.facts == {"epochs": 2}
    assert str(scratch) not in outcome.command
    assert cells.kept(cell) == outcome
    share = judged.accuracy(outcome, None)
    cats = list(data.prepare("noise").truth.values()).count("cat")
    assert (share.value, share.n) == (cats / 40, 40)


def test_a_peer_that_takes_too_long_is_ended_with_its_children(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = f"[{sys.executable!r}, '-c', 'import time; time.sleep(90)']"
    source = f"import pathlib, subprocess, time\np = subprocess.Popen({child})\n"
    source += f"pathlib.Path({str(scratch / 'pid')!r}).write_text(str(p.pid))\ntime.sleep(20)\n"
    _peer(scratch, monkeypatch, source)
    outcome = cells.run(Cell("noise", 2.0, "own", seed=0))
    assert outcome.status == "did not finish"
    assert 2.0 * cells.GRACE <= outcome.seconds < 20
    assert _gone(int((scratch / "pid").read_text()))
    assert cells.kept(Cell("noise", 2.0, "own", seed=0)) == outcome


def _gone(pid: int) -> bool:
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], check=False, capture_output=True, text=True)
        if not state.stdout.strip() or state.stdout.startswith("Z"):
            return True
        time.sleep(0.05)
    return False


def test_a_peer_that_fails_says_why_and_is_tried_again(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _peer(scratch, monkeypatch, "raise SystemExit('no weights')")
    cell = Cell("noise", 30.0, "own", seed=0)
    outcome = cells.run(cell)
    assert (outcome.status, outcome.why.strip()) == ("failed", "no weights")
    assert cells.kept(cell) is None
    (scratch / "venvs" / "own" / "installed.json").unlink()
    assert cells.run(cell).why == "not installed: python -m benchmarks.peers.install own"


def test_threads_are_left_to_the_programs(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    source = ANSWER.replace('{"epochs": 2}', 'dict(__import__("os").environ)')
    _peer(scratch, monkeypatch, source)
    facts = cells.run(Cell("noise", 60.0, "own", seed=0)).facts
    assert "OMP_NUM_THREADS" not in facts
    assert facts["HF_HUB_OFFLINE"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "1"


def _outcome(program: str, right: np.ndarray, truth: dict[str, str], seed: int = 0) -> Outcome:
    said = {
        name: label if hit else NAMES[label == NAMES[0]]
        for (name, label), hit in zip(truth.items(), right.tolist(), strict=True)
    }
    return Outcome("noise", 120.0, program, seed, "done", predictions=said)


def test_ahead_and_behind_go_by_mcnemar(scratch: Path) -> None:
    from scipy.stats import binomtest

    truth = dict(data.prepare("noise").truth)
    rows = np.arange(40)
    found = [
        _outcome("warmstart", rows < 30, truth),
        _outcome("sklearn", rows < 15, truth),  # 15 : 0
        _outcome("fastai", (rows < 28) | (rows == 39), truth),  # 2 : 1
        _outcome("keras", rows >= 0, truth),  # 0 : 10
        replace(_outcome("autogluon", rows < 0, truth), status="did not finish", why="ended after 138 s"),
    ]
    beside = {one.peer: one for one in judged.compared(found, None)}
    assert {name: one.verdict for name, one in beside.items()} == {
        "sklearn": "ahead",
        "fastai": "tie",
        "keras": "behind",
        "autogluon": None,
    }
    assert beside["sklearn"].p_value == binomtest(15, 15).pvalue
    assert beside["fastai"].p_value == binomtest(2, 3).pvalue
    assert beside["fastai"].difference == pytest.approx(1 / 40)
    told = judged.summed(list(beside.values()))
    assert (told["cells"], told["ahead"], told["significantly_ahead"]) == (3, 2, 1)
    assert told["significantly_behind"] == ["noise, 2 min, keras"]
    assert told["peer_did_not_finish"] == 1


def test_seeds_are_compared_by_their_means(scratch: Path) -> None:
    truth, rows = dict(data.prepare("noise").truth), np.arange(40)
    found = [_outcome("warmstart", rows < 30 + seed, truth, seed) for seed in (0, 1, 2)]
    found += [_outcome("sklearn", rows < 20, truth, seed) for seed in (0, 1)]
    (one,) = judged.compared(found, None)
    assert one.seeds == 2
    assert one.difference == pytest.approx(10.5 / 40)


def test_results_name_no_folder_of_this_machine(scratch: Path) -> None:
    truth, rows = dict(data.prepare("noise", limit=40).truth), np.arange(40)
    cells.CELLS.mkdir()
    for program, right in (("warmstart", rows < 30), ("sklearn", rows < 20)):
        outcome = _outcome(program, right, truth)
        cell = Cell("noise", 120.0, program, 0, limit=40)
        cell.path.write_text(json.dumps(outcome.__dict__))
    path, words = judged.write(40)
    text = path.read_text()
    assert str(scratch) not in text
    content = json.loads(text)
    assert content["summary"]["warmstart"]["ahead"] == 1
    assert content["cells"][0]["accuracy"]["n"] == 40
    assert words == (
        "warmstart: ahead in 1 of 1 cells, significantly in 1, significantly behind in 0; 0 without an answer in time"
    )
