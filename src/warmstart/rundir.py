"""The run folder: manifest, stages, metrics.jsonl, lock, and the ledger of test openings.

```
RUN/  recipe.toml  manifest.json  metrics.jsonl  checkpoints/  weights/  report.html  report.json  README.md
```
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from warmstart import durable
from warmstart.errors import RunError, listed

FORMAT = 1
FLUSH_SECONDS = 1.0
Status = Literal["running", "done", "failed"]
_ANOTHER = "--out NEW, or --overwrite"


@dataclass(frozen=True)
class Opening:
    """One look at the test split."""

    when: str
    """UTC, ISO 8601."""
    weights_hash: str
    again: bool
    result: dict[str, object] | None = None


@dataclass(frozen=True)
class _Manifest:
    warmstart_run: int
    fingerprint: str
    status: Status
    created: str
    stages: dict[str, dict[str, object]] = field(default_factory=dict)
    files: dict[str, dict[str, object]] = field(default_factory=dict)
    ledger: list[dict[str, object]] = field(default_factory=list)


class RunDir:
    """One run's folder. `open` creates or resumes it and holds its lock; `load` looks at one without holding it."""

    def __init__(self, path: Path, manifest: _Manifest, lock: int | None) -> None:
        self.path = path
        self._manifest = manifest
        self._lock = lock

    @classmethod
    def open(cls, path: Path | str, *, recipe: str, fingerprint: str, overwrite: bool = False) -> Self:
        """Create the folder, or take up the run that is in it.

        Args:
            path: The folder.
            recipe: The resolved recipe as TOML, kept as `recipe.toml`.
            fingerprint: Identity of recipe and data; a folder with another one is another run.
            overwrite: Throw away the run that is there, whatever it is. A folder that holds no run is never touched.

        Raises:
            RunError: The folder belongs to another recipe, is in use, holds something else, or cannot be written.
        """
        folder = Path(path)
        _refuse_foreign(folder)
        lock = _acquire(folder)
        try:
            durable.sweep(folder)
            if overwrite:
                _clear(folder)
            manifest = _take_up(folder, recipe, fingerprint)
            run = cls(folder, manifest, lock)
            if manifest.status != "done":  # a finished run stays as it is
                run._save(replace(manifest, status="running"))
                durable.write_text(folder / "recipe.toml", recipe)
        except BaseException:
            _release(lock)
            raise
        return run

    @classmethod
    def load(cls, path: Path | str, *, finished: bool = True) -> Self:
        """Look at a run that `open` made, to evaluate, predict or report.

        Args:
            path: The folder.
            finished: Refuse a run that is not done.

        Raises:
            RunError: No such folder, no run in it, a damaged manifest, or a run that has not finished.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise RunError(f"no run at {folder}", _known_runs(folder))
        manifest = _read_manifest(folder)
        if finished and manifest.status != "done":
            raise RunError(f"run {folder} has not finished (status {manifest.status})", "repeat the command it is from")
        return cls(folder, manifest, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lock; the folder stays as it is."""
        if self._lock is not None:
            _release(self._lock)
            self._lock = None

    @property
    def status(self) -> Status:
        """How far the run is."""
        return self._manifest.status

    @property
    def fingerprint(self) -> str:
        """Identity of the recipe and the data."""
        return self._manifest.fingerprint

    def finish(self, status: Literal["done", "failed"]) -> None:
        """Record how the run ended."""
        with self._change() as manifest:
            self._save(replace(manifest, status=status))

    def give_up(self) -> None:
        """Record a failure, unless the run was done before.

        A run in which nothing was learned is removed, with its folder if nothing else is there.
        """
        if self.status == "done":
            return
        if any((self.path / kept).exists() for kept in ("checkpoints", "metrics.jsonl", "weights")):
            self.finish("failed")
            return
        durable.remove(self.path / "recipe.toml")
        durable.remove(self.path / "manifest.json")
        (self.path / ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def stage(self, name: str) -> dict[str, object] | None:
        """Return the result of a stage that an earlier command finished, else None."""
        entry = self._manifest.stages.get(name)
        return None if entry is None else dict(entry["result"])  # type: ignore[call-overload]

    def finish_stage(self, name: str, result: Mapping[str, object], *, seconds: float) -> None:
        """Record a stage as finished, so that a repeated command skips it.

        Args:
            name: The stage.
            result: JSON-ready; `stage` returns it.
            seconds: How long the stage took.
        """
        with self._change() as manifest:
            entry = {"status": "done", "seconds": seconds, "result": dict(result)}
            self._save(replace(manifest, stages={**manifest.stages, name: entry}))

    def stage_seconds(self) -> dict[str, float]:
        """Return how long each finished stage took."""
        return {name: float(str(entry["seconds"])) for name, entry in self._manifest.stages.items()}

    def add_file(self, relative: str) -> durable.Written:
        """Hash a file of the run and record it in the manifest.

        Raises:
            RunError: The file is not inside the folder.
        """
        path = (self.path / relative).resolve()
        if not path.is_file() or not path.is_relative_to(self.path.resolve()):
            raise RunError(f"{relative!r} is no file of run {self.path}", "name a file inside the run folder")
        written = durable.Written(durable.sha256(path), path.stat().st_size)
        with self._change() as manifest:
            entry = {"sha256": written.sha256, "bytes": written.num_bytes}
            self._save(replace(manifest, files={**manifest.files, relative: entry}))
        return written

    def verify(self) -> tuple[str, ...]:
        """Hash every recorded file again and return those that are missing or changed."""
        return tuple(
            name
            for name, entry in self._manifest.files.items()
            if not (self.path / name).is_file() or durable.sha256(self.path / name) != entry["sha256"]
        )

    def journal(self, stage: str) -> Journal:
        """Return the part of `metrics.jsonl` that belongs to one stage."""
        return Journal(self.path / "metrics.jsonl", stage)

    def openings(self) -> tuple[Opening, ...]:
        """Return every look at the test split so far, oldest first."""
        return tuple(Opening(**entry) for entry in self._manifest.ledger)  # type: ignore[arg-type]

    def open_test(self, weights_hash: str, *, again: bool = False) -> int:
        """Record that the test split is about to be seen, before it is.

        The same weights may be tested as often as one likes: nothing is chosen by it, and nothing is added.

        Args:
            weights_hash: Identity of the weights.
            again: Allow weights other than those of the first opening.

        Returns:
            How many openings the ledger holds; the report prints it.

        Raises:
            RunError: Test was opened with other weights before.
        """
        with self._change() as manifest:
            past = self.openings()
            if any(opening.weights_hash == weights_hash for opening in past):
                return len(past)
            if past and not again:
                raise RunError(
                    f"test of {self.path} was opened {len(past)}x with other weights (first {past[0].when}, "
                    f"{past[0].weights_hash[:12]}; now {weights_hash[:12]})",
                    "--again, and the report will print the count",
                )
            opening = asdict(Opening(_now(), weights_hash, again))
            self._save(replace(manifest, ledger=[*manifest.ledger, opening]))
            return len(past) + 1

    def record_test(self, weights_hash: str, result: Mapping[str, object]) -> None:
        """Put the result of an opening into the ledger.

        Raises:
            RunError: These weights never opened the test split.
        """
        with self._change() as manifest:
            if not any(entry["weights_hash"] == weights_hash for entry in manifest.ledger):
                raise RunError(f"test of {self.path} was never opened with {weights_hash[:12]}", "open it first")
            ledger = [
                {**entry, "result": dict(result)} if entry["weights_hash"] == weights_hash else entry
                for entry in manifest.ledger
            ]
            self._save(replace(manifest, ledger=ledger))

    @contextlib.contextmanager
    def _change(self) -> Iterator[_Manifest]:
        """Yield the manifest under the lock; a run that was only looked at takes the lock and reads afresh."""
        if self._lock is not None:
            yield self._manifest
            return
        lock = _acquire(self.path)
        try:
            self._manifest = _read_manifest(self.path)
            yield self._manifest
        finally:
            _release(lock)

    def _save(self, manifest: _Manifest) -> None:
        durable.write_json(self.path / "manifest.json", asdict(manifest))
        self._manifest = manifest


class Journal:
    """Lines of `metrics.jsonl` that belong to one stage.

    Lines reach the disk about once a second and with `flush`: a flush takes milliseconds, a training step may take
    less. Who saves a checkpoint flushes first, so that the lines up to it are there; the later ones are made again.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage
        self._waiting: list[str] = []
        self._flushed = time.monotonic()

    def append(self, step: int, values: Mapping[str, float | int | str | None]) -> None:
        """Add one line. Numbers that are not finite become null, which every JSON reader takes."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._waiting.append(json.dumps({"stage": self.stage, "step": step, **finite}))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put every waiting line on the disk.

        Raises:
            RunError: The file system refused.
        """
        if self._waiting:
            durable.append(self.path, self._waiting)
        self._waiting, self._flushed = [], time.monotonic()

    def drop_after(self, step: int) -> None:
        """Forget this stage's lines beyond a step: what a resumed fit is about to write again."""
        self.flush()
        lines = _lines(self.path)
        kept = [line for line in lines if line.get("stage") != self.stage or int(str(line["step"])) <= step]
        if len(kept) < len(lines):
            durable.write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def read(self) -> list[dict[str, object]]:
        """Return this stage's lines on disk; a torn last line is left out."""
        return [line for line in _lines(self.path) if line.get("stage") == self.stage]


def _lines(path: Path) -> list[dict[str, object]]:
    if not path.is_file():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    found = []
    for text in whole.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(text))
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_manifest(folder: Path) -> _Manifest:
    path = folder / "manifest.json"
    if not path.is_file():
        raise RunError(f"{folder} holds no run (no manifest.json)", _known_runs(folder))
    facts = durable.read_json(path, fix="--out NEW for a fresh run; what is in the folder stays")
    if facts.get("warmstart_run") != FORMAT or not set(facts) <= set(_Manifest.__dataclass_fields__):
        raise RunError(f"{path} is not a manifest of this version of warmstart", "--out NEW for a fresh run")
    return _Manifest(**facts)  # type: ignore[arg-type]


