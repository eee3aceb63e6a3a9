"""Intervals, tables, calibration: closed forms, scikit-learn and scipy as oracles, and the degenerate cases."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.stats import binomtest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from warmstart import bootstrap, calibrate
from warmstart.errors import DataError, TrainingError
from warmstart.evaluation import (
    calibration,
    confusion,
    constant,
    metrics,
    per_class,
    reliability,
    without,
    worst,
)
from warmstart.tasks import Metric, Predictions
from warmstart.tasks.classification import Classes
from warmstart.tasks.regression import Numbers

CLASSES = Classes("single", ("ant", "bee", "cat"))
PAIR = Classes("single", ("no", "yes"))
LABELS = Classes("multi", ("red", "big"))
NUMBERS = Numbers("scalar", (), (0.0,), (1.0,))


def softmax(outputs: np.ndarray) -> np.ndarray:
    return np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)


def predictions(num: int = 200, classes: int = 3, seed: int = 0, margin: float = 1.5) -> Predictions:
    rng = np.random.default_rng(seed)
    targets = np.sort(rng.integers(0, classes, num))
    outputs = (rng.normal(size=(num, classes)) + margin * np.eye(classes)[targets]).astype(np.float32)
    return Predictions(outputs, softmax(outputs), np.arange(num) * 2, targets)


def perfect(num: int, classes: int = 2) -> Predictions:
    targets = np.arange(num) % classes
    outputs = (8 * np.eye(classes)[targets] - 4).astype(np.float32)
    return Predictions(outputs, softmax(outputs), np.arange(num), targets)


def labels(num: int = 200, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    targets = rng.random((num, 2)) < [0.3, 0.6]
    outputs = (rng.normal(size=(num, 2)) + 2 * targets - 1).astype(np.float32)
    return Predictions(outputs, 1 / (1 + np.exp(-outputs)), np.arange(num), targets)


def numbers(num: int = 200, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=num)
    values = (targets + 0.5 * rng.normal(size=num)).astype(np.float32)[:, None]
    return Predictions(values, values, np.arange(num), targets)


def named(found: list[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in found}


@pytest.mark.parametrize(
    ("task", "made"), [(CLASSES, predictions()), (LABELS, labels()), (NUMBERS, numbers())], ids=["1", "n", "x"]
)
def test_every_metric_comes_in_order_with_interval_count_and_split(task, made):
    found = metrics(task, made, split="val", seed=0, resamples=200)
    assert [metric.name for metric in found] == [spec.name for spec in task.metrics()]
    for metric in found:
        assert metric.low <= metric.value <= metric.high
        assert metric.low < metric.high
        assert (metric.n, metric.split) == (200, "val")


def test_equal_seeds_give_equal_intervals_and_others_do_not():
    first, again, other = (metrics(CLASSES, predictions(), split="val", seed=s, resamples=200) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_accuracy_interval_is_close_to_the_exact_one_where_classes_are_equally_hard():
    made = predictions(600)
    right = int((made.values.argmax(axis=1) == made.targets).sum())
    exact = binomtest(right, 600).proportion_ci(method="wilson")
    (found,) = metrics(CLASSES, made, split="val", seed=0, resamples=4000, only=("accuracy",))
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.004)


def test_losses_have_the_interval_of_a_mean_on_the_scale_of_logarithms():
    made = numbers(400)
    squares = (made.values[:, 0] - made.targets) ** 2
    spread = squares.std(ddof=1) / np.sqrt(400)
    (found,) = metrics(NUMBERS, made, split="val", seed=0, resamples=8000, only=("mse",))
    half = 1.966 * spread / found.value
    assert (found.low, found.high) == pytest.approx(
        (found.value * math.exp(-half), found.value * math.exp(half)), rel=0.02
    )


@pytest.mark.parametrize(("task", "made"), [(PAIR, perfect(10)), (CLASSES, perfect(12, 3))], ids=["2", "3"])
def test_all_correct_is_not_certainty(task, made):
    found = named(metrics(task, made, split="test", seed=0, resamples=200))
    wilson = binomtest(len(made.index), len(made.index)).proportion_ci(method="wilson")
    assert found["accuracy"].value == 1.0
    assert (found["accuracy"].low, found["accuracy"].high) == pytest.approx((wilson.low, 1.0))
    for name in ("balanced_accuracy", "f1_macro", "auroc", "average_precision"):
        assert found[name].value == pytest.approx(1.0)
        assert 0.5 < found[name].low < 0.9
        assert found[name].high == pytest.approx(1.0)


def test_all_wrong_is_not_certainty_either():
    made = perfect(10)
    made = dataclasses.replace(made, targets=1 - made.targets)
    found = named(metrics(PAIR, made, split="test", seed=0, resamples=200))
    assert (found["accuracy"].low, found["accuracy"].value) == (0.0, 0.0)
    assert found["accuracy"].high == pytest.approx(1 - 0.7225, abs=1e-3)


def test_perfection_rests_on_the_smallest_class():
    targets = np.array([0] * 97 + [1] * 3)
    outputs = (8 * np.eye(2)[targets] - 4).astype(np.float32)
    made = Predictions(outputs, softmax(outputs), np.arange(100), targets)
    found = named(metrics(PAIR, made, split="test", seed=0, resamples=200))
    assert found["accuracy"].low > 0.95
    assert found["balanced_accuracy"].low < 0.8


@pytest.mark.parametrize("num", [1, 2, 3])
def test_tiny_test_sets_give_wide_intervals_and_no_warning(num):
    made = predictions(200).take(np.arange(num))
    found = named(metrics(CLASSES, made, split="test", seed=0, resamples=50))
    assert found["accuracy"].high - found["accuracy"].low > 0.5
    metrics(NUMBERS, numbers().take(np.arange(num)), split="test", seed=0, resamples=50)
    metrics(LABELS, labels().take(np.arange(num)), split="test", seed=0, resamples=50)


def test_a_metric_that_is_not_defined_is_left_out():
    made = predictions(classes=2)
    made = dataclasses.replace(made, targets=np.zeros_like(made.targets))
    found = named(metrics(PAIR, made, split="test", seed=0, resamples=50))
    assert "accuracy" in found
    assert "auroc" not in found


def test_copies_in_a_group_do_not_narrow_the_interval():
    made = predictions(100)
    copies = made.take(np.repeat(np.arange(100), 10))
    grouped = dataclasses.replace(copies, groups=np.repeat(np.arange(100), 10).astype(str))
    widths = [
        named(metrics(CLASSES, some, split="val", seed=0, resamples=2000))["accuracy"]
        for some in (made, grouped, copies)
    ]
    one, all_grouped, naive = (metric.high - metric.low for metric in widths)
    assert all_grouped == pytest.approx(one, rel=0.05)
    assert naive < one / 2.5


def test_strata_keep_their_size_and_groups_stay_whole():
    targets = np.array([0] * 20 + [1] * 10)
    weights = next(bootstrap.weights(bootstrap.design("single", targets, None), seed=0, resamples=100))
    assert weights[:20].sum(axis=0) == pytest.approx(np.full(100, 20))
    assert weights[20:].sum(axis=0) == pytest.approx(np.full(100, 10))
    groups = np.repeat(np.arange(6), 5).astype(str)
    weights = next(bootstrap.weights(bootstrap.design("single", targets, groups), seed=0, resamples=100))
    assert (weights.reshape(6, 5, 100) == weights.reshape(6, 5, 100)[:, :1]).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.booleans())
def test_every_example_is_drawn_and_weights_average_to_one(targets, grouped):
    classes = np.array(targets)
    groups = (np.arange(len(classes)) // 3).astype(str) if grouped else None
    drawn = bootstrap.design("single", classes, groups)
    rows = np.sort(np.concatenate(drawn.strata))
    assert rows.tolist() == list(range(drawn.num_units))
    assert all(len(stratum) > 1 for stratum in drawn.strata) or drawn.num_units == 1
    weights = np.concatenate(list(bootstrap.weights(drawn, seed=0, resamples=3000)), axis=1)
    assert weights.shape == (len(classes), 3000)
    assert weights.mean(axis=1) == pytest.approx(np.ones(len(classes)), abs=0.2)


def test_the_spread_of_a_mean_is_unbiased_in_small_strata():
    values = np.array([0.0, 1.0, 5.0, 2.0, 4.0, 9.0])
    drawn = bootstrap.design("single", np.array([0, 0, 0, 1, 1, 1]), None)
    means = np.concatenate([values @ w / 6 for w in bootstrap.weights(drawn, seed=0, resamples=40_000)])
    expected = (values[:3].var(ddof=1) * 3 + values[3:].var(ddof=1) * 3) / 36
    assert means.var() == pytest.approx(expected, rel=0.05)


def test_intervals_hold_the_truth_of_a_model_that_is_nearly_always_right():
    held = 0
    for seed in range(200):
        hits = np.random.default_rng(seed).random(60) < 0.97
        made = perfect(60)
        made = dataclasses.replace(made, targets=np.where(hits, made.targets, 1 - made.targets))
        (found,) = metrics(PAIR, made, split="test", seed=seed, resamples=100, only=("accuracy",))
        held += found.low <= 0.97 <= found.high
    assert held >= 0.92 * 200  # percentiles alone hold it in 0.80 of the cases


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_is_that_of_scipy(n, share):
    hits = round(share * n)
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert bootstrap.wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_per_class_table_is_that_of_scikit_learn():
    made = predictions()
    rows = per_class(CLASSES, made, split="test", seed=0, resamples=300)
    said = made.values.argmax(axis=1)
    precision, recall, f1, support = sk.precision_recall_fscore_support(made.targets, said)
    assert [row.name for row in rows] == ["ant", "bee", "cat"]
    assert [row.support for row in rows] == support.tolist()
    assert [row.predicted for row in rows] == np.bincount(said).tolist()
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        cells = [getattr(row, name) for row in rows]
        assert [cell.value for cell in cells] == pytest.approx(expected)
        assert all(cell.low < cell.value < cell.high for cell in cells)
    assert rows[0].recall.n == support[0]
    assert per_class(NUMBERS, numbers(), split="test", seed=0) == ()


def test_a_class_that_is_missing_has_no_recall():
    made = predictions().take(np.flatnonzero(predictions().targets < 2))
    missing = per_class(CLASSES, made, split="test", seed=0, resamples=100)[2]
    assert (missing.support, missing.recall, missing.f1) == (0, None, None)
    assert missing.precision.value == 0.0


def test_confusion_is_that_of_scikit_learn():
    made = predictions()
    assert (confusion(CLASSES, made) == sk.confusion_matrix(made.targets, made.values.argmax(axis=1))).all()
    made = labels()
    assert (confusion(LABELS, made) == sk.multilabel_confusion_matrix(made.targets, made.values >= 0.5)).all()


def test_reliability_bins_are_those_of_scikit_learn():
    made = labels(1000)
    bins = reliability(LABELS, made)
    share, confidence = calibration_curve(made.targets.ravel(), made.values.ravel(), n_bins=15)
    assert [b.accuracy for b in bins] == pytest.approx(share)
    assert [b.confidence for b in bins] == pytest.approx(confidence, rel=1e-6)
    assert sum(b.count for b in bins) == 2000
    assert all(b.low <= b.confidence <= b.high for b in bins)


def test_ece_is_the_gap_of_the_reliability_bins():
    made = predictions(1000)
    bins = reliability(CLASSES, made)
    expected = sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / 1000
    assert named(metrics(CLASSES, made, split="val", seed=0, resamples=10))["ece"].value == pytest.approx(expected)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_temperature_is_the_minimum_of_the_likelihood_and_undoes_a_known_one(factor):
    rng = np.random.default_rng(0)
    outputs = 2 * rng.normal(size=(20_000, 4))
    targets = (softmax(outputs).cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    found = calibrate.fit_temperature(outputs * factor, targets)
    assert found == pytest.approx(factor, rel=0.05)
    best = optimize.minimize(lambda t: sk.log_loss(targets, softmax(outputs * factor / t[0])), [1.0], tol=1e-10)
    assert found == pytest.approx(best.x[0], rel=1e-3)


def test_temperature_of_labels_and_of_numbers():
    rng = np.random.default_rng(0)
    outputs = 2 * rng.normal(size=(10_000, 3))
    targets = rng.random((10_000, 3)) < 1 / (1 + np.exp(-outputs))
    assert calibrate.fit_temperature(outputs * 2.5, targets, link="sigmoid") == pytest.approx(2.5, rel=0.05)
    made = calibrate.scaled(labels(), 2.0, link="sigmoid")
    assert made.values == pytest.approx(1 / (1 + np.exp(-labels().outputs / 2)), rel=1e-6)
    made = numbers()
    assert calibrate.fit_temperature(made.outputs, made.targets, link="identity") is None
    assert calibrate.scaled(made, None, link="identity") is made


def test_nothing_wrong_on_val_does_not_make_it_surer():
    made = perfect(10)
    assert calibrate.fit_temperature(made.outputs / 8, made.targets) == 1.0


def test_calibration_before_and_after():
    made = predictions(3000, margin=1.0)
    sharp = calibrate.scaled(made, 1 / 4, link="softmax")
    temperature = calibrate.fit_temperature(sharp.outputs, sharp.targets)
    found = calibration(CLASSES, sharp, temperature, split="test", seed=0, resamples=100)
    assert found.ece_after.value < 0.05 < found.ece_before.value
    assert found.after != found.before
    after = calibrate.scaled(sharp, temperature, link="softmax")
    assert (after.values.argmax(axis=1) == sharp.values.argmax(axis=1)).all()
    assert after.values == pytest.approx(softmax(sharp.outputs / temperature), abs=1e-6)
    assert calibration(NUMBERS, numbers(), None, split="test", seed=0) is None


def test_extreme_outputs_do_not_overflow():
    made = Predictions(np.array([[500.0, -500.0], [-500.0, 500.0]]), np.eye(2), np.arange(2), np.array([0, 0]))
    assert np.isfinite(calibrate.scaled(made, 0.05, link="softmax").values).all()
    assert np.isfinite(calibrate.scaled(made, 0.05, link="sigmoid").values).all()
    assert math.isfinite(calibrate.fit_temperature(made.outputs, made.targets))
    found = named(metrics(PAIR, made, split="test", seed=0, resamples=20))
    assert math.isfinite(found["log_loss"].value)


def test_the_most_confidently_wrong_come_first():
    values = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.05, 0.95]])
    made = Predictions(values, values, np.arange(4), np.array([1, 1, 1, 0]))
    assert worst(PAIR, made).tolist() == [3, 0, 1]
    assert worst(PAIR, made, limit=1).tolist() == [3]
    numeric = Predictions(values[:, :1], values[:, :1], np.arange(4), np.array([0.9, 0.5, 0.2, 1.0]))
    assert worst(NUMBERS, numeric, limit=2).tolist() == [3, 1]


def test_metrics_without_near_duplicates():
    made = predictions()
    rest = without(made, np.array([0, 4, 999]))  # the index counts by twos
    assert len(rest.index) == 198
    assert not {0, 4} & set(rest.index.tolist())
    assert metrics(CLASSES, rest, split="test", seed=0, resamples=10)[0].n == 198


def test_the_constant_answer_is_that_of_a_dummy():
    made = predictions()
    answer = constant(CLASSES, np.array([0, 0, 1, 2]), made)
    assert answer.values[0] == pytest.approx([0.5, 0.25, 0.25])
    found = named(metrics(CLASSES, answer, split="test", seed=0, resamples=20))
    assert found["accuracy"].value == pytest.approx((made.targets == 0).mean())
    assert found["auroc"].value == pytest.approx(0.5)
    assert constant(NUMBERS, np.array([1.0, 3.0]), numbers()).values[0, 0] == 2.0
    assert "spearman" not in named(
        metrics(NUMBERS, constant(NUMBERS, np.array([1.0, 3.0]), numbers()), split="test", seed=0, resamples=20)
    )


def test_many_classes_keep_their_time(monkeypatch):
    from warmstart import evaluation as module

    monkeypatch.setattr(module, "RANKED_CELLS", 1)
    monkeypatch.setattr(module, "FEWEST", 50)
    found = metrics(CLASSES, predictions(), split="test", seed=0, resamples=200)
    assert [metric.name for metric in found] == [spec.name for spec in CLASSES.metrics()]


def test_what_cannot_be_evaluated_is_refused():
    made = predictions()
    with pytest.raises(DataError) as nothing:
        metrics(CLASSES, made.take(np.arange(0)), split="test", seed=0)
    assert str(nothing.value) == (
        "test has no example to evaluate on, expected at least 1\n  fix: choose another --split"
    )
    with pytest.raises(DataError) as blind:
        metrics(CLASSES, dataclasses.replace(made, targets=None), split="test", seed=0)
    assert str(blind.value) == (
        "test has no targets to compare with\n  fix: name them with --target-column, or use predict"
    )
    broken = made.values.copy()
    broken[[3, 5], 0] = np.nan
    with pytest.raises(TrainingError) as nan:
        metrics(CLASSES, dataclasses.replace(made, values=broken), split="val", seed=0)
    assert str(nan.value) == (
        "2 of 200 predictions on val are NaN or infinite (first: row 6), expected finite numbers\n"
        "  fix: train with a lower optim.lr, or with precision=fp32"
    )
