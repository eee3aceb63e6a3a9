"""H-score: how much of the features' variation lies between classes, in units of their covariance.

Bao et al., 2019, An Information-Theoretic Approach to Transferability in Task Transfer Learning (ICIP): tr(Σ⁻¹ Σ_B), Σ
the covariance of the features and Σ_B that of the class means. Ibrahim, Ponomareva & Mazumder, 2021, arXiv 2110.06893:
(1 - a) tr(Σ_a⁻¹ Σ_B) with Ledoit and Wolf's shrunk estimate Σ_a = (1 - a) Σ + a μ I, since few examples of many
features make the first one meaningless. Where we differ: in the arithmetic only, which goes through at most N principal
components and not through D × D matrices; all covariances divide by N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from warmstart.scores import CLASSES, Evidence, Kind, Need

if TYPE_CHECKING:
    import numpy as np

RANK = 1e-10
"""Components whose variance is below this part of the largest count as none."""


@dataclass(frozen=True)
class HScore:
    """Between-class variance of whitened features.

    Needs:
        Features; one class per example.

    Relations:
        `logme` and `loo_ridge` regularise by what fits best instead of by the covariance's own noise.

    Cost:
        One singular value decomposition of N × D, about a second for 1,000 examples of 1,280 features.
    """

    shrinkage: bool = True
    """Shrink the covariance (2110.06893), or take its pseudo-inverse as it is (2019)."""

    needs: ClassVar[tuple[Need, ...]] = ("features",)
    kinds: ClassVar[tuple[Kind, ...]] = CLASSES
    cost: ClassVar[str] = "one singular value decomposition of N × D"

    def value(self, evidence: Evidence, *, seed: int = 0) -> float:
        """Return the trace; 0 for features that do not vary."""
        from warmstart.scores._shared import principal

        features = evidence.x
        components, variance = principal(features)
        alive = variance > max(RANK * float(variance.max()), 1e-300)
        if not alive.any():
            return 0.0
        amount = _shrinkage(components, variance, features.shape[1]) if self.shrinkage else 0.0
        between = _between(components[:, alive], evidence.columns) / len(features)  # (R,)
        shrunk = (1.0 - amount) * variance[alive] + amount * variance.sum() / features.shape[1]
        return float((1.0 - amount) * (between / shrunk).sum())


def _between(components: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return Σ_c n_c m_c², the scatter of class means along each component."""
    sums = columns.T @ components  # (C, R)
    return (sums**2 / columns.sum(axis=0)[:, None]).sum(axis=0)


def _shrinkage(components: np.ndarray, variance: np.ndarray, dim: int) -> float:
    """Return Ledoit and Wolf's amount of shrinkage, 2004, from the principal components (N, R) of D features."""
    num, mean = len(components), float(variance.sum()) / dim
    scatter = float((variance**2).sum())
    away = scatter / dim - mean**2  # of the covariance from μ I
    noise = (float(((components**2).sum(axis=1) ** 2).mean()) - scatter) / (dim * num)
    return min(max(noise, 0.0) / away, 1.0) if away > 0 else 0.0


PLUGIN = HScore
