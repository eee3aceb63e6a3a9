"""A linear probe, cross-validated: what a solved head gets right of examples that it has not seen.

Alain & Bengio, 2016, arXiv 1610.01644, for the probe. The head minimises mean cross-entropy + l2/2 ‖W‖² by L-BFGS along
a path of regularisation (Friedman, Hastie & Tibshirani, 2010). Where we differ: the regularisation is chosen on the
same folds, by their log-loss, which flatters every candidate alike by a little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from warmstart.errors import RecipeError
from warmstart.scores import Evidence, Kind, Need

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Logistic:
    """Accuracy, or log-likelihood, of a logistic head in cross-validation.

    Needs:
        Features; more examples than folds.

    Relations:
        `loo_ridge` answers nearly the same question in closed form; the strategy `probe` is this head, kept.

    Cost:
        One path of logistic solutions per fold, about a second for 400 examples of 1,280 features and 10 classes.
    """

    folds: int = 5
    """How many parts the examples are cut into, each held out once."""
    by: Literal["accuracy", "log_loss"] = "accuracy"
    """Share of examples that are right, or their mean log-likelihood, which notices how sure the head is."""

    needs: ClassVar[tuple[Need, ...]] = ("features",)
    kinds: ClassVar[tuple[Kind, ...]] = ("single", "multi")
    cost: ClassVar[str] = "one path of logistic solutions per fold"

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise RecipeError(f"score logistic has folds={self.folds} (expected at least 2)", "folds=5")

    def value(self, evidence: Evidence, *, seed: int = 0) -> float:
        """Return the mean over examples."""
        return float(self.per_example(evidence, seed=seed).mean())

    def per_example(self, evidence: Evidence, *, seed: int = 0) -> np.ndarray:
        """Return hits, or log-likelihoods, of the head that did not see the example."""
        import numpy as np
        from scipy.special import expit, log_expit, log_softmax

        from warmstart import heads
        from warmstart.scores._shared import agreement

        columns = evidence.columns
        assert evidence.features is not None
        link: Literal["softmax", "sigmoid"] = "softmax" if evidence.kind == "single" else "sigmoid"
        outputs = heads.solve(
            link,
            evidence.features.astype(np.float32),
            columns.astype(np.float32),
            train=np.arange(len(columns)),
            folds=_folds(evidence, min(self.folds, len(columns)), seed),
        ).out_of_fold.astype(np.float64)
        if self.by == "accuracy":
            return agreement(outputs if link == "softmax" else expit(outputs), evidence, by_hits=True)
        if link == "softmax":
            return (columns * log_softmax(outputs, axis=1)).sum(axis=1)
        return (columns * log_expit(outputs) + (1.0 - columns) * log_expit(-outputs)).mean(axis=1)


def _folds(evidence: Evidence, num_folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Deal the examples of each class round the folds, in an order that the seed gives."""
    import numpy as np

    from warmstart import runtime

    num = len(evidence.targets)
    order = runtime.rng(seed, "score folds").permutation(num)
    if evidence.kind == "single":
        order = order[np.argsort(evidence.targets[order], kind="stable")]
    fold = np.empty(num, np.int64)
    fold[order] = np.arange(num) % num_folds
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(num_folds)]


PLUGIN = Logistic
