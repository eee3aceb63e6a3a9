"""What the cells came to: accuracies with intervals, and warmstart beside each peer on the same test pictures."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from benchmarks import common
from benchmarks.peers import cells, data
from benchmarks.peers.cells import PROGRAMS, Outcome

from warmstart import comparing, durable, runtime
from warmstart.tasks import Predictions
from warmstart.tasks.classification import Classes

Verdict = Literal["ahead", "behind", "tie"]
VERDICTS: Mapping[str, Verdict] = {"a": "ahead", "b": "behind", "tie": "tie"}


@dataclass(frozen=True)
class Share:
    """A share with Wilson's 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Beside:
    """warmstart and a peer in one cell; differences are warmstart's accuracy less the peer's."""

    data: str
    minutes: float
    ours: str
    peer: str
    accuracy: float | None = None
    peer_accuracy: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    verdict: Verdict | None = None
    """`ahead` and `behind` are significant (5 %), `tie` is not; nothing where one of both has no answer."""
    n: int = 0
    seeds: int = 0
    why: str = ""
    """Why there is no comparison."""


def write(limit: int | None) -> tuple[Path, str]:
    """Write all kept cells and comparisons; return the file and a summary in words."""
    found = sorted(_kept(limit), key=_order)
    beside = list(compared(found, limit))
    counted = [one for one in beside if PROGRAMS[one.peer].usual]
    summary = {name: summed([one for one in counted if one.ours == name]) for name in PROGRAMS if PROGRAMS[name].ours}
    content = {
        "benchmark": "peers",
        "finished": time.strftime("%Y-%m-%d", time.gmtime()),
        "parameters": {
            "limit": limit,
            "grace": cells.GRACE,
            "pictures": {name: _sizes(name, limit) for name in dict.fromkeys(one.data for one in found)},
        },
        "seeds": sorted({one.seed for one in found}),
        "machine": common.machine(),
        "environment": runtime.environment(),
        "summary": summary,
        "readme": [] if limit else list(_readme(summary, counted)),
        "compared": [asdict(one) for one in beside],
        "cells": [_row(one, limit) for one in found],
    }
    path = (common.RESULTS if limit is None else cells.CELLS.parent) / "peers.json"
    durable.write_json(path, content)
    return path, "\n".join(_words(name, told) for name, told in summary.items() if told["cells"])


def accuracy(outcome: Outcome, limit: int | None) -> Share:
    """Return the share of test pictures that were named rightly."""
    from scipy.stats import binomtest

    truth = data.prepare(outcome.data, limit=limit).truth
    hits = sum(outcome.predictions[name] == label for name, label in truth.items())
    interval = binomtest(hits, len(truth)).proportion_ci(method="wilson")
    return Share(hits / len(truth), float(interval.low), float(interval.high), len(truth))


