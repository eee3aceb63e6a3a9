"""Finished runs side by side: each with its interval, each pair with a verdict that holds for all pairs together.

Runs of one recipe that differ only in `seed` are one contender, its mean over seeds; the bootstrap then resamples seeds
as well as examples.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from warmstart import bootstrap, comparing, predicted
from warmstart import metrics as measures
from warmstart.comparing import Comparison, SideBySide
from warmstart.errors import DataError, RecipeError
from warmstart.predicted import Predicted
from warmstart.rundir import RunDir
from warmstart.tasks import Predictions

Split = Literal["val", "test"]
POWER = 0.8
"""Chance of seeing a difference of this size with as many examples as are named."""
HOPELESS = 1000
"""A difference that takes this many times the examples is as good as none."""


@dataclass(frozen=True)
class Contender:
    """A run, or several that differ only in seed, with the metric and its 95 % interval."""

    run: str
    folders: tuple[str, ...]
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Pair:
    """Two contenders compared."""

    a: str
    b: str
    found: Comparison
    text: str

    def to_json(self) -> dict[str, object]:
        """Return what `--json` prints of it."""
        numbers = {name: getattr(self.found, name) for name in ("difference", "low", "high", "p_value", "p_corrected")}
        return {"a": self.a, "b": self.b, **numbers, "verdict": self.text}


@dataclass(frozen=True)
class RunsCompared:
    """Who is better, and how sure that is."""

    split: str
    metric: str
    n: int
    contenders: tuple[Contender, ...]
    """Best first."""
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return what `--json` prints."""
        return {
            "split": self.split,
            "metric": self.metric,
            "n": self.n,
            "runs": [asdict(one) for one in self.contenders],
            "pairs": [pair.to_json() for pair in self.pairs],
            "warnings": list(self.warnings),
        }

    def words(self) -> str:
        """Say it as a table and sentences."""
        width = max(len(one.run) for one in self.contenders)
        lines = [f"{self.metric} on {self.split}, n = {self.n:,}, 95 % intervals"]
        lines += [f"{one.run:<{width}}  {one.value:.4f}  [{one.low:.4f}, {one.high:.4f}]" for one in self.contenders]
        for pair in self.pairs:
            found = pair.found
            numbers = f"{found.difference:+.4f}  [{found.low:+.4f}, {found.high:+.4f}]  p = {_p(found.p_value)}"
            many = f", {_p(found.p_corrected)} corrected for {len(self.pairs)} pairs" if len(self.pairs) > 1 else ""
            lines += ["", f"{pair.a} against {pair.b}: {numbers}{many}", f"  {pair.text}"]
        return "\n".join([*lines, *(["", *self.warnings] if self.warnings else [])])


@dataclass(frozen=True)
class _Entry:
    """A finished run that takes part."""

    name: str
    path: Path
    told: Predicted
    recipe: Mapping[str, object]

    @property
    def keys(self) -> list[bytes]:
        return self.told.keys()


def runs(
    folders: Sequence[Path | str],
    *,
    split: Split | None = None,
    metric: str | None = None,
    group_seeds: bool = True,
    seed: int = 0,
) -> RunsCompared:
    """Compare finished runs on the same examples.

    Args:
        folders: Of the runs.
        split: Which predictions; `test` where every run has opened it, else `val`, when not given.
        metric: Name of the metric; the task's default without it.
        group_seeds: Take runs that differ only in `seed` as one, unless nothing else is compared.
        seed: Of the resampling.

    Raises:
        RecipeError: Fewer than two runs, one that is named twice, or an unknown metric.
        RunError: A run that is not finished or has left no predictions on the split.
        DataError: The runs have other tasks, or were judged on other examples.
    """
    _refuse_few(folders)
    paths = [RunDir.load(folder).path for folder in folders]
    chosen = split or ("test" if all(predicted.there(path, "test") for path in paths) else "val")
    entries = [
        _Entry(str(f), path, predicted.load(path, chosen), _recipe(path))
        for f, path in zip(folders, paths, strict=True)
    ]
    _refuse_strangers(entries, chosen)
    members = _by_seed(entries) if group_seeds else [[at] for at in range(len(entries))]
    measured = comparing.measured(
        entries[0].told.task, _aligned(entries), seed=seed, metric=metric, names=[entry.name for entry in entries]
    ).means(members, seed=seed)
    names = [_name([entries[at] for at in rows]) for rows in members]
    order = np.argsort(measured.values if not measured.metric.higher_is_better else -measured.values, kind="stable")
    contenders = tuple(_contender(measured, int(at), names[at], [entries[m].name for m in members[at]]) for at in order)
    ranked = [(int(a), int(b)) for a, b in combinations(order, 2)]
    found = comparing.corrected([measured.pair(a, b) for a, b in ranked])
    pairs = tuple(
        Pair(names[a], names[b], one, verdict(measured, a, b, one, names=(names[a], names[b]), num_pairs=len(ranked)))
        for (a, b), one in zip(ranked, found, strict=True)
    )
    n = len(measured.drawn.unit_of)
    return RunsCompared(chosen, measured.metric.name, n, contenders, pairs, _warnings(chosen, contenders))


