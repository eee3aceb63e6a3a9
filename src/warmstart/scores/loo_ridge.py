"""Ridge regression on the features, judged by its exact leave-one-out predictions.

Allen's PRESS (1974): with the hat matrix H of the ridge solution, the prediction for an example by the head that did
not see it is y_i - (y_i - ŷ_i) / (1 - H_ii) (Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, 2009,
eq. 7.64), so N refits cost one singular value decomposition. Classes are one-hot columns. Where we differ: means and
scales of the features come from all examples, also for the one that is left out, and the regularisation is the one with
the smallest leave-one-out error, which flatters every candidate alike by a little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from warmstart.scores import EVERYTHING, Evidence, Kind, Need

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class LooRidge:
    """Accuracy, or R² for numbers, of a ridge head on examples that it was not fitted to.

    Needs:
        Features.

    Relations:
        `logistic` fits the loss that a classifier is trained by and is slower; `knn` asks for no line between classes.

    Cost:
        One singular value decomposition of N × D, about a second for 1,000 examples of 1,280 features.
    """

    by: Literal["accuracy", "r2"] = "accuracy"
    """Share of examples whose class has the largest output, or share of the targets' variance that is explained. For
    labels accuracy is taken at 0.5 and averaged. No effect on numbers, which are always judged by R²."""

    needs: ClassVar[tuple[Need, ...]] = ("features",)
    kinds: ClassVar[tuple[Kind, ...]] = EVERYTHING
    cost: ClassVar[str] = "one singular value decomposition of N × D"

    def value(self, evidence: Evidence, *, seed: int = 0) -> float:
        """Return the mean over examples."""
        return float(self.per_example(evidence).mean())

    def per_example(self, evidence: Evidence, *, seed: int = 0) -> np.ndarray:
        """Return hits, or 1 - squared error / variance."""
        import numpy as np

        from warmstart import heads
        from warmstart.scores._shared import agreement

        columns = evidence.columns.astype(np.float32)
        everybody = np.arange(len(columns))
        assert evidence.features is not None
        features = evidence.features.astype(np.float32)
        outputs = heads.solve("identity", features, columns, train=everybody, folds=()).out_of_fold
        return agreement(outputs, evidence, by_hits=self.by == "accuracy")


PLUGIN = LooRidge
