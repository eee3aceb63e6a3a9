"""What every benchmark shares: interleaved runs, ratios with their range, facts of the machine, one JSON file each.

A benchmark compares variants that run one after the other in each of n rounds, in an order that turns, so that a busy
minute of the machine hits all of them. Ratios are taken within a round; their median and range are reported.
Results are measurements and never pass or fail a test.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from warmstart import runtime

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = Path(os.environ.get("WARMSTART_ASSETS") or ROOT / ".assets") / "benchmarks"
sys.path.insert(0, str(ROOT / "tests"))  # the loaders of real data and the textbook listings live with the tests


@dataclass(frozen=True)
class Measured:
    """One run of one variant."""

    seconds: float
    """Wall time of the whole process, interpreter start included."""
    peak_bytes: int = 0
    """Largest resident size of the process, or of a child it waited for; as the system counts it."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the process itself reported as JSON on its last line, such as `inner_seconds` and `accuracy`."""
    cpu_seconds: float = 0.0
    """Processor time of the process and of the children it waited for: what is left when the machine is shared."""


@dataclass(frozen=True)
class Ratio:
    """How many times longer `slow` took than `fast`, round by round."""

    slow: str
    fast: str
    what: str
    median: float
    low: float
    high: float
    n: int


Variant = Callable[[int], Measured]
"""Runs once; the argument is the number of the round, from 0."""


def interleave(
    variants: Mapping[str, Variant], n: int, *, log: Callable[[str], None] = print
) -> dict[str, list[Measured]]:
    """Run every variant once per round, starting each round with another one, unless order is part of the meaning.

    Variants whose name starts with `then_` follow the one before them in every round (a warm run after its cold run).
    """
    measured: dict[str, list[Measured]] = {name: [] for name in variants}
    blocks = _blocks(list(variants))
    for round_ in range(n):
        turned = blocks[round_ % len(blocks) :] + blocks[: round_ % len(blocks)]
        for name in (name for block in turned for name in block):
            measured[name].append(variants[name](round_))
            log(f"round {round_ + 1}/{n}  {name:<24} {measured[name][-1].seconds:8.2f} s")
    return measured


def _blocks(names: Sequence[str]) -> list[list[str]]:
    blocks: list[list[str]] = []
    for name in names:
        if name.startswith("then_") and blocks:
            blocks[-1].append(name)
        else:
            blocks.append([name])
    return blocks


def ratio(measured: Mapping[str, Sequence[Measured]], slow: str, fast: str, *, what: str = "seconds") -> Ratio:
    """Compare two variants within each round.

    Args:
        measured: What `interleave` returned.
        slow: Name of the variant above the line.
        fast: Name of the variant below the line.
        what: `seconds`, `peak_bytes`, or a number among the facts; `a/b` takes a from `slow` and b from `fast`.
    """
    above, _, below = what.partition("/")
    pairs = zip(measured[slow], measured[fast], strict=True)
    ratios = [value(a, above) / value(b, below or above) for a, b in pairs]
    return Ratio(slow, fast, what, statistics.median(ratios), min(ratios), max(ratios), len(ratios))


def value(run: Measured, what: str) -> float:
    """Return one number of a run: a field, else a fact."""
    found = getattr(run, what) if what in {"seconds", "peak_bytes", "cpu_seconds"} else run.facts[what]
    assert isinstance(found, int | float), f"{what} is {found!r}, not a number"
    return float(found)


def run(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Measured:
    """Run a command to its end and measure it; its last line of output may be a JSON object of facts.

    Raises:
        RuntimeError: The command failed; its errors are in the message.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        words = [str(part) for part in command]
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**os.environ, **(env or {})}
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            said = f"{out.read()[-2000:]}\n{err.read()[-4000:]}"
            raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}:\n{said}")
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Measured(seconds, peak, _last_json(out.read()), usage.ru_utime + usage.ru_stime)


def _last_json(text: str) -> dict[str, object]:
    lines = text.strip().splitlines()
    try:
        facts = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        return {}
    return facts if isinstance(facts, dict) else {}


def machine() -> dict[str, object]:
    """Describe what the numbers were measured on, without the name of any machine or person."""
    return {
        "processor": _processor(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def write(
    name: str,
    measured: Mapping[str, Sequence[Measured]],
    ratios: Sequence[Ratio],
    *,
    parameters: Mapping[str, object],
    seeds: Sequence[int],
    recipe: Path | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Write the results of a benchmark as JSON and return the file.

    Args:
        name: Name of the benchmark and of the file.
        measured: Every run of every variant.
        ratios: The comparisons that are reported.
        parameters: Sizes and settings.
        seeds: Every seed that was used.
        recipe: The resolved recipe of one of the runs; its hash is recorded.
        folder: Where the file goes.
    """
    content = {
        "benchmark": name,
        "finished": time.strftime("%Y-%m-%d", time.gmtime()),
        "parameters": dict(parameters),
        "seeds": list(seeds),
        "recipe_hash": runtime.digest(recipe.read_bytes()) if recipe else None,
        "machine": machine(),
        "environment": runtime.environment(),
        "ratios": [asdict(ratio) for ratio in ratios],
        "runs": {variant: [asdict(run) for run in runs] for variant, runs in measured.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def show(ratios: Sequence[Ratio]) -> None:
    """Print ratios, one a line."""
    for one in ratios:
        spread = f"{one.low:.2f} to {one.high:.2f}, n = {one.n}"
        print(f"{one.slow} / {one.fast}  ({one.what}): {one.median:.2f} ({spread})")
