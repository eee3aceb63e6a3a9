"""The few drawing words that all charts share: axes, ticks, marks. Colours come from the page's CSS classes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from warmstart.reporting import words

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Plot:
    """The inner rectangle of a chart and its scales: x and y in data units → pixels."""

    left: float
    top: float
    right: float
    bottom: float
    x: Scale
    y: Scale


def picture(width: float, height: float, body: Iterable[Markup], *, label: str, css: str = "chart") -> Markup:
    """Wrap marks into an accessible, scalable SVG."""
    return Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        css, width, height, label, Markup("").join(body)
    )


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Map [low, high] to [start, end]."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Return round numbers inside [low, high], about `target` of them.

    Example:
        >>> ticks(0, 1)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    raw = span / target
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - raw))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def extent(values: Iterable[float], *, pad: float = 0.05, zero: bool = False) -> tuple[float, float]:
    """Return the range of the finite values with a margin; never empty."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    margin = (high - low) * pad or abs(high) * pad or 0.5
    return (low if zero and low == 0 else low - margin, high + margin)


def text(x: float, y: float, content: object, *, anchor: str = "middle", css: str = "t") -> Markup:
    """Write a word."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        css, x, y, anchor, content
    )


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    """Draw a line."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(css, x1, y1, x2, y2)


def rect(x: float, y: float, width: float, height: float, css: str) -> Markup:
    """Draw a rectangle; a negative extent counts as nothing."""
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        css, x, y, max(0.0, width), max(0.0, height)
    )


def dot(x: float, y: float, radius: float, css: str) -> Markup:
    """Draw a dot."""
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:g}"/>').format(css, x, y, radius)


def path(points: Sequence[tuple[float, float]], css: str) -> Markup:
    """Draw a line through points; a point that is not finite breaks it."""
    steps, pen = [], "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        steps.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return Markup('<path class="{}" d="{}"/>').format(css, " ".join(steps))


def axes(
    plot: Plot, xs: Sequence[float], ys: Sequence[float], *, x_label: str, y_label: str, log_x: bool = False
) -> list[Markup]:
    """Draw a grid with ticks and the names of both axes (the y name stands on top, to be read without turning)."""
    marks = [line(plot.left, plot.y(y), plot.right, plot.y(y), "grid") for y in ys]
    marks += [text(plot.left - 6, plot.y(y) + 3.5, tick(y, ys), anchor="end") for y in ys]
    marks += [text(plot.x(x), plot.bottom + 15, words.power(x) if log_x else tick(x, xs)) for x in xs]
    marks.append(line(plot.left, plot.bottom, plot.right, plot.bottom, "axis"))
    marks.append(text((plot.left + plot.right) / 2, plot.bottom + 31, x_label))
    marks.append(text(plot.left - 30, plot.top - 9, y_label, anchor="start"))
    return marks


def tick(value: float, others: Sequence[float]) -> str:
    """Write a tick with the digits that its neighbours need."""
    step = min((abs(b - a) for a, b in itertools.pairwise(others)), default=abs(value) or 1.0)
    largest = max((abs(other) for other in others), default=0.0)
    if largest >= 1e5 or (0 < largest < 1e-3):
        return words.plain(value)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return f"{value:,.{min(digits, 6)}f}".replace("-", "−")
