"""Facts → one HTML page: which sections there are, which rows large tables keep, and the template's vocabulary."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Generic, TypeVar

from markupsafe import Markup

from warmstart.reporting import charts, pictures, svg, words
from warmstart.reporting.facts import ClassCount, ClassResult, Compared, Facts
from warmstart.tasks import Metric

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_ROWS = 24
"""Tables of classes longer than this keep both ends."""
STATUSES = {"ok": "fine", "note": "noted", "warning": "look at this", "blocking": "stops the run"}
VERDICTS = {"a": "", "b": "", "tie": "A tie. "}
TITLES = {  # field of Facts → title, name in the navigation
    "data": ("The data", "Data"),
    "audit": ("What the audit found", "Audit"),
    "splits": ("How the data was divided", "Splits"),
    "leaderboard": ("The race among backbones", "Race"),
    "short_trials": ("Which layers, how fast", "Short trials"),
    "curves": ("Learning curves", "Learning curves"),
    "attempts": ("What was tried, and why the winner won", "What was tried"),
    "metrics": ("How good it is", "Metrics"),
    "confusion": ("What is taken for what", "Confusion"),
    "scatters": ("Predicted against true", "Predicted and true"),
    "calibration": ("Whether its confidence can be believed", "Calibration"),
    "classes": ("Class by class", "Classes"),
    "mistakes": ("Surest mistakes", "Mistakes"),
    "explanations": ("Where the model looked", "Explanations"),
    "stages": ("Time: planned and actual", "Time"),
    "environment": ("Environment", "Environment"),
    "card": ("The backbone and its licence", "Licence"),
    "limits": ("What these numbers do not cover", "Limits"),
    "recipe": ("Recipe", "Recipe"),
    "usage": ("How to use the model", "How to use"),
}
CARD_NAMES = {
    "name": "Backbone",
    "licence": "Licence",
    "trained_on": "Trained on",
    "num_params": "Parameters",
    "dim": "Features",
    "arch": "Architecture",
    "url": "Origin",
    "weights_hash": "Hash of the weights",
    "notes": "Notes",
}
Row = TypeVar("Row")


@dataclass(frozen=True)
class Section:
    """A section of the page: shown, explained in one sentence, or left out."""

    id: str
    title: str
    short: str
    present: bool
    absent: str = ""
    """Why it is empty; an empty section without reason vanishes."""

    @property
    def visible(self) -> bool:
        """Tell whether the page has this section."""
        return self.present or bool(self.absent)


def page(facts: Facts) -> str:
    """Draw the page.

    Returns:
        One HTML document that needs no other file and no network.
    """
    facts = pictures.capped(facts)
    return (
        _environment()
        .get_template("report.html")
        .render(
            f=facts,
            headline=words.headline(facts.answer),
            sections=sections(facts),
            cautions=words.cautions(facts),
            limits=words.limits(facts),
            data_rows=_data_rows(facts),
            class_rows=_class_rows(facts.classes),
            metric_table=_metric_table(facts.metrics),
            card_rows=card_rows(facts.card),
            longest_stage=max((max(x.seconds, x.planned_seconds or 0.0) for x in facts.stages), default=1.0),
            comparison_ends=_comparison_ends(facts.comparisons),
            untried=[x for x in facts.leaderboard if x.dropped_because.startswith("not tried")],
            race_metric=next((words.metric(x.metric.name).label for x in facts.leaderboard if x.metric), ""),
            **_attempt_axis(facts),
        )
    )


def sections(facts: Facts) -> dict[str, Section]:
    """Decide for every section whether it is shown, and why not when it is empty."""
    reasons = _reasons(facts) | {key: _sentence(text) for key, text in facts.absent.items()}
    found = {}
    titles = TITLES | ({"mistakes": ("Largest differences", "Differences")} if _is_regression(facts) else {})
    for name, (title, short) in titles.items():
        present = _present(facts, name)
        found[name] = Section(name, title, short, present, "" if present else reasons.get(name, ""))
    return found


def _is_regression(facts: Facts) -> bool:
    return facts.answer.kind in ("scalar", "vector")


def _present(facts: Facts, name: str) -> bool:
    match name:
        case "data":
            return facts.data.num_examples > 0
        case "audit":
            return bool(facts.audit.findings)
        case "splits":
            return facts.splits.train + facts.splits.val + facts.splits.test > 0
        case "curves":
            return any(attempt.curves for attempt in facts.attempts)
        case "calibration":
            return facts.calibration is not None and bool(facts.calibration.bins)
        case "limits":
            return facts.answer.metric is not None
        case _:
            return bool(getattr(facts, name))


def _reasons(facts: Facts) -> dict[str, str]:
    """Say what is known about empty sections without being told."""
    reasons = {}
    if facts.answer.kind == "multi":
        reasons["confusion"] = "A picture may have several labels, so there is no confusion matrix; see class by class."
    if facts.attempts:
        reasons["curves"] = "No curves: the head was solved on cached features, in one go, and not trained in epochs."
    return reasons


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) or not text else ".")


@dataclass(frozen=True)
class Rows(Generic[Row]):
    """Rows of a table that keeps both ends; None marks the gap."""

    rows: tuple[Row | None, ...]
    left_out: int = 0
    largest: float = 1.0
    pictures: bool = False
    ap: bool = False
    ends: tuple[float, float] = (0.0, 1.0)
    """Common axis of the intervals."""


def _ends(items: Sequence[Row], most: int = MOST_ROWS, first: int = 14) -> tuple[tuple[Row | None, ...], int]:
    if len(items) <= most:
        return tuple(items), 0
    return (*items[:first], None, *items[len(items) - (most - first) :]), len(items) - most


def _data_rows(facts: Facts) -> Rows[ClassCount]:
    classes = facts.data.classes
    totals = [item.train + item.val + item.test for item in classes]
    if len(classes) > MOST_ROWS:
        order = sorted(range(len(classes)), key=lambda row: (totals[row], row))
        classes = tuple(classes[row] for row in order)
    rows, left_out = _ends(classes)
    return Rows(rows, left_out, max(totals, default=1), any(item.pictures for item in classes))


def _class_rows(classes: Sequence[ClassResult]) -> Rows[ClassResult]:
    def goodness(item: ClassResult) -> float:
        known = [number for number in (item.f1, item.average_precision, item.recall) if number is not None]
        return known[0] if known else -1.0

    ordered: list[ClassResult] = sorted(classes, key=goodness)
    rows, left_out = _ends(ordered)
    found = [number for item in classes for number in (item.low, item.recall) if number is not None]
    low = math.floor(10 * min(found, default=0.0)) / 10  # the axis ends at 1 and begins at a round number
    return Rows(rows, left_out, ap=any(item.average_precision is not None for item in classes), ends=(low, 1.0))


@dataclass(frozen=True)
class MetricTable:
    """Metrics by name (rows) and split (columns)."""

    splits: tuple[str, ...]
    counts: dict[str, int]
    rows: tuple[tuple[str, tuple[Metric | None, ...], float], ...]
    """Name, one metric per split, and the width of the widest interval of the row."""


def _metric_table(metrics: Sequence[Metric]) -> MetricTable:
    splits = tuple(dict.fromkeys(item.split for item in metrics))
    names = tuple(dict.fromkeys(item.name for item in metrics))
    found = {(item.name, item.split): item for item in metrics}
    counts: dict[str, int] = {}
    for item in metrics:
        counts.setdefault(item.split, item.n)
    rows = []
    for name in names:
        row = tuple(found.get((name, split)) for split in splits)
        rows.append((name, row, max(item.high - item.low for item in row if item)))
    return MetricTable(splits, counts, tuple(rows))


def _attempt_axis(facts: Facts) -> dict[str, object]:
    """Give all attempts one zoomed axis."""
    first = [attempt.metrics[0] for attempt in facts.attempts if attempt.metrics]
    if not first:
        return {"attempt_scale": (0.0, 1.0), "attempt_ends": None, "attempt_metric": "metric"}
    ends = charts.scale_of(first, zoom=True)
    name = first[0].name
    shown = [words.value(Metric(name, end, ends[0], ends[1], 0, "")) for end in ends]
    return {"attempt_scale": ends, "attempt_ends": shown, "attempt_metric": words.metric(name).label}


def _comparison_ends(comparisons: Sequence[Compared]) -> dict[str, tuple[float, float]]:
    """Give the comparisons of one metric one axis, zero included."""
    ends = {}
    for name in {item.metric for item in comparisons}:
        numbers = [number for item in comparisons if item.metric == name for number in (item.low, item.high)]
        reach = max((abs(number) for number in numbers if math.isfinite(number)), default=1.0) * 1.15 or 1.0
        ends[name] = (-reach, reach)
    return ends


def card_rows(card: dict[str, object]) -> list[tuple[str, str]]:
    """Return the facts of a backbone card in words; the unknown licence is said, other unknown facts are left out."""
    rows = []
    for key, name in CARD_NAMES.items():
        known = card.get(key)
        if isinstance(known, int):
            rows.append((name, words.count(known)))
        elif known:
            rows.append((name, str(known)))
        elif key == "licence" and card:
            rows.append((name, "not known; ask its authors before you publish or sell the model"))
    spec = card.get("spec")
    if isinstance(spec, dict) and "image_size" in spec:
        rows.append(("Trained at", f"{spec['image_size']} × {spec['image_size']} pixels"))
    return rows


def _recall_metric(item: ClassResult) -> Metric:
    low, high = (math.nan if end is None else end for end in (item.low, item.high))
    return Metric("recall", item.recall if item.recall is not None else math.nan, low, high, item.support, "test")


def _difference(item: Compared) -> str:
    return _signed(item, item.difference)


def _difference_interval(item: Compared) -> str:
    return f"{_signed(item, item.low).removesuffix(' points')} to {_signed(item, item.high)}"


def _signed(item: Compared, number: float) -> str:
    metric = Metric(item.metric, number, item.low, item.high, item.n, item.split)
    written = words.value(metric).replace(f"{words.NB}%", " points")
    return written if number < 0 else f"+{written}"


def _capfirst(text: str) -> str:
    """Start a sentence with a capital, but leave names such as `lp_ft` or `timm/resnet50` as they are."""
    first = text.partition(" ")[0]
    return text if any(mark in first for mark in "_/=.") else text[:1].upper() + text[1:]


def _breakable(path: str) -> Markup:
    """Let a path break behind its separators."""
    return Markup("<wbr>").join(re.findall(r"[^/_\-.]+[/_\-.]*|[/_\-.]+", path))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("warmstart.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(charts=charts, statuses=STATUSES, verdicts=VERDICTS, svg=svg)
    environment.filters.update(
        value=words.value,
        interval=words.interval,
        has_interval=words.has_interval,
        metric=words.metric,
        plain=words.plain,
        percent=words.percent,
        count=words.count,
        plural=words.plural,
        seconds=words.seconds,
        size=words.size,
        when=words.when,
        openings=words.openings,
        compared=words.compared,
        capfirst=_capfirst,
        difference=_difference,
        difference_interval=_difference_interval,
        recall_metric=_recall_metric,
        breakable=_breakable,
    )
    return environment
