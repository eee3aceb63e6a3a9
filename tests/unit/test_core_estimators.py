"""The scikit-learn estimators, used the way scikit-learn uses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from warmstart import WarmstartClassifier, WarmstartRegressor
from warmstart.errors import RecipeError

TINY = {"backbone": "random/test_resnet", "image_size": 32, "overrides": {"data.workers": 1}}
SHADES = np.array([40, 120, 200])


def classifier(**given: object) -> WarmstartClassifier:
    return WarmstartClassifier(**{**TINY, **given})


def regressor(**given: object) -> WarmstartRegressor:
    return WarmstartRegressor(**{**TINY, **given})


def shades(num: int = 45, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of three shades of grey, with noise."""
    rng = np.random.default_rng(seed)
    codes = np.arange(num) % 3
    noise = rng.integers(-30, 31, (num, 20, 20, 3))
    return np.clip(SHADES[codes][:, None, None, None] + noise, 0, 255).astype(np.uint8), codes


@pytest.mark.parametrize("make", [classifier, regressor])
def test_parameters_are_those_of_scikit_learn(make: Callable[..., BaseEstimator]) -> None:
    model = make(seed=3, budget="1m")
    copy = clone(model)
    assert copy is not model and copy.get_params() == model.get_params()
    assert copy.set_params(strategy="full", seed=4).get_params()["strategy"] == "full"
    assert model.get_params()["seed"] == 3
    assert set(model.get_params()) == {"backbone", "strategy", "image_size", "budget", "seed", "overrides"}
    with pytest.raises(ValueError, match="Invalid parameter 'epochs'"):
        model.set_params(epochs=3)
    assert "seed=3" in repr(model)