def verdict(
    measured: SideBySide, a: int, b: int, found: Comparison, *, names: tuple[str, str], num_pairs: int = 1
) -> str:
    """Say who is better, or what it would take to tell."""
    if found.verdict != "tie":
        better, worse = names if found.verdict == "a" else names[::-1]
        return f"{better} is better than {worse}"
    cannot = f"cannot tell {names[0]} from {names[1]}"
    spread = (found.high - found.low) / (2 * 1.959964)
    if abs(found.difference) <= bootstrap.EPS or spread <= bootstrap.EPS:
        return f"{cannot}: they differ by nothing that these examples show"
    of_seeds = float(measured.spread[a] + measured.spread[b])
    wanted = (found.difference / _reach(num_pairs)) ** 2 - of_seeds
    if wanted <= 0:
        return f"{cannot}; more seeds would be needed, since seeds alone differ by as much"
    times = max(spread**2 - of_seeds, 0.0) / wanted
    if times > HOPELESS:
        return f"{cannot}; the difference is as good as none"
    more = max(round((times - 1) * found.n), 1)
    return f"{cannot}; about {_round(more):,} more examples would be needed to tell a difference of this size"


def _reach(num_pairs: int) -> float:
    """Return how many spreads a difference must be for a chance of 80 % to see it at 5 % over all pairs."""
    from scipy.special import ndtri

    return float(ndtri(1 - comparing.SIGNIFICANT / (2 * num_pairs)) + ndtri(POWER))


def _round(number: int) -> int:
    """Keep two digits, which is more than a forecast of this kind is good for."""
    places = max(len(str(number)) - 2, 0)
    return round(number, -places)


def _p(value: float | None) -> str:
    if value is None:
        return "?"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _contender(measured: SideBySide, at: int, name: str, folders: Sequence[str]) -> Contender:
    replicates = measured.replicates[at]
    value = float(measured.values[at])
    freedom = round(measured.freedom(replicates[np.isfinite(replicates)], at))
    low, high = bootstrap.interval(
        value,
        replicates,
        scale=measures.scale(measured.metric.name),
        n=measured.drawn.num_units,
        freedom=max(freedom, 1),
    )
    return Contender(name, tuple(folders), value, min(low, value), max(high, value))


def _aligned(entries: Sequence[_Entry]) -> list[Predictions]:
    """Number the examples alike in all runs, by their contents, so that no order of runs or rows matters."""
    number = {key: at for at, key in enumerate(sorted(entries[0].keys))}
    rows = [np.array([number[key] for key in entry.keys]) for entry in entries]
    groups = entries[0].told.predictions.groups
    if groups is not None:
        groups = groups[np.argsort(rows[0])]
    return [
        Predictions(own.outputs, own.values, at, own.targets, None if groups is None else groups[at])
        for own, at in zip((entry.told.predictions for entry in entries), rows, strict=True)
    ]


def _refuse_few(folders: Sequence[Path | str]) -> None:
    if len(folders) < 2:
        raise RecipeError(f"{len(folders)} run was named, expected at least 2", "warmstart compare RUN RUN")
    seen: set[Path] = set()
    for folder in folders:
        place = Path(folder).resolve()
        if place in seen:
            raise RecipeError(f"{folder} is named twice, expected different runs", "warmstart compare RUN RUN")
        seen.add(place)


def _refuse_strangers(entries: Sequence[_Entry], split: str) -> None:
    """Refuse runs on other tasks, other examples or other targets."""
    first, keys = entries[0], set(entries[0].keys)
    for other in entries[1:]:
        if _task(first) != _task(other):
            problem = f"{first.name} is {_task(first)} and {other.name} is {_task(other)}, expected the same task"
            raise DataError(problem, "compare runs on the same data with the same --task")
        own = set(other.keys)
        if own != keys:
            problem = (
                f"{first.name} and {other.name} have different {split} examples: {len(keys):,} and {len(own):,}, "
                f"{len(keys & own):,} of them shared"
            )
            raise DataError(
                problem, "run both on data that says its split (folders train/ val/ test/, or --split-column)"
            )


def _task(entry: _Entry) -> str:
    """Describe a task by what has to be equal."""
    task = entry.told.task
    of = {"single": "classes", "multi": "labels", "scalar": "a number", "vector": "numbers"}[task.kind]
    names = f" ({', '.join(task.class_names)})" if task.class_names else ""
    return f"{entry.told.task_name} of {of}{names}"


def _recipe(path: Path) -> dict[str, object]:
    """Read what was asked of a run, without what it decided for itself and what no result depends on."""
    lines = (path / "recipe.toml").read_text("utf-8").splitlines()
    table = tomllib.loads("\n".join(line for line in lines if "  # decided: " not in line))
    return {key: value for key, value in _flat(table).items() if key != "data.workers"}


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _by_seed(entries: Sequence[_Entry]) -> list[list[int]]:
    """Group runs that differ in nothing but the seed, unless that leaves nothing to compare."""
    groups: dict[str, list[int]] = {}
    for at, entry in enumerate(entries):
        rest = sorted((key, repr(value)) for key, value in entry.recipe.items() if key != "seed")
        groups.setdefault(repr(rest), []).append(at)
    members: list[list[int]] = []
    for rows in groups.values():
        seeds = {entries[at].recipe.get("seed") for at in rows}
        members += [rows] if len(seeds) == len(rows) else [[at] for at in rows]
    return members if len(members) > 1 else [[at] for at in range(len(entries))]


def _name(entries: Sequence[_Entry]) -> str:
    if len(entries) == 1:
        return entries[0].name
    return f"{entries[0].name} and {len(entries) - 1} more seed{'s' if len(entries) > 2 else ''}"


def _warnings(split: str, contenders: Sequence[Contender]) -> tuple[str, ...]:
    if split != "test" or len(contenders) < 3:
        return ()
    told = f"{len(contenders)} models are compared on test: whoever keeps the best of them has chosen on test"
    return (f"{told}, and its number flatters; choose with --split val",)
