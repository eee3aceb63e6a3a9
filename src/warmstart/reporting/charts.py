"""The charts of the page, as inline SVG without scripts: each takes facts and returns markup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from warmstart.reporting import pictures, svg, words
from warmstart.reporting.facts import Bin, Calibration, Compared, Confusion, Curve, Histogram, Scatter
from warmstart.reporting.svg import Plot
from warmstart.tasks import Metric

MOST_POINTS = 1500
MATRIX_SIDE = 240
TABLE_CLASSES = 20
LINE_STYLES = 4


def scale_of(items: Sequence[Metric], *, zoom: bool = False) -> tuple[float, float]:
    """Return a common axis for metrics of one name: the whole scale, or zoomed to the intervals."""
    values = [number for item in items for number in (item.value, item.low, item.high)]
    if zoom:
        return svg.extent(values, pad=0.25)
    word = words.metric(items[0].name)
    low, high = svg.extent(values, zero=True)
    return (word.low if word.low is not None else low, word.high if word.high is not None else high)


def interval(item: Metric, ends: tuple[float, float]) -> Markup:
    """Draw a value with its interval on an axis.

    Args:
        item: The metric.
        ends: Both ends of the axis, in units of the metric.
    """
    x = svg.linear(*ends, 8, 172)
    marks = [svg.line(8, 9, 172, 9, "rail")]
    if words.has_interval(item):
        left, right = max(8.0, x(item.low)), min(172.0, x(item.high))
        marks.append(svg.rect(left, 7, max(2.0, right - left), 4, "band"))
    marks.append(svg.dot(min(max(x(item.value), 8), 172), 9, 4, "value"))
    return svg.picture(180, 18, marks, label=_spoken(item), css="inline")


def _spoken(item: Metric) -> str:
    label = f"{words.metric(item.name).label} {words.value(item)}"
    return f"{label}, 95 % interval {words.interval(item)}" if words.has_interval(item) else label


def hero(item: Metric, *, baseline: Metric | None = None) -> Markup:
    """Draw the answer: the value on its whole scale beside a constant answer, and its interval under a lens."""
    ends = scale_of([item] if baseline is None else [item, baseline])
    x = svg.linear(*ends, 46, 580)
    marks = [svg.line(46, 34, 580, 34, "rail"), svg.text(592, 38, _end(item.name, ends[1]), anchor="start")]
    marks.append(svg.text(34, 38, _end(item.name, ends[0]), anchor="end"))
    if baseline is not None:
        at = x(baseline.value)
        side = "start" if at < 90 else "end" if at > 550 else "middle"
        marks += [svg.line(at, 23, at, 45, "baseline"), svg.text(at, 14, "a constant answer", anchor=side)]
    height = 56
    if words.has_interval(item):
        marks.append(svg.rect(x(item.low), 29, max(2.0, x(item.high) - x(item.low)), 10, "band"))
        if item.high - item.low < 0.15 * (ends[1] - ends[0]):
            marks += _lens(item, x)
            height = 124
    marks.append(svg.dot(x(item.value), 34, 7, "value"))
    return svg.picture(640, height, marks, label=_spoken(item), css="chart wide")


def _lens(item: Metric, x: svg.Scale) -> list[Markup]:
    """Draw the interval again, large, under the place on the scale where it lies."""
    width = item.high - item.low
    middle = min(max(x(item.value), 210.0), 430.0)
    near = svg.linear(item.low - 0.35 * width, item.high + 0.35 * width, middle - 200, middle + 200)
    corners = [(x(item.low), 40), (x(item.high), 40), (middle + 200, 88), (middle - 200, 88)]
    marks = [Markup('<polygon class="lens" points="{}"/>').format(" ".join(f"{a:.1f},{b}" for a, b in corners))]
    marks += [svg.line(middle - 200, 94, middle + 200, 94, "rail")]
    marks.append(svg.rect(near(item.low), 89, near(item.high) - near(item.low), 10, "band"))
    marks.append(svg.dot(near(item.value), 94, 7, "value"))
    marks += [
        svg.text(near(item.low), 120, words.value(item, "low")),
        svg.text(near(item.value), 120, words.value(item)),
    ]
    return [*marks, svg.text(near(item.high), 120, words.value(item, "high"))]


def _end(name: str, end: float) -> str:
    return words.percent(end) if words.metric(name).percent else words.plain(end)


def difference(item: Compared, ends: tuple[float, float]) -> Markup:
    """Draw a paired difference with its interval against zero."""
    x = svg.linear(*ends, 8, 212)
    marks = [svg.line(8, 12, 212, 12, "rail"), svg.line(x(0), 2, x(0), 22, "baseline")]
    marks.append(svg.rect(x(item.low), 10, x(item.high) - x(item.low), 4, "band"))
    marks.append(svg.dot(x(item.difference), 12, 4, "value"))
    low, high = (words.plain(number) for number in (item.low, item.high))
    return svg.picture(220, 24, marks, label=f"difference between {low} and {high}; zero is marked", css="inline")


def lines(curve: Curve) -> Markup:
    """Draw a line chart; lines differ in colour and dash, and are named in a legend."""
    keep = [s for s in curve.series if s.x]
    all_x = [x for s in keep for x in s.x]
    ys = svg.extent([y for s in keep for y in s.y])
    if curve.log_x:
        low, high = (math.log10(max(end, 1e-30)) for end in (min(all_x), max(all_x)))
    else:
        low, high = min(all_x, default=0.0), max(all_x, default=1.0)
    plot = Plot(40, 40, 348, 172, _log(low, high, curve.log_x), svg.linear(*ys, 172, 40))
    x_ticks = _x_ticks(low, high, curve.log_x)
    marks = svg.axes(plot, x_ticks, svg.ticks(*ys, 4), x_label=curve.x_label, y_label=curve.y_label, log_x=curve.log_x)
    if curve.chosen_x is not None:
        marks.append(svg.line(plot.x(curve.chosen_x), 40, plot.x(curve.chosen_x), 172, "baseline"))
    for place, series in enumerate(keep):
        points = [(plot.x(x), plot.y(y)) for x, y in zip(series.x, series.y, strict=True)]
        marks.append(svg.path(points, f"line s{place % LINE_STYLES}"))
        if len(points) <= 12:
            marks += [svg.dot(x, y, 2.5, f"dot s{place % LINE_STYLES}") for x, y in points if math.isfinite(y)]
    marks += _legend([s.name for s in keep], chosen=curve.chosen_x is not None)
    return svg.picture(360, 210, marks, label=f"{curve.title}: {curve.y_label} against {curve.x_label}")


def _log(low: float, high: float, log: bool) -> svg.Scale:
    scale = svg.linear(low, high, 48, 340)
    return (lambda value: scale(math.log10(max(value, 1e-30)))) if log else scale


def _x_ticks(low: float, high: float, log: bool) -> list[float]:
    if not log:
        found = svg.ticks(low, high, 6)
        whole = [tick for tick in found if tick == round(tick)]
        return whole if len(whole) >= 2 else found
    step = max(1, math.ceil((high - low) / 6))
    return [10.0**power for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1, step)]


def _legend(names: Sequence[str], *, chosen: bool) -> list[Markup]:
    marks, left = [], 10.0
    for place, name in enumerate(names):
        style = place % LINE_STYLES
        marks += [svg.line(left, 10, left + 18, 10, f"line s{style}"), svg.text(left + 23, 14, name, anchor="start")]
        left += 36 + 6.4 * len(name)
    if chosen:
        marks += [svg.line(left + 4, 4, left + 4, 17, "baseline"), svg.text(left + 10, 14, "kept", anchor="start")]
    return marks


def reliability(calibration: Calibration) -> Markup:
    """Draw accuracy against confidence; on the diagonal, confidence can be taken at its word."""
    plot = Plot(40, 40, 300, 240, svg.linear(0, 1, 44, 296), svg.linear(0, 1, 240, 40))
    stops = svg.ticks(0, 1)
    marks = svg.axes(plot, stops, stops, x_label="confidence", y_label="share that was right")
    marks.append(svg.line(plot.x(0), plot.y(0), plot.x(1), plot.y(1), "diagonal"))
    total = max((item.count for item in calibration.bins), default=1)
    before = calibration.bins_before
    marks += _bins(plot, before, css="s1", total=max((b.count for b in before), default=1))
    marks += _bins(plot, calibration.bins, css="s0", total=total)
    names = ["after scaling", "before"] if before else ["this model"]
    marks += _legend(names, chosen=False)
    return svg.picture(312, 280, marks, label="reliability diagram: share that was right against confidence")


def _bins(plot: Plot, bins: Sequence[Bin], *, css: str, total: int) -> list[Markup]:
    filled = [item for item in bins if item.count]
    marks = [svg.path([(plot.x(item.confidence), plot.y(item.accuracy)) for item in filled], f"line {css}")]
    for item in filled:
        radius = 2 + 4 * math.sqrt(item.count / total)
        marks.append(svg.dot(plot.x(item.confidence), plot.y(item.accuracy), round(radius, 1), f"dot {css}"))
    return marks


def scatter(facts: Scatter) -> Markup:
    """Draw predicted against true values with the line of perfect answers."""
    every = max(1, math.ceil(len(facts.true) / MOST_POINTS))
    pairs = list(zip(facts.true, facts.predicted, strict=True))[::every]
    ends = svg.extent([value for pair in pairs for value in pair])
    plot = Plot(48, 28, 320, 240, svg.linear(*ends, 48, 320), svg.linear(*ends, 240, 28))
    stops = svg.ticks(*ends)
    marks = svg.axes(plot, stops, stops, x_label="true", y_label="predicted")
    marks.append(svg.line(plot.x(ends[0]), plot.y(ends[0]), plot.x(ends[1]), plot.y(ends[1]), "diagonal"))
    marks += [svg.dot(plot.x(true), plot.y(said), 2.2, "point") for true, said in pairs if math.isfinite(true + said)]
    return svg.picture(332, 280, marks, label=f"{facts.name}: predicted against true")


def residuals(facts: Scatter) -> Markup:
    """Draw how the differences predicted minus true are distributed."""
    gaps = np.asarray(facts.predicted, float) - np.asarray(facts.true, float)
    gaps = gaps[np.isfinite(gaps)]
    counts, edges = np.histogram(gaps, bins=min(24, max(6, math.isqrt(max(1, len(gaps))))))
    bars = Histogram("predicted − true", tuple(edges.tolist()), tuple(counts.tolist()))
    return histogram(bars, zero=True)


def histogram(bars: Histogram, *, zero: bool = False) -> Markup:
    """Draw counts between edges; `zero` marks zero."""
    top = max(bars.counts, default=1) or 1
    ends = (bars.edges[0], bars.edges[-1])
    plot = Plot(48, 28, 320, 240, svg.linear(*ends, 48, 320), svg.linear(0, top, 240, 28))
    marks = svg.axes(plot, svg.ticks(*ends), svg.ticks(0, top, 4), x_label=bars.name, y_label="examples")
    for low, high, count in zip(bars.edges, bars.edges[1:], bars.counts, strict=False):
        left, right = plot.x(low), plot.x(high)
        marks.append(svg.rect(left + 0.5, plot.y(count), right - left - 1, plot.bottom - plot.y(count), "bar"))
    if zero and ends[0] < 0 < ends[1]:
        marks.append(svg.line(plot.x(0), plot.top, plot.x(0), plot.bottom, "baseline"))
    return svg.picture(332, 280, marks, label=f"histogram of {bars.name}")


def stacked(parts: Sequence[float], total: float) -> Markup:
    """Draw counts (train, val, test) as one bar whose full length means `total`."""
    marks, left = [], 0.0
    for place, part in enumerate(parts):
        width = 180 * part / (total or 1)
        marks.append(svg.rect(left, 3, width - (0.6 if width > 1.2 else 0), 10, f"fill{place}"))
        left += width
    return svg.picture(180, 16, marks, label="", css="inline")


def duration(actual: float, planned: float | None, longest: float) -> Markup:
    """Draw seconds spent as a bar, and seconds planned as a tick."""
    x = svg.linear(0, longest or 1.0, 2, 176)
    marks = [svg.rect(2, 4, max(1.5, x(actual) - 2), 8, "bar")]
    if planned is not None:
        marks.append(svg.line(x(planned), 0, x(planned), 16, "baseline"))
    planned_words = f", {words.seconds(planned)} planned" if planned is not None else ""
    return svg.picture(180, 16, marks, label=f"{words.seconds(actual)}{planned_words}", css="inline")


@dataclass(frozen=True)
class Cell:
    """One cell of a small confusion matrix: count, share of its true class, and a shade in [0, 1]."""

    count: int
    share: float
    shade: float
    right: bool


def matrix_rows(confusion: Confusion) -> list[tuple[str, list[Cell]]]:
    """Return the rows of a confusion matrix that is small enough for a table (`TABLE_CLASSES`)."""
    counts = _matrix(confusion)
    totals = counts.sum(axis=1)
    share = counts / np.maximum(totals, 1)[:, None]  # (C, C)
    off = share - np.diag(np.diag(share))
    worst = float(off.max()) or 1.0
    rows = []
    for i, name in enumerate(confusion.class_names):
        cells = []
        for j in range(len(confusion.class_names)):
            shade = float(share[i, j]) if i == j else float(off[i, j]) / worst
            cells.append(Cell(int(counts[i, j]), float(share[i, j]), round(0.5 * shade, 3), i == j))
        rows.append((name, cells))
    return rows


def _matrix(confusion: Confusion) -> np.ndarray:
    counts = np.zeros((len(confusion.class_names),) * 2, dtype=np.int64)
    for i, j, count in confusion.cells:
        counts[i, j] += count
    return counts


@dataclass(frozen=True)
class Pair:
    """A true class that is often taken for another."""

    true: str
    predicted: str
    count: int
    share: float


def confused_pairs(confusion: Confusion, most: int = 12) -> list[Pair]:
    """Return the commonest mistakes, as (true, predicted) classes."""
    totals: dict[int, int] = {}
    for i, _, count in confusion.cells:
        totals[i] = totals.get(i, 0) + count
    wrong = sorted((cell for cell in confusion.cells if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell[:2]))
    names = confusion.class_names
    return [Pair(names[i], names[j], count, count / totals[i]) for i, j, count in wrong[:most]]


def matrix_picture(confusion: Confusion) -> Markup:
    """Draw a large confusion matrix as pixels, see-through where it is empty so that it suits light and dark.

    More than `MATRIX_SIDE` classes share pixels: each pixel sums a block of neighbouring classes. Rows are shares of
    their true class, and errors are drawn on a square-root scale so that single ones can be seen.
    """
    num = len(confusion.class_names)
    side = min(num, MATRIX_SIDE)
    rows, totals = np.zeros((side, side)), np.zeros(side)
    on_diagonal = np.zeros((side, side))
    for i, j, count in confusion.cells:
        at = (i * side // num, j * side // num)
        (on_diagonal if i == j else rows)[at] += count
        totals[at[0]] += count
    share = rows / np.maximum(totals, 1)[:, None]
    right = np.diag(on_diagonal) / np.maximum(totals, 1)
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[..., :3] = (213, 94, 0)
    pixels[..., 3] = (255 * np.sqrt(share / (share.max() or 1.0))).astype(np.uint8)
    index = np.arange(side)
    pixels[index, index, :3] = (46, 134, 208)
    pixels[index, index, 3] = (40 + 215 * right).astype(np.uint8)
    return Markup('<img class="matrix" src="{}" width="480" height="480" alt="{}">').format(
        pictures.png(pixels), f"confusion matrix of {num} classes: rows are true, columns predicted"
    )