CHECKS = (
    estimator_checks.check_no_attributes_set_in_init,
    estimator_checks.check_parameters_default_constructible,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_set_params,
    estimator_checks.check_estimator_repr,
    estimator_checks.check_estimator_cloneable,
    estimator_checks.check_estimator_tags_renamed,
    estimator_checks.check_valid_tag_types,
    estimator_checks.check_mixin_order,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", [classifier, regressor])
def test_checks_of_scikit_learn_that_do_not_fit_tables(
    make: Callable[..., BaseEstimator], check: Callable[[str, BaseEstimator], None]
) -> None:
    """Most of its checks fit tables of numbers, which are no pictures; these are about the estimator itself."""
    model = make()
    check(type(model).__name__, model)


def test_it_is_known_for_what_it_is() -> None:
    assert is_classifier(classifier()) and not is_regressor(classifier())
    assert is_regressor(regressor()) and not is_classifier(regressor())
    assert classifier().__sklearn_tags__().input_tags.three_d_array


@pytest.mark.parametrize("make", [classifier, regressor])
def test_nothing_is_predicted_before_fit(make: Callable[..., BaseEstimator]) -> None:
    with pytest.raises(NotFittedError):
        make().predict(shades()[0])


@pytest.mark.parametrize(
    "names",
    [
        np.array(["b", "a", "c"]),
        np.array([10, 9, -1]),
        np.array([2.0, 0.0, 1.0]),
        np.array([True, False, False]),
        np.array([f"class {at}" for at in (10, 9, 100)], dtype=object),
    ],
    ids=["words", "integers", "floats", "bools", "objects"],
)
def test_classes_are_given_back_as_they_came(names: np.ndarray) -> None:
    pixels, codes = shades()
    model = classifier().fit(pixels, names[codes])
    assert model.classes_.tolist() == sorted(set(names.tolist()))
    assert model.classes_.dtype == names.dtype
    more, their = shades(9, seed=1)
    assert model.predict(more).tolist() == names[their].tolist()
    assert model.predict(more).dtype == names.dtype
    assert model.score(more, names[their]) == 1.0
    values = model.predict_proba(more)
    np.testing.assert_allclose(values.sum(1), 1.0, atol=1e-5)
    assert (model.classes_[values.argmax(1)] == names[their]).all()


def test_more_than_ten_classes_keep_their_order() -> None:
    codes = np.arange(60) % 12
    pixels = np.clip(codes[:, None, None, None] * 20 + np.random.default_rng(0).integers(0, 9, (60, 20, 20, 3)), 0, 255)
    model = classifier().fit(pixels.astype(np.uint8), codes)
    assert model.classes_.tolist() == list(range(12))
    assert model.model_.task.class_names == tuple(f"{at:02d}" for at in range(12))
    assert model.score(pixels.astype(np.uint8), codes) > 0.9


def test_fit_returns_itself_and_repeats_itself() -> None:
    pixels, codes = shades()
    model, other = classifier(), classifier()
    assert model.fit(pixels, codes) is model
    assert model.predict_proba(pixels).tobytes() == other.fit(pixels, codes).predict_proba(pixels).tobytes()
    assert model.fit(pixels, 2 - codes).predict(pixels[:3]).tolist() == [2, 1, 0], "the second fit forgets the first"


def test_fit_leaves_no_run_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    classifier().fit(*shades())
    assert not list(tmp_path.glob("runs"))


def test_paths_and_pictures_are_inputs_too(tmp_path: Path) -> None:
    pixels, codes = shades()
    files = []
    for row, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{row}.png")
        files.append(str(tmp_path / f"{row}.png"))
    model = classifier().fit(files, codes)
    assert model.predict([Image.fromarray(pixels[1]), files[2], pixels[0]]).tolist() == [1, 2, 0]


def test_cross_validation_grid_search_and_pipelines() -> None:
    pixels, codes = shades(60)
    assert cross_val_score(classifier(), pixels, codes, cv=2).tolist() == [1.0, 1.0]
    pipeline = Pipeline([("flip", FunctionTransformer(np.flip, kw_args={"axis": 2})), ("model", classifier())])
    assert pipeline.fit(pixels, codes).score(pixels, codes) == 1.0
    search = GridSearchCV(classifier(), {"image_size": [16, 32]}, cv=2, error_score="raise").fit(pixels, codes)
    assert search.best_score_ == 1.0


def test_duplicates_do_not_stop_a_fit() -> None:
    """scikit-learn holds its own test out, and resampling with repeats is its users' right."""
    pixels, codes = shades()
    assert classifier().fit(np.concatenate([pixels, pixels]), np.tile(codes, 2)).score(pixels, codes) == 1.0


def test_a_scalar_is_predicted() -> None:
    pixels, codes = shades(60)
    model = regressor().fit(pixels, SHADES[codes])
    more, their = shades(12, seed=1)
    assert model.predict(more).shape == (12,)
    assert model.score(more, SHADES[their]) > 0.9
    assert np.abs(model.predict(more) - SHADES[their]).mean() < 20, "in the units of the targets"


def test_integers_are_numbers_to_a_regressor() -> None:
    pixels, codes = shades(60)
    assert regressor().fit(pixels, codes).model_.task.kind == "scalar"


@pytest.mark.parametrize("columns", [1, 2])
def test_a_vector_is_predicted(columns: int) -> None:
    pixels, codes = shades(60)
    targets = np.stack([SHADES[codes], -1000.0 * codes], 1)[:, :columns]
    model = regressor().fit(pixels, targets)
    assert model.predict(pixels).shape == (60, columns)
    assert model.score(pixels, targets) > 0.9


def test_overrides_reach_the_recipe_and_win() -> None:
    model = classifier(overrides={"data.image_size": 64, "strategy.head": "gradient", "epochs": 1}).fit(*shades())
    assert model.model_.framing.image_size == 64
    with pytest.raises(RecipeError, match=r"unknown key 'optim\.lrr'"):
        classifier(overrides={"optim.lrr": 1}).fit(*shades())


def test_labels_that_are_no_classes_are_refused_as_scikit_learn_does() -> None:
    pixels, codes = shades()
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        classifier().fit(pixels, codes + 0.5)
    with pytest.raises(ValueError, match="y should be a 1d array"):
        classifier().fit(pixels, np.stack([codes, codes], 1))
    assert classifier().fit(pixels, codes[:, None]).classes_.tolist() == [0, 1, 2]


def test_inputs_and_labels_of_unequal_number() -> None:
    pixels, codes = shades()
    with pytest.raises(Exception, match="45 inputs, but 44 targets"):
        classifier().fit(pixels, codes[:-1])
