"""The nearest neighbours' vote, each example left out of its own.

Cover & Hart, 1967; as a measure of features Wu et al., 2018, arXiv 1805.01978, and DINO, Caron et al., 2021, arXiv
2104.14294. Where we differ: all of the evidence is memory and test at once, by leaving out; votes count alike, and a
tie goes to the class that has the nearest of the voters that tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from warmstart.errors import RecipeError
from warmstart.scores import EVERYTHING, Evidence, Kind, Need

if TYPE_CHECKING:
    import numpy as np

BLOCK = 1024
"""Rows whose distances are held at a time."""
TIE = 1e-3
"""What the nearest vote counts more, far below one vote."""


@dataclass(frozen=True)
class Knn:
    """Accuracy, or R² for numbers, of the k nearest other examples.

    Needs:
        Features.

    Relations:
        `loo_ridge` draws straight lines between classes; this one asks only that like lies beside like.

    Cost:
        N² · D multiplications, well under a second for 1,000 examples.
    """

    k: int = 5
    """Neighbours that vote."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """Which examples are near: those in the same direction, or those at a small distance."""

    needs: ClassVar[tuple[Need, ...]] = ("features",)
    kinds: ClassVar[tuple[Kind, ...]] = EVERYTHING
    cost: ClassVar[str] = "N² · D multiplications"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise RecipeError(f"score knn has k={self.k} (expected at least 1)", "k=5")

    def value(self, evidence: Evidence, *, seed: int = 0) -> float:
        """Return the mean over examples."""
        return float(self.per_example(evidence).mean())

    def per_example(self, evidence: Evidence, *, seed: int = 0) -> np.ndarray:
        """Return hits, or 1 - squared error / variance."""
        import numpy as np

        from warmstart.scores._shared import agreement

        near = neighbours(evidence.x, min(self.k, len(evidence.targets) - 1), self.metric)
        votes = np.ones(near.shape[1])
        if evidence.kind == "single":
            votes += TIE * 0.5 ** np.arange(near.shape[1])  # halves, so that no two sets of ranks weigh the same
        outputs = np.einsum("k,nkc->nc", votes / votes.sum(), evidence.columns[near])
        return agreement(outputs, evidence, by_hits=evidence.kind in ("single", "multi"))


def neighbours(features: np.ndarray, k: int, metric: str) -> np.ndarray:
    """Return the k nearest other rows of each row, the nearest first, int64 (N, k)."""
    import numpy as np

    if metric == "cosine":
        features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    squares = (features**2).sum(axis=1)
    found = []
    for start in range(0, len(features), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(features)))
        distances = squares[rows, None] + squares - 2.0 * features[rows] @ features.T  # (B, N)
        distances[np.arange(len(rows)), rows] = np.inf
        found.append(np.argsort(distances, axis=1, kind="stable")[:, :k])
    return np.concatenate(found)


PLUGIN = Knn
