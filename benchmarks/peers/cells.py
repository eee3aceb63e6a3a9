"""One cell of the benchmark: a program, a data set, minutes and a seed; it is run in its own process and measured."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from benchmarks import common
from benchmarks.peers import data, install

Status = Literal["done", "did not finish", "failed", "could not"]
CELLS = common.SCRATCH / "peers" / "cells"
HERE = Path(__file__).resolve().parent
GRACE = 1.15
"""A program that takes more than this many times its budget is ended."""
LOOK_SECONDS = 0.5
"""Between two looks at the memory."""
FINAL = ("done", "did not finish")
OWN_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Program:
    """Something that is given data and minutes."""

    name: str
    venv: str = ""
    """Of `install.NEEDS`; without it, it is warmstart itself."""
    script: str = ""
    variant: str = ""
    words: tuple[str, ...] = ()
    """Own words of the command of warmstart."""
    backbone: str = "EfficientNet-Lite0"
    usual: bool = True
    """Runs unless others are named, and counts in the summary."""

    @property
    def ours(self) -> bool:
        """Say whether it is warmstart."""
        return not self.venv


PROGRAMS = {
    program.name: program
    for program in (
        Program("warmstart", words=("--backbone", "package/efficientnet_lite0")),
        Program("warmstart-free", backbone="its own choice"),
        Program("textbook-head", "textbook", "peer_textbook.py", "head"),
        Program("textbook-full", "textbook", "peer_textbook.py", "full"),
        Program("sklearn", "sklearn", "peer_sklearn.py"),
        Program("fastai", "fastai", "peer_fastai.py"),
        Program("transformers", "transformers", "peer_transformers.py", "1e-3"),
        Program("transformers-guide", "transformers", "peer_transformers.py", "5e-5", usual=False),
        Program("keras", "keras", "peer_keras.py"),
        Program("autogluon", "autogluon", "peer_autogluon.py"),
        Program("autogluon-1e-3", "autogluon", "peer_autogluon.py", "1e-3", usual=False),
    )
}


@dataclass(frozen=True)
class Cell:
    """What is run."""

    data: str
    seconds: float
    program: str
    seed: int
    limit: int | None = None

    @property
    def path(self) -> Path:
        """Where its outcome stays."""
        limit = f"-{self.limit}" if self.limit else ""
        return CELLS / f"{self.data}{limit}-{self.seconds:g}s-{self.program}-{self.seed}.json"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell."""

    data: str
    seconds_given: float
    program: str
    seed: int
    status: Status
    why: str = ""
    """Where it did not end well."""
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Wall time of the whole process."""
    peak_bytes: int = 0
    """Largest sum of proportional set sizes of the process and its children."""
    load: float = 0.0
    """Of the machine before the start."""
    predictions: Mapping[str, str] = field(default_factory=dict)
    """Test file to class."""
    facts: Mapping[str, object] = field(default_factory=dict)


def run(cell: Cell) -> Outcome:
    """Run a cell and keep its outcome."""
    program, given = PROGRAMS[cell.program], data.prepare(cell.data, limit=cell.limit)
    missing = "" if program.ours else install.missing(program.venv)
    outcome = Outcome(cell.data, cell.seconds, cell.program, cell.seed, "could not", missing)
    if not missing:
        with tempfile.TemporaryDirectory() as work:
            outcome = _measured(cell, program, given, Path(work), outcome)
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    partial = cell.path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(outcome), indent=1) + "\n")
    partial.rename(cell.path)
    return outcome


def kept(cell: Cell) -> Outcome | None:
    """Return the outcome of a cell that need not be run again."""
    if not cell.path.exists():
        return None
    outcome = Outcome(**json.loads(cell.path.read_text()))
    return outcome if outcome.status in FINAL else None


def _measured(cell: Cell, program: Program, given: data.Prepared, work: Path, outcome: Outcome) -> Outcome:
    out = work / ("run" if program.ours else "answer.json")
    words = (_command if program.ours else _script)(cell, program, given, out)
    load = os.getloadavg()[0]
    seconds, peak, code, told = _process(words, _environment(program, work), GRACE * cell.seconds, work)
    outcome = replace(
        outcome,
        command=shlex.join(_shown(word) for word in words),
        versions=_versions(program),
        seconds=round(seconds, 2),
        peak_bytes=peak,
        load=round(load, 2),
    )
    if code is None:
        return replace(outcome, status="did not finish", why=f"{told[-1_000:]}\nended after {seconds:.0f} s")
    if code:
        return replace(outcome, status="failed", why=told[-3_000:])
    predictions, facts = (_ours if program.ours else _theirs)(out)
    assert set(predictions) == set(given.truth), f"{len(predictions)} predictions for {len(given.truth)} pictures"
    return replace(outcome, status="done", predictions=predictions, facts=facts)


def _command(cell: Cell, program: Program, given: data.Prepared, out: Path) -> list[str]:
    words = ["run", str(given.labelled), *program.words, "--budget", f"{cell.seconds:g}s", "--seed", str(cell.seed)]
    return [str(install.own("warmstart")), *words, "--out", str(out), "--quiet"]


def _script(cell: Cell, program: Program, given: data.Prepared, out: Path) -> list[str]:
    variant = ["--variant", program.variant] if program.variant else []
    words = [str(given.blind), f"{cell.seconds:g}", str(out), "--weights", str(data.weights()), *variant]
    python = install.VENVS / program.venv / "bin" / "python"
    return [
        str(python),
        str(HERE / program.script),
        *words,
        "--seed",
        str(cell.seed),
        "--started",
        f"{time.time():.2f}",
    ]


def _environment(program: Program, work: Path) -> dict[str, str]:
    """Return the environment: threads by default, empty caches, no network."""
    kept = {name: value for name, value in os.environ.items() if name not in OWN_THREADS and name != "VIRTUAL_ENV"}
    own = {"WARMSTART_CACHE": str(work / "cache"), "WARMSTART_SHELF": str(work / "shelf")}
    own["WARMSTART_PACKAGES"] = str(common.SCRATCH.parent / "pip")
    peer = {"FASTAI_HOME": str(work / "fastai"), "TF_CPP_MIN_LOG_LEVEL": "2", "TMPDIR": str(work)}
    return {**kept, **OFFLINE, **(own if program.ours else peer)}


def _process(
    words: Sequence[str], env: Mapping[str, str], limit: float, work: Path
) -> tuple[float, int, int | None, str]:
    """Run a command in a session of its own; return seconds, peak memory, exit code (None: ended) and its output."""
    log = work / "log.txt"
    with log.open("w") as out:
        start = time.perf_counter()
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(env), cwd=work, start_new_session=True
        )
        with _watched(process.pid) as peak:
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            seconds = time.perf_counter() - start
        for pid in _members(process.pid):  # what is left of the session
            os.kill(pid, signal.SIGKILL)
        process.wait()
    return seconds, peak[0], code, log.read_text(errors="replace")


@contextmanager
def _watched(session: int) -> Iterator[list[int]]:
    """Watch the memory of all processes of a session; the peak is in the list."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            peak[0] = max(peak[0], sum(_memory(pid) for pid in _members(session)))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def _members(session: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def _memory(pid: int) -> int:
    """Return the proportional set size: pages that processes share are counted once."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _ours(out: Path) -> tuple[dict[str, str], dict[str, object]]:
    """Read the predictions on test that a run left behind."""
    from warmstart import predicted

    told = predicted.load(out, "test")
    names = list(told.task.to_json()["class_names"])
    labels = told.predictions.values.argmax(axis=1).tolist()
    answer = json.loads((out / "report.json").read_text())["answer"]
    facts = {name: answer[name] for name in ("backbone", "strategy", "input_size", "verdict", "stopped")}
    return {Path(id_).name: names[label] for id_, label in zip(told.ids, labels, strict=True)}, facts


def _theirs(out: Path) -> tuple[dict[str, str], dict[str, object]]:
    told = json.loads(out.read_text())
    return told["predictions"], told["facts"]


def _versions(program: Program) -> dict[str, str]:
    if program.ours:
        from warmstart import runtime

        known = runtime.environment()
        return {name: str(known[name]) for name in ("warmstart", "torch", "timm", "python")}
    return install.versions(program.venv)


def _shown(word: str) -> str:
    """Write paths as anybody would: without the folders of this machine."""
    path = Path(word)
    if not path.is_absolute():
        return word
    for base in (install.VENVS, common.SCRATCH, common.ROOT):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return path.name
