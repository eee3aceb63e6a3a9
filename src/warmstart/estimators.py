"""scikit-learn estimators: the same fine-tuning behind fit, predict and score."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from warmstart import trained, workflow
from warmstart.data import Dataset, Input, read
from warmstart.trained import TrainedModel

Pictures: TypeAlias = "Sequence[Input | str] | np.ndarray"


class _Fitted(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: their parameters, and a fit through `finetune`."""

    model_: TrainedModel

    def __init__(
        self,
        *,
        backbone: str = "package/efficientnet_lite0",
        strategy: str = "probe",
        image_size: int | None = None,
        budget: str | float | None = None,
        seed: int = 0,
        overrides: Mapping[str, object] | None = None,
    ) -> None:
        self.backbone = backbone
        self.strategy = strategy
        self.image_size = image_size
        self.budget = budget
        self.seed = seed
        self.overrides = overrides

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags

    def _tune(self, dataset: Dataset) -> TrainedModel:
        """Fine-tune on all of the dataset but a val; there is no test, since scikit-learn holds its own out."""
        overrides: dict[str, object] = {"data.test_fraction": 0.0, "data.duplicates": "allow"}
        if self.image_size is not None:
            overrides["data.image_size"] = self.image_size
        with tempfile.TemporaryDirectory(prefix="warmstart-") as scratch:
            folder = Path(scratch) / "run"
            workflow.finetune(
                dataset,
                backbone=self.backbone,
                strategy=self.strategy,
                budget=self.budget,
                seed=self.seed,
                overrides={**overrides, **(self.overrides or {})},
                out=folder,
            )
            return trained.load(folder)

    def _values(self, X: Pictures) -> np.ndarray:  # noqa: N803
        check_is_fitted(self)
        return self.model_.predict_proba(X)


class WarmstartClassifier(ClassifierMixin, _Fitted):  # type: ignore[misc]
    """Fine-tune a pretrained backbone to tell classes apart.

    Args:
        backbone: `source/name`, or a folder of weights.
        strategy: Name of a strategy; its options go into `overrides` as `strategy.NAME`.
        image_size: Side in pixels; the weights' own when None.
        budget: Seconds, or words such as `10m`.
        seed: Seed of split, order and head.
        overrides: Any other keys of the recipe.

    Shape:
        X: a list of paths, bytes, arrays or PIL pictures, or uint8 (N, H, W) or (N, H, W, 3). y: (N,).

    Example:
        >>> WarmstartClassifier(image_size=96).fit(paths, labels).score(more, their_labels)  # doctest: +SKIP
        0.91
    """

    classes_: np.ndarray

    def fit(self, X: Pictures, y: Sequence[object] | np.ndarray) -> Self:  # noqa: N803
        """Fine-tune on pictures and their classes.

        Raises:
            WarmstartError: With what to do about it.
            ValueError: `y` is not one class for each picture, as scikit-learn says it.
        """
        labels = column_or_1d(y)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        width = len(str(len(self.classes_)))
        names = [f"{code:0{width}d}" for code in codes]  # equal length, so that their order is that of classes_
        self.model_ = self._tune(read.from_arrays(X, names))
        return self

    def predict_proba(self, X: Pictures) -> np.ndarray:  # noqa: N803
        """Return calibrated probabilities, (N, C) in the order of `classes_`."""
        return self._values(X)

    def predict(self, X: Pictures) -> np.ndarray:  # noqa: N803
        """Return the likeliest class of each picture."""
        values = self._values(X)
        return np.asarray(self.classes_[values.argmax(axis=1)])


class WarmstartRegressor(RegressorMixin, _Fitted):  # type: ignore[misc]
    """Fine-tune a pretrained backbone to predict numbers; arguments are those of `WarmstartClassifier`.

    Shape:
        X: as for the classifier. y: float (N,) or (N, K).
    """

    def fit(self, X: Pictures, y: Sequence[float] | np.ndarray) -> Self:  # noqa: N803
        """Fine-tune on pictures and their numbers.

        Raises:
            WarmstartError: With what to do about it.
        """
        self.model_ = self._tune(read.from_arrays(X, np.asarray(y, np.float64)))
        return self

    def predict(self, X: Pictures) -> np.ndarray:  # noqa: N803
        """Return the predicted numbers, (N,) or (N, K)."""
        values = self._values(X)
        return values[:, 0] if self.model_.task.kind == "scalar" else values