def _known_runs(folder: Path) -> str:
    found = sorted(str(path.parent) for path in folder.parent.glob("*/manifest.json"))
    return f"name a run folder: {listed(found, shown=5)}" if found else "name the folder that `warmstart run` printed"


def _refuse_foreign(folder: Path) -> None:
    """Refuse a file, or a folder with anything in it but a run, before anything is written there."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, expected a run folder", "--out NEW")
    if folder.is_dir() and not (folder / "manifest.json").exists():
        others = sorted(p.name for p in folder.iterdir() if p.name != ".lock" and not p.name.endswith(".tmp"))
        if others:
            raise RunError(f"{folder} is not empty and holds no run ({listed(others, shown=3)})", "--out NEW")


def _take_up(folder: Path, recipe: str, fingerprint: str) -> _Manifest:
    if not (folder / "manifest.json").exists():
        return _Manifest(FORMAT, fingerprint, "running", _now())
    manifest = _read_manifest(folder)
    if manifest.fingerprint != fingerprint:
        raise RunError(f"{folder} belongs to another recipe ({_difference(folder, recipe)})", _ANOTHER)
    return manifest


def _difference(folder: Path, recipe: str) -> str:
    """Name the keys in which two recipes differ, beside what a finished run decided, or say that the data does."""
    try:
        lines = (folder / "recipe.toml").read_text("utf-8").splitlines()
        old = _flat(tomllib.loads("\n".join(line for line in lines if "  # decided: " not in line)))
        new = _flat(tomllib.loads(recipe))
    except (OSError, ValueError):
        return "its recipe.toml cannot be read"
    keys = [key for key in (*old, *(k for k in new if k not in old)) if old.get(key) != new.get(key)]
    shown = [f"{key}: there {old.get(key, 'not set')}, here {new.get(key, 'not set')}" for key in keys]
    return listed(shown, shown=3) if shown else "equal keys, other data"


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _clear(folder: Path) -> None:
    """Remove the run that is there, its manifest last, so that a kill in between leaves a folder that is still one."""
    if not (folder / "manifest.json").exists():
        return
    _read_manifest(folder)
    for path in folder.iterdir():
        if path.name in (".lock", "manifest.json"):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    durable.remove(folder / "manifest.json")


def _acquire(folder: Path) -> int:
    """Lock the folder for this process. The system drops the lock when the process dies, kill -9 included."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(
            f"cannot write to {folder}: {error.strerror}", "--out NEW, in a place you may write to"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise RunError(f"{folder} is in use by process {owner}", "wait for it, or --out NEW") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _release(descriptor: int) -> None:
    os.close(descriptor)
