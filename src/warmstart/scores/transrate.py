"""TransRate: mutual information of features and classes, entropies replaced by coding rates.

Huang et al., 2022, arXiv 2106.09362: R(Z, ε) - R(Z, ε | Y), where R(Z, ε) = ½ log det(I + ZᵀZ / (N ε)) for centred
features Z, and R(Z, ε | Y) = Σ_c (N_c / N) R(Z_c, ε), Z_c the rows of class c. Where we differ: from the listing in the
paper, which gives all classes the same weight; the weights N_c / N are what the authors' own repository has. That also
scales rows to length 1, here an option, since it ranked backbones worse (docs/guide/scores.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from warmstart.errors import RecipeError
from warmstart.scores import CLASSES, Evidence, Kind, Need

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class TransRate:
    """How many more nats all features take to code than those of each class by itself.

    Needs:
        Features; one class per example; more examples per class than features. With fewer, the number of features
        decides and not what they tell.

    Relations:
        `h_score` also compares the spread between classes with the whole, without a distortion to choose.

    Cost:
        The determinant of one N × N matrix and of one per class, under a second for 1,000 examples.
    """

    epsilon: float = 1e-4
    """Distortion that the code allows, as a variance: directions with less do not count."""
    unit_rows: bool = False
    """Scale each centred row to length 1. Without it the value depends on the unit of the features."""

    needs: ClassVar[tuple[Need, ...]] = ("features",)
    kinds: ClassVar[tuple[Kind, ...]] = CLASSES
    cost: ClassVar[str] = "one N × N determinant, and one per class"

    def __post_init__(self) -> None:
        if self.epsilon <= 0:
            raise RecipeError(f"score transrate has epsilon={self.epsilon} (expected more than 0)", "epsilon=1e-4")

    def value(self, evidence: Evidence, *, seed: int = 0) -> float:
        """Return the difference of coding rates, in nats."""
        import numpy as np

        rows = evidence.x - evidence.x.mean(axis=0)
        if self.unit_rows:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        parts = [rows[evidence.targets == c] for c in range(int(evidence.targets.max()) + 1)]
        within = sum(len(part) / len(rows) * coding_rate(part, self.epsilon) for part in parts)
        return float(coding_rate(rows, self.epsilon) - within)


def coding_rate(rows: np.ndarray, epsilon: float) -> float:
    """Return ½ log det(I + ZᵀZ / (N ε)), by whichever Gram matrix is smaller."""
    import numpy as np

    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return 0.5 * float(np.linalg.slogdet(np.eye(len(gram)) + gram / (len(rows) * epsilon))[1])


PLUGIN = TransRate