def compared(found: Sequence[Outcome], limit: int | None) -> Iterator[Beside]:
    """Put each row of warmstart beside each peer of the same data and minutes, over the seeds that both have."""
    groups: dict[tuple[str, float], dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        groups[one.data, one.seconds_given][one.program].append(one)
    for (name, seconds), programs in groups.items():
        for ours in (program for program in programs if PROGRAMS[program].ours):
            for peer in (program for program in programs if not PROGRAMS[program].ours):
                empty = Beside(name, seconds / 60, ours, peer)
                yield _beside(empty, programs[ours], programs[peer], limit)


def _beside(empty: Beside, ours: list[Outcome], peer: list[Outcome], limit: int | None) -> Beside:
    bad = [one for one in (*ours, *peer) if one.status != "done"]
    if bad:
        last = (bad[0].why.strip().splitlines() or [""])[-1]
        return replace(empty, why=f"{bad[0].program} {bad[0].status}: {last}")
    seeds = sorted({one.seed for one in ours} & {one.seed for one in peer})
    if not seeds:
        return replace(empty, why="no seed in common")
    truth = data.prepare(empty.data, limit=limit).truth
    task = Classes("single", tuple(sorted(set(truth.values()))))
    sides = [_predictions(one, truth, task.class_names) for all_ in (ours, peer) for one in all_ if one.seed in seeds]
    members = [list(range(len(seeds))), list(range(len(seeds), 2 * len(seeds)))]
    pair = comparing.measured(task, sides, seed=0, metric="accuracy").means(members, seed=0).pair(0, 1)
    return replace(
        empty,
        accuracy=pair.a,
        peer_accuracy=pair.b,
        difference=pair.difference,
        low=pair.low,
        high=pair.high,
        p_value=pair.p_value,
        verdict=VERDICTS[pair.verdict],
        n=len(truth),
        seeds=len(seeds),
    )


def _predictions(outcome: Outcome, truth: Mapping[str, str], names: Sequence[str]) -> Predictions:
    rows = [names.index(outcome.predictions[name]) for name in truth]
    values = np.eye(len(names), dtype=np.float32)[rows]
    targets = np.array([names.index(label) for label in truth.values()])
    return Predictions(values, values, np.arange(len(rows)), targets)


def summed(beside: Sequence[Beside]) -> dict[str, object]:
    """Count the cells: a peer that has no answer at the end of the minutes is behind, and counted as such apart."""
    told = [one for one in beside if one.difference is not None]
    late = [one for one in beside if "did not finish" in one.why and not one.why.startswith(one.ours)]
    ahead = sum(one.difference > 0 for one in told if one.difference is not None)
    return {
        "cells": len(told),
        "ahead": ahead,
        "equal": sum(one.difference == 0 for one in told),
        "significantly_ahead": sum(one.verdict == "ahead" for one in told),
        "significantly_behind": [
            f"{one.data}, {one.minutes:g} min, {one.peer}" for one in told if one.verdict == "behind"
        ],
        "peer_did_not_finish": len(late),
        "share_ahead": round(ahead / len(told), 4) if told else None,
        "without_comparison": [
            f"{one.data}, {one.minutes:g} min, {one.peer}: {one.why[:300]}" for one in beside if one.difference is None
        ],
    }


def _readme(summary: Mapping[str, Mapping[str, object]], beside: Sequence[Beside]) -> Iterator[dict[str, object]]:
    """Yield the lines of the README's table: the share of cells in which warmstart leads."""
    from scipy.stats import binomtest

    rows = {
        "warmstart": ("`run` with the peers' backbone", "`run`（与同行相同的骨干网络）"),
        "warmstart-free": ("`run` with a backbone of its own choice", "`run`（自行选择骨干网络）"),
    }
    peers = ", ".join(dict.fromkeys(one.peer for one in beside))
    for name, (what, what_zh) in rows.items():
        told = summary[name]
        count, ahead = told["cells"], told["ahead"]
        assert isinstance(count, int)
        assert isinstance(ahead, int)
        if not count:
            continue
        interval = binomtest(ahead, count).proportion_ci(method="wilson")
        yield {
            "what": f"{what}, same data and minutes: cells in which its accuracy is higher than the peer's",
            "what_zh": f"{what_zh}，相同数据与时间：准确率高于同行的格数比例",
            "value": f"{ahead} of {count}",
            "low": f"{interval.low:.2f}",
            "high": f"{interval.high:.2f}",
            "n": f"{count} cells",
            "peer": peers,
        }


def _kept(limit: int | None) -> Iterator[Outcome]:
    """Read the cells, of the whole data sets or of trials with this limit."""
    for path in sorted(cells.CELLS.glob("*.json")):
        outcome = Outcome(**json.loads(path.read_text()))
        cell = cells.Cell(outcome.data, outcome.seconds_given, outcome.program, outcome.seed, limit)
        if cell.path == path and outcome.program in PROGRAMS:
            yield outcome


def _order(outcome: Outcome) -> tuple[str, float, int, int]:
    return outcome.data, outcome.seconds_given, list(PROGRAMS).index(outcome.program), outcome.seed


def _row(outcome: Outcome, limit: int | None) -> dict[str, object]:
    told = {key: value for key, value in asdict(outcome).items() if key != "predictions"}
    done = outcome.status == "done"
    return {
        **told,
        "why": outcome.why[-600:],
        "backbone": PROGRAMS[outcome.program].backbone,
        "accuracy": asdict(accuracy(outcome, limit)) if done else None,
    }


def _sizes(name: str, limit: int | None) -> dict[str, int]:
    given = data.prepare(name, limit=limit)
    return {"train": given.num_train, "test": len(given.truth)}


def _words(name: str, told: Mapping[str, object]) -> str:
    behind = told["significantly_behind"]
    assert isinstance(behind, list)
    return (
        f"{name}: ahead in {told['ahead']} of {told['cells']} cells, significantly in {told['significantly_ahead']}, "
        f"significantly behind in {len(behind)}{': ' + '; '.join(behind) if behind else ''}; "
        f"{told['peer_did_not_finish']} without an answer in time"
    )
