"""LEEP: how likely the targets are under a classifier that only looks at the source model's class probabilities.

Nguyen, Hassner, Archambeau & Seeger, 2020, arXiv 2002.12462, eq. 2: (1/N) Σ_i log Σ_z P(y_i | z) θ(x_i)_z, where θ(x)_z
is the probability of source class z and P(y | z) the empirical P(y, z) = (1/N) Σ_{i: y_i = y} θ(x_i)_z divided by P(z).
Where we differ: source classes that get no probability at all are left out instead of dividing by zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from warmstart.scores import CLASSES, Evidence, Kind, Need

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Leep:
    """Mean log-likelihood of the targets given the source model's own classes.

    Needs:
        Weights that came with a classifier; one class per example.

    Relations:
        `nce` uses only the most probable source class; `nleep` puts clusters of the features in their place, and needs
        no classifier.

    Cost:
        N · Z · C multiplications for Z source classes, a few milliseconds.
    """

    needs: ClassVar[tuple[Need, ...]] = ("source_probabilities",)
    kinds: ClassVar[tuple[Kind, ...]] = CLASSES
    cost: ClassVar[str] = "N · Z · C multiplications for Z source classes"

    def value(self, evidence: Evidence, *, seed: int = 0) -> float:
        """Return the mean over examples."""
        return float(self.per_example(evidence).mean())

    def per_example(self, evidence: Evidence, *, seed: int = 0) -> np.ndarray:
        """Return log-likelihoods."""
        from warmstart.scores._shared import log_likelihood

        assert evidence.source_probabilities is not None
        return log_likelihood(evidence.source_probabilities.astype("float64"), evidence.columns)


PLUGIN = Leep
