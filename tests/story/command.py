"""The command line as a user meets it: a process of its own, a folder of its own, a cache of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SECONDS = 120.0


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The last line of standard output."""
        return json.loads(self.out.splitlines()[-1])


def environment(cwd: Path) -> dict[str, str]:
    """What a command sees: the cache and the shelf in its own folder."""
    places = {"WARMSTART_CACHE": str(cwd / ".cache"), "WARMSTART_SHELF": str(cwd / ".shelf")}
    return {**os.environ, **places, "OMP_NUM_THREADS": "1"}


def start(cwd: Path, *words: str | Path) -> subprocess.Popen[str]:
    """Start `warmstart WORDS` in a folder."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("warmstart")), *map(str, words)],
        cwd=cwd, env=environment(cwd), text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def warmstart(cwd: Path, *words: str | Path) -> Done:
    """Run `warmstart WORDS` in a folder to its end."""
    process = start(cwd, *words)
    out, err = process.communicate(timeout=SECONDS)
    return Done(process.returncode, out, err)


def refused(done: Done, problem: str, fix: str, *, code: int = 1) -> None:
    """Assert that a command ended with the two lines of an error, and with nothing else."""
    assert done.code == code, done.err + done.out
    assert "Traceback" not in done.err
    assert done.out == ""
    lines = done.err.rstrip("\n").split("\n")
    assert len(lines) == 2, done.err
    assert lines[0] == problem
    assert lines[1] == f"  fix: {fix}"
