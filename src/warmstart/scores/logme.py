"""LogME: the logarithm of the maximum evidence of the targets given the features.

You, Liu, Wang & Long, 2021, arXiv 2102.11005: y ~ N(F w, 1/β) with w ~ N(0, 1/α); the score is the maximum over α and
β of log p(y | F, α, β) / N, averaged over one-vs-rest columns, or over the columns of numbers. You et al., 2022, arXiv
2110.10545, prove when the fixed-point iteration over (α, β) converges.

Where we differ: for a given t = α/β the best β is known in closed form, so what is left is a maximum along one line,
which we search; its stationary points are the fixed points of the iteration, and it needs no rule for stopping (the
published code stops after 11 steps, and adds 1e-5 to what it divides by). The published fast version counts ½ log α for
all D features but log(α + βσ²) only for the first min(N, D); the evidence has both for all D. t stays within 1e-6 … 1e6
of the mean squared singular value, so that columns that the features fit exactly have a value too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from warmstart.scores import EVERYTHING, Evidence, Kind, Need

if TYPE_CHECKING:
    import numpy as np

DECADES = 6.0
"""t is searched this many powers of ten around the mean variance."""
GRID, ROUNDS = 25, 6
"""Each round looks at so many values of t and goes on around the best; six leave log t known to about 1e-6."""
FLOOR = 1e-12
"""Smallest noise variance, as a part of the column's mean square."""


@dataclass(frozen=True)
class LogMe:
    """Log evidence per example of a Bayesian linear model on the features.

    Needs:
        Features.

    Relations:
        `loo_ridge` judges the same linear model by what it says of examples left out, instead of by its evidence.

    Cost:
        One singular value decomposition of N × D, about a second for 1,000 examples of 1,280 features.
    """

    needs: ClassVar[tuple[Need, ...]] = ("features",)
    kinds: ClassVar[tuple[Kind, ...]] = EVERYTHING
    cost: ClassVar[str] = "one singular value decomposition of N × D"

    def value(self, evidence: Evidence, *, seed: int = 0) -> float:
        """Return the mean over columns of the maximum log evidence per example."""
        return float(log_evidence(evidence.x, evidence.columns).mean())


def log_evidence(features: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the maximum over α and β of log p(y | F, α, β) / N for each column.

    Shape:
        features: float64 (N, D). columns: float64 (N, C) → float64 (C,).
    """
    import numpy as np

    left, values, _ = np.linalg.svd(features, full_matrices=False)
    spectrum = values**2  # (R,)
    power = (left.T @ columns) ** 2  # (R, C)
    rest = np.maximum((columns**2).sum(axis=0) - power.sum(axis=0), 0.0)
    unit = max(float(spectrum.mean()), np.finfo(np.float64).tiny)
    best = np.zeros(columns.shape[1])
    width = DECADES * np.log(10.0)
    for _ in range(ROUNDS):
        tried = best[:, None] + np.linspace(-width, width, GRID)  # (C, G)
        tried = np.clip(tried, -DECADES * np.log(10.0), DECADES * np.log(10.0))
        found = np.stack([_profile(spectrum, power, rest, len(columns), unit * np.exp(t)) for t in tried.T], axis=1)
        pick = found.argmax(axis=1)
        best, width = tried[np.arange(len(best)), pick], 2.0 * width / (GRID - 1)
    return found.max(axis=1)


def _profile(spectrum: np.ndarray, power: np.ndarray, rest: np.ndarray, num: int, ratio: np.ndarray) -> np.ndarray:
    """Return the log evidence per example at α/β = ratio with the best β: y ~ N(0, (I + F Fᵀ / ratio) / β)."""
    import numpy as np

    spread = 1.0 + spectrum[:, None] / ratio  # (R, C)
    mean_square = (power.sum(axis=0) + rest) / num
    noise = np.maximum(((power / spread).sum(axis=0) + rest) / num, FLOOR * np.maximum(mean_square, 1e-300))
    return -0.5 * (np.log(2 * np.pi * noise) + 1.0 + np.log(spread).sum(axis=0) / num)


PLUGIN = LogMe
