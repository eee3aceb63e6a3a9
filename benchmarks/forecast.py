"""Forecast against actual: seconds and peak memory of strategies on backbones, each cell in a process of its own.

The forecasts of all cells come from one process, as `warmstart plan` makes them; its seconds are reported. Then every
cell is fine-tuned for two epochs in a fresh process that has the engines which the plan left behind, and its wall time
(load, features, head, epochs) and the largest resident size are set beside the forecast. With `--capped` each cell
also runs under a cap on its memory, in the micro-batch that the plan chose for it, and must not run out.

    python benchmarks/forecast.py             # 48 cells; a run that was interrupted goes on where it was
    python benchmarks/forecast.py --capped    # 12 cells more
    python benchmarks/forecast.py --cells 4   # only the next four
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import common

BACKBONES = {
    "package/efficientnet_lite0": 96,
    "package/efficientnet_lite1": 96,
    "package/mobilenet_v2": 96,
    "package/squeezenet": 96,
    "package/resnet50_augnet": 96,
    "package/vit_small_dinov2_saliency": 98,
}
STRATEGIES = ("probe", "last_k", "full", "l2_sp")
BATCHES = (16, 32)
CAPPED_SHARE = 0.55
"""A capped cell may hold the resident size and this share of what the plan forecasts on top of it."""
PICTURES, EPOCHS = 640, 2
TIME, MEMORY = 0.20, 0.10
SHELF = common.SCRATCH / "forecast"
RESULT = common.RESULTS / "forecast.json"


def main() -> None:
    """Measure what is missing, and write the results."""
    options = _options()
    if options.inner:
        print(json.dumps(INNER[options.inner](json.loads(options.given))))
        return
    if options.again and RESULT.exists():
        RESULT.unlink()
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {"cells": {}}
    if "plan" not in known:
        shutil.rmtree(SHELF / "cache", ignore_errors=True)
        known["plan"] = _inner("plan", {}, SHELF / "cache")
        _write(known)
        print(f"the table of {len(known['plan']['cells'])} cells took {known['plan']['seconds']:.1f} s")
    wanted = [name for name in _names(capped=options.capped) if name not in known["cells"] and options.match in name]
    for name in wanted[: options.cells]:
        known["cells"][name] = _cell(name, known["plan"])
        _write(known)
        print(_line(name, known["cells"][name]), flush=True)
    _summarise(known)


def _cell(name: str, plan: dict) -> dict[str, object]:
    backbone, strategy, batch, *capped = name.split()
    told = plan["cells"][f"{backbone} {strategy} {batch}"]
    given = {"backbone": backbone, "strategy": strategy, "batch": int(batch), "capped": bool(capped)}
    given |= {"resident": told["resident_bytes"], "peak": told["peak_bytes"]}
    with tempfile.TemporaryDirectory() as cache:
        shutil.copytree(SHELF / "cache" / "engines", Path(cache) / "engines")
        load = os.getloadavg()[0]
        actual = _inner("cell", given, Path(cache))
    forecast = actual.pop("forecast", None) or told
    errors = {
        "time_error": forecast["seconds"] / actual["seconds"] - 1,
        "memory_error": forecast["peak_bytes"] / actual["peak_bytes"] - 1,
    }
    return {"forecast": forecast, "actual": actual, "load": round(load, 2), **errors}


def _names(*, capped: bool) -> Iterator[str]:
    for backbone in BACKBONES:
        for strategy in STRATEGIES:
            for batch in BATCHES:
                yield f"{backbone} {strategy} {batch}"
    if capped:
        for backbone in BACKBONES:
            yield from (f"{backbone} {strategy} 32 capped" for strategy in ("full", "l2_sp"))


def _summarise(known: dict) -> None:
    cells = [cell for name, cell in known["cells"].items() if not name.endswith("capped")]
    capped = [cell for name, cell in known["cells"].items() if name.endswith("capped")]
    if not cells:
        return
    known["summary"] = {
        "n": len(cells),
        "time_within_20_percent": statistics.mean(abs(cell["time_error"]) <= TIME for cell in cells),
        "memory_within_10_percent": statistics.mean(abs(cell["memory_error"]) <= MEMORY for cell in cells),
        "median_time_error": statistics.median(cell["time_error"] for cell in cells),
        "median_memory_error": statistics.median(cell["memory_error"] for cell in cells),
        "table_seconds": known["plan"]["seconds"],
        "capped": len(capped),
        "capped_out_of_memory": sum(cell["actual"]["ran_out"] for cell in capped),
        "largest_load": max(cell["load"] for cell in cells),
    }
    _write(known)
    print(json.dumps(known["summary"], indent=1))
    print(RESULT)


def _write(known: dict) -> None:
    from warmstart import runtime

    known |= {"benchmark": "forecast", "finished": time.strftime("%Y-%m-%d", time.gmtime())}
    known |= {"parameters": {"pictures": PICTURES, "epochs": EPOCHS, "batches": BATCHES, "sizes": BACKBONES}}
    known |= {"machine": common.machine(), "environment": runtime.environment(), "seeds": [0]}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(known, indent=1) + "\n")


def _line(name: str, cell: dict) -> str:
    forecast, actual = cell["forecast"], cell["actual"]
    seconds = f"{forecast['seconds']:6.1f} s for {actual['seconds']:6.1f} ({cell['time_error']:+.0%})"
    memory = f"{forecast['peak_bytes'] / 2**20:6.0f} MiB for {actual['peak_bytes'] / 2**20:6.0f}"
    ran_out = "  RAN OUT OF MEMORY" if actual["ran_out"] else ""
    return f"{name:52} {seconds}  {memory} ({cell['memory_error']:+.0%}){ran_out}"


def _inner(what: str, given: dict, cache: Path) -> dict:
    """Run a part in a fresh process."""
    command = [sys.executable, __file__, "--inner", what, "--given", json.dumps(given)]
    packages = os.pathsep.join((str(common.SCRATCH.parent / "pip"), os.environ.get("WARMSTART_PACKAGES", "")))
    done = common.run(command, env={"WARMSTART_CACHE": str(cache), "WARMSTART_PACKAGES": packages})
    return dict(done.facts)


def _data() -> Path:
    """Return a folder of the first pictures of CIFAR-10."""
    import assets

    folder = SHELF / f"cifar10-{PICTURES}"
    if not folder.exists():
        work = folder.with_suffix(".partial")
        shutil.rmtree(work, ignore_errors=True)
        assets.cifar10_folder(work, PICTURES).rename(folder)
    return folder


# What follows runs alone in its own process.


def _plan(_: dict) -> dict[str, object]:
    """Forecast every cell, as `warmstart plan` does."""
    from warmstart import forecast, planning, prepare, resources, workflow
    from warmstart.config import Choice

    with workflow.scratch("plan", str(_data()), {}, None) as session:
        ready = prepare.prepare(session)
        begun = time.monotonic()
        memory = resources.available_bytes() + resources.resident_bytes()
        limits = planning.Limits(None, memory, 2**40)
        each = min(planning.MOST_SECONDS, planning.MEASURING_SECONDS / len(BACKBONES))
        cells, took = {}, {}
        for backbone, size in BACKBONES.items():
            profile = forecast.profile(session, ready, backbone, size, seconds=each)
            took[backbone] = round(profile.seconds, 2)
            for strategy in STRATEGIES:
                for batch in BATCHES:
                    load = replace(planning.load(session, ready, limits), epochs=EPOCHS, batch_size=batch)
                    cost = forecast.cost(profile, Choice(strategy), load)
                    cells[f"{backbone} {strategy} {batch}"] = _told(cost, profile.resident_bytes, load)
        return {"seconds": time.monotonic() - begun, "profiles": took, "cells": cells}


def _told(cost: object, resident: int, load: object) -> dict[str, object]:
    facts = {name: getattr(cost, name) for name in cost.__dataclass_fields__}  # type: ignore[attr-defined]
    facts["seconds"] = cost.fill_seconds + cost.epochs * cost.epoch_seconds  # type: ignore[attr-defined]
    return {**facts, "resident_bytes": resident, "num_train": load.num_train}  # type: ignore[attr-defined]


def _actual(given: dict) -> dict[str, object]:
    """Fine-tune one cell and say what it took."""
    import logging

    from warmstart import judge, prepare, resources, tune, workflow
    from warmstart.config import Choice
    from warmstart.rundir import Journal

    warnings = _Warnings()
    logging.getLogger("warmstart").addHandler(warnings)
    overrides = {"epochs": EPOCHS, "batch_size": given["batch"]}
    with workflow.scratch("finetune", str(_data()), {"overrides": overrides}, None) as session:
        ready = prepare.prepare(session)
        told = _capped(session, ready, given) if given["capped"] else {}
        if told:
            session.sourced = session.sourced.decide("micro_batch", told["forecast"]["micro_batch"], "the plan")
        begun = time.monotonic()
        candidate = tune.Candidate(given["backbone"], BACKBONES[given["backbone"]], Choice(given["strategy"]))
        trial = tune.tune(session, ready, candidate)
        seconds = time.monotonic() - begun
        judge.validated(session, ready, trial, judge.save(session, ready, trial))
        lines = Journal(session.folder.path / "metrics.jsonl", "fit").read()
        stages = {name: round(took, 3) for name, took in session.stages.items()}
    epochs = [line["seconds"] for line in lines if "epoch" in line]
    return {
        "seconds": seconds,
        "peak_bytes": resources.peak_bytes(),
        "epoch_seconds": [round(b - a, 3) for a, b in zip([0.0, *epochs], epochs, strict=False)],
        "stages": stages,
        "ran_out": any("memory ran out" in text for text in warnings.texts),
        **told,
    }


def _capped(session: object, ready: object, given: dict) -> dict[str, object]:
    """Plan for less memory than the cell would take, and let the process have no more than that."""
    import resource

    from warmstart import forecast, planning, resources
    from warmstart.config import Choice

    backbone = given["backbone"]
    profile = forecast.profile(session, ready, backbone, BACKBONES[backbone], seconds=1.0)  # type: ignore[arg-type]
    memory = round(given["resident"] + CAPPED_SHARE * (given["peak"] - given["resident"]))
    load = planning.load(session, ready, planning.Limits(None, memory, 2**40))  # type: ignore[arg-type]
    load = replace(load, epochs=EPOCHS, batch_size=given["batch"], resident_bytes=given["resident"])
    cost = forecast.cost(profile, Choice(given["strategy"]), load)
    resources.trim()
    data = resources._status("VmData")
    cap = data + max(round(memory - resources.resident_bytes()), 0) + STACKS
    resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
    return {"forecast": {**_told(cost, given["resident"], load), "memory_bytes": memory, "cap": cap}}


STACKS = 16 * 8 * 2**20
"""Address space that threads ask for and never touch."""


def _handler() -> type:
    import logging

    class Warnings(logging.Handler):
        def __init__(self) -> None:
            super().__init__(logging.WARNING)
            self.texts: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.texts.append(record.getMessage())

    return Warnings


_Warnings = _handler()
INNER = {"plan": _plan, "cell": _actual}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, help="Measure so many of the missing cells.")
    parser.add_argument("--capped", action="store_true", help="Cells under a cap on memory, too.")
    parser.add_argument("--match", default="", help="Only cells whose name contains this.")
    parser.add_argument("--again", action="store_true", help="Throw away what was measured.")
    parser.add_argument("--inner", choices=("plan", "cell"), help=argparse.SUPPRESS)
    parser.add_argument("--given", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
