"""GBC: how much the classes overlap when each is a Gaussian in feature space.

Pándy et al., 2022, arXiv 2111.12780: -Σ_{a ≠ b} exp(-D_B(a, b)), with the Bhattacharyya distance of two Gaussians
D_B = ⅛ (μ_a - μ_b)ᵀ Σ⁻¹ (μ_a - μ_b) + ½ log(|Σ| / √(|Σ_a| |Σ_b|)), Σ = (Σ_a + Σ_b) / 2, on 64 principal components with
spherical or diagonal covariances. Where we differ: diagonal by default, which ranked backbones better
(docs/guide/scores.md); the published code counts the logarithm of a spherical variance once and not once per dimension;
and the smallest variance is a part of the mean one instead of 1e-4, so that the unit of features does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from warmstart.errors import RecipeError
from warmstart.scores import CLASSES, Evidence, Kind, Need

if TYPE_CHECKING:
    import numpy as np

FLOOR = 1e-4
"""Smallest variance, as a part of the mean variance of the components."""


@dataclass(frozen=True)
class Gbc:
    """Minus the overlap of the classes' Gaussians; 0 when none overlap.

    Needs:
        Features; one class per example; some examples in each.

    Relations:
        `h_score` has one covariance for all classes; this one has its own for each.

    Cost:
        One singular value decomposition of N × D, then C² distances.
    """

    dims: int = 64
    """Principal components that are kept."""
    covariance: Literal["diagonal", "spherical"] = "diagonal"
    """Shape of each Gaussian; `spherical` is the default of the published code."""

    needs: ClassVar[tuple[Need, ...]] = ("features",)
    kinds: ClassVar[tuple[Kind, ...]] = CLASSES
    cost: ClassVar[str] = "one singular value decomposition of N × D, then C² distances"

    def __post_init__(self) -> None:
        if self.dims < 1:
            raise RecipeError(f"score gbc has dims={self.dims} (expected at least 1)", "dims=64")

    def value(self, evidence: Evidence, *, seed: int = 0) -> float:
        """Return minus the sum of Bhattacharyya coefficients over ordered pairs of classes."""
        import numpy as np

        from warmstart.scores._shared import principal

        components = principal(evidence.x)[0][:, : self.dims]
        parts = [components[evidence.targets == c] for c in range(int(evidence.targets.max()) + 1)]
        means = np.stack([part.mean(axis=0) for part in parts])  # (C, R)
        variances = np.stack([part.var(axis=0) for part in parts])
        if self.covariance == "spherical":
            variances = np.broadcast_to(variances.mean(axis=1, keepdims=True), variances.shape)
        floor = max(FLOOR * float(components.var(axis=0).mean()), 1e-300)
        overlap = np.exp(-bhattacharyya(means, np.maximum(variances, floor)))
        return -float(overlap.sum() - np.trace(overlap))


def bhattacharyya(means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Return the distances between axis-aligned Gaussians, (C, R) and (C, R) → float64 (C, C)."""
    import numpy as np

    middle = (variances[:, None] + variances) / 2  # (C, C, R)
    apart = ((means[:, None] - means) ** 2 / middle).sum(axis=2) / 8
    shape = (np.log(middle) - (np.log(variances)[:, None] + np.log(variances)) / 2).sum(axis=2) / 2
    return apart + shape


PLUGIN = Gbc
