"""NLEEP: LEEP with clusters of the target features in the place of source classes.

Li et al., 2021, Ranking Neural Checkpoints, arXiv 2011.11200: principal components that hold 80 % of the features'
variance, a mixture of Gaussians on them with five Gaussians per class, and LEEP of the mixture's posteriors. Where we
differ: never more Gaussians than a quarter of the examples, and components are scaled to total variance 1, so that the
constant that keeps covariances regular means the same for every backbone.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from warmstart.scores import CLASSES, Evidence, Kind, Need

if TYPE_CHECKING:
    import numpy as np

ROWS_EACH = 4
"""Examples per component, at least."""


@dataclass(frozen=True)
class Nleep:
    """Mean log-likelihood of the targets given clusters of the features.

    Needs:
        Features; one class per example; some dozens of examples per class.

    Relations:
        `leep` where the weights came with a classifier; `knn` also asks whether like lies beside like, and leaves out.

    Cost:
        A Gaussian mixture by expectation-maximisation, seconds for 1,000 examples: the slowest of the scores.
    """

    variance: float = 0.8
    """Share of the variance that the principal components keep."""
    per_class: int = 5
    """Gaussians per class."""
    covariance: Literal["full", "diag", "spherical"] = "full"
    """Shape of each Gaussian; `diag` is faster where the features have many components."""

    needs: ClassVar[tuple[Need, ...]] = ("features",)
    kinds: ClassVar[tuple[Kind, ...]] = CLASSES
    cost: ClassVar[str] = "a Gaussian mixture with five components per class"

    def value(self, evidence: Evidence, *, seed: int = 0) -> float:
        """Return the mean over examples."""
        return float(self.per_example(evidence, seed=seed).mean())

    def per_example(self, evidence: Evidence, *, seed: int = 0) -> np.ndarray:
        """Return log-likelihoods."""
        from warmstart.scores._shared import log_likelihood, principal

        columns = evidence.columns
        components = _leading(*principal(evidence.x), self.variance)
        wanted = min(self.per_class * columns.shape[1], max(1, len(columns) // ROWS_EACH))
        return log_likelihood(_posteriors(components, wanted, self.covariance, seed), columns)


def _leading(components: np.ndarray, variance: np.ndarray, share: float) -> np.ndarray:
    """Return the leading components that hold this share of the variance, scaled to total variance 1."""
    import numpy as np

    held = np.cumsum(variance)
    kept = int(np.searchsorted(held, share * held[-1])) + 1
    return components[:, :kept] / np.sqrt(max(float(held[-1]), 1e-300))


def _posteriors(components: np.ndarray, num: int, covariance: str, seed: int) -> np.ndarray:
    """Fit the mixture and return the probability of each Gaussian for each row, float64 (N, num)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(num, covariance_type=covariance, random_state=seed % 2**32, reg_covar=1e-6)
    with warnings.catch_warnings():
        # Where it stops is as good a clustering as any; equal rows leave clusters empty, which is no fault either.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(components).predict_proba(components)


PLUGIN = Nleep
