"""Resampling weights and intervals: how sure a number is that came from a sample of examples.

Resampling is stratified by class and draws whole groups, as the splits were made. From the n units of a stratum it
draws n - 1 and weighs them n / (n - 1) (Rao and Wu 1988, Resampling Inference With Complex Survey Data, JASA 83), so
that the spread is right for small strata too, where the plain bootstrap's is too small by (n - 1) / n. Strata of one
unit have no spread of their own and are joined with others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from warmstart.runtime import rng

if TYPE_CHECKING:
    from warmstart.data import TargetKind
    from warmstart.metrics import Scale

LEVEL = 0.95
EPS = 1e-12
BLOCK_CELLS = 1 << 20
"""Weights held at once: 8 MB, about what the caches of a processor hold."""


@dataclass(frozen=True)
class Design:
    """What is drawn: units (examples or groups) within strata.

    Shape:
        unit_of: int64 (N,), the unit of each example.
        strata: unit numbers of each stratum, at least two in each unless there is only one unit.
    """

    unit_of: np.ndarray
    strata: tuple[np.ndarray, ...]

    @property
    def num_units(self) -> int:
        """Count the units."""
        return sum(len(stratum) for stratum in self.strata)

    @property
    def freedom(self) -> int:
        """Count units less strata, at least 1: how much the spread itself can be trusted."""
        return max(self.num_units - len(self.strata), 1)


def design(kind: TargetKind, targets: np.ndarray, groups: np.ndarray | None) -> Design:
    """Decide what is drawn: groups where there are any, stratified by class where units have one class each."""
    if groups is None:
        unit_of = np.arange(len(targets))
    else:
        _, unit_of = np.unique(groups, return_inverse=True)
    num_units = int(unit_of.max()) + 1 if len(unit_of) else 0
    label_of = np.zeros(num_units, dtype=np.int64)
    if kind == "single":
        label_of[unit_of] = targets
        if not (label_of[unit_of] == targets).all():  # groups of mixed class cannot be drawn by class
            label_of[:] = 0
    strata = [np.flatnonzero(label_of == label) for label in np.unique(label_of)]
    return Design(unit_of, _joined(strata))


def weights(drawn: Design, *, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Yield the weights of all resamples in blocks.

    Shape:
        float64 (N, R'), the R' of all blocks adding up to `resamples`.
    """
    block = max(8, BLOCK_CELLS // max(len(drawn.unit_of), 1))
    for start in range(0, resamples, block):
        width = min(block, resamples - start)
        generator = rng(seed, "bootstrap", start)
        counts = np.empty((drawn.num_units, width))
        for stratum in drawn.strata:
            counts[stratum] = _draw(generator, len(stratum), width)
        yield counts if len(drawn.unit_of) == drawn.num_units else counts[drawn.unit_of]


def interval(value: float, replicates: np.ndarray, *, scale: Scale, n: float, freedom: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of a metric from its bootstrap replicates.

    The bootstrap says how large the spread is; the scale says how it lies about the value, which percentiles get wrong
    on few examples (docs/decisions/0610-intervals.md): Wilson's interval with as many examples as would give the same
    spread for a share of 1, the logarithm for losses and for 1 - R². An expected calibration error is too large on
    a resample by as much as it is too large on the sample, so its interval is mirrored about the value.

    Args:
        value: The metric on all examples.
        replicates: The metric on each resample, NaN where it is not defined.
        scale: What values the metric takes.
        n: Number of examples that the metric rests on; decides where all resamples agree, as when all are right.
        freedom: Units less strata, `Design.freedom`: few groups give a spread that is itself unsure. 0 means many.

    Shape:
        replicates: float64 (R,).
    """
    seen = replicates[np.isfinite(replicates)]
    spread = float(seen.std()) if len(seen) > 1 else 0.0
    width = _quantile(freedom)
    if scale == "share":
        inside = spread > EPS and EPS < value < 1 - EPS
        effective = value * (1 - value) / (spread * width / _quantile(0)) ** 2 if inside else n
        return wilson(value, effective)
    if spread <= EPS * abs(value):
        return value, value
    if scale == "positive":
        return _log_interval(value, width * spread)
    if scale == "below_one":
        low, high = _log_interval(1 - value, width * spread) if value < 1 else (0.0, 0.0)
        return 1 - high, 1 - low
    low, high = percentile(seen)
    if scale == "bias":
        return max(0.0, min(value, 2 * value - high)), max(value, 2 * value - low)
    return low, high


def percentile(replicates: np.ndarray) -> tuple[float, float]:
    """Return the middle 95 % of the replicates."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a share of 1 seen on n examples; n may be an effective number.

    Example:
        >>> low, high = wilson(1.0, 10)
        >>> round(low, 3), round(high, 3)
        (0.722, 1.0)
    """
    z = _quantile(0)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _log_interval(value: float, half: float) -> tuple[float, float]:
    factor = float(np.exp(min(half / value, 50.0)))
    return value / factor, value * factor


def _quantile(freedom: int) -> float:
    """Return how many spreads a two-sided 95 % interval reaches: Student's t, or normal for 0 degrees of freedom."""
    tail = 0.5 + LEVEL / 2
    if not freedom:
        return NormalDist().inv_cdf(tail)
    from scipy.special import stdtrit

    return float(stdtrit(freedom, tail))


def _joined(strata: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Join strata of one unit with each other, and a single one left over with the smallest other stratum."""
    alone = [stratum for stratum in strata if len(stratum) == 1]
    rest = sorted((stratum for stratum in strata if len(stratum) > 1), key=len)
    if len(alone) == 1 and rest:
        rest[0] = np.concatenate([rest[0], alone[0]])
    elif alone:
        rest.append(np.concatenate(alone))
    return tuple(rest)


def _draw(generator: np.random.Generator, num_units: int, width: int) -> np.ndarray:
    if num_units == 1:
        return np.ones((1, width))
    drawn = generator.integers(0, num_units, size=(num_units - 1, width))
    counts = np.bincount((drawn * width + np.arange(width)).ravel(), minlength=num_units * width)
    return counts.reshape(num_units, width) * (num_units / (num_units - 1))  # (units, R')
