"""Metrics against scikit-learn and scipy, plain, and weighted against the same rows repeated."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from warmstart import bootstrap, metrics
from warmstart.tasks.classification import Classes
from warmstart.tasks.regression import Numbers

NAMES = tuple(f"c{i}" for i in range(12))


def single(num: int, classes: int, seed: int, coarse: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, num)
    scores = rng.normal(size=(num, classes)) + 1.5 * np.eye(classes)[targets]
    values = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    if coarse:  # ties, as with few distinct scores
        values = np.round(values, 1) + 0.01
        values /= values.sum(axis=1, keepdims=True)
    return values, targets


def multi(num: int, labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.random((num, labels)) < np.linspace(0.1, 0.6, labels)
    values = np.round(1 / (1 + np.exp(-rng.normal(size=(num, labels)) - 2 * targets + 1)), 2)
    return np.clip(values, 0.01, 0.99), targets


def ece(confidence: np.ndarray, right: np.ndarray) -> float:
    edges = np.linspace(0, 1, 16)
    inside = [(confidence > low) & (confidence <= high) for low, high in itertools.pairwise(edges)]
    return sum(abs(right[rows].mean() - confidence[rows].mean()) * rows.mean() for rows in inside if rows.any())


def oracle_single(values: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    said = values.argmax(axis=1)
    classes = values.shape[1]
    found = {
        "accuracy": sk.accuracy_score(targets, said),
        "balanced_accuracy": sk.balanced_accuracy_score(targets, said),
        "log_loss": sk.log_loss(targets, values, labels=range(classes)),
        "brier": sk.brier_score_loss(targets, values if classes > 2 else values[:, 1], labels=range(classes)),
        "ece": ece(values.max(axis=1), said == targets),
    }
    for how in ("macro", "micro", "weighted"):
        scores = sk.precision_recall_fscore_support(targets, said, average=how, zero_division=0)
        found |= {f"{name}_{how}": score for name, score in zip(("precision", "recall", "f1"), scores, strict=False)}
    if classes == 2:
        found["auroc"] = sk.roc_auc_score(targets, values[:, 1])
        found["average_precision"] = sk.average_precision_score(targets, values[:, 1])
    else:
        found["auroc"] = sk.roc_auc_score(targets, values, multi_class="ovr")
        found["average_precision"] = sk.average_precision_score(np.eye(classes)[targets], values)
    if classes > 5:
        found["top_5_accuracy"] = sk.top_k_accuracy_score(targets, values, k=5, labels=range(classes))
    return found


def oracle_multi(values: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    said = values >= 0.5
    columns = range(values.shape[1])
    found = {
        "subset_accuracy": sk.accuracy_score(targets, said),
        "hamming_loss": sk.hamming_loss(targets, said),
        "auroc": sk.roc_auc_score(targets, values),
        "average_precision": sk.average_precision_score(targets, values),
        "log_loss": np.mean([sk.log_loss(targets[:, c], values[:, c]) for c in columns]),
        "brier": np.mean([sk.brier_score_loss(targets[:, c], values[:, c]) for c in columns]),
        "ece": ece(values.ravel(), targets.ravel()),
    }
    for how in ("macro", "micro", "weighted"):
        scores = sk.precision_recall_fscore_support(targets, said, average=how, zero_division=0)
        found |= {f"{name}_{how}": score for name, score in zip(("precision", "recall", "f1"), scores, strict=False)}
    return found


def oracle_numbers(values: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    flat = targets.reshape(len(targets), -1)
    ranks = [stats.spearmanr(values[:, k], flat[:, k]).statistic for k in range(values.shape[1])]
    return {
        "mse": sk.mean_squared_error(flat, values),
        "rmse": sk.root_mean_squared_error(flat, values),
        "mae": sk.mean_absolute_error(flat, values),
        "r2": sk.r2_score(flat, values),
        "spearman": float(np.mean(ranks)),
    }


def numbers(num: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = np.round(rng.normal(1000, 3, size=(num, columns)), 1)
    values = np.round(targets + rng.normal(size=(num, columns)), 1)
    return values, targets if columns > 1 else targets[:, 0]


CASES = [
    ("single", single, oracle_single, 2),
    ("single", single, oracle_single, 4),
    ("single", single, oracle_single, 9),
    ("single", lambda n, c, s: single(n, c, s, coarse=True), oracle_single, 3),
    ("multi", multi, oracle_multi, 5),
    ("scalar", numbers, oracle_numbers, 1),
    ("vector", numbers, oracle_numbers, 3),
]


@pytest.mark.parametrize(("kind", "make", "oracle", "width"), CASES)
def test_every_metric_equals_the_independent_one(kind, make, oracle, width):
    values, targets = make(300, width, 3)
    found = metrics.measure(kind, values, targets)(np.ones((300, 1)))
    expected = oracle(values, targets)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize(("kind", "make", "oracle", "width"), CASES)
def test_whole_weights_equal_repeated_rows(kind, make, oracle, width):
    values, targets = make(200, width, 4)
    counts = np.random.default_rng(5).integers(0, 4, size=(200, 3))
    found = metrics.measure(kind, values, targets)(counts.astype(float))
    for column in range(3):
        rows = np.repeat(np.arange(200), counts[:, column])
        for name, value in oracle(values[rows], targets[rows]).items():
            assert found[name][column] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_the_tasks_name_exactly_the_metrics_that_are_computed():
    one = np.ones((50, 1))
    for classes in (2, 4, 9):
        values, targets = single(50, classes, 1)
        listed = {spec.name for spec in Classes("single", NAMES[:classes]).metrics()}
        assert listed == metrics.measure("single", values, targets)(one).keys()
    values, targets = multi(50, 4, 1)
    assert {s.name for s in Classes("multi", NAMES[:4]).metrics()} == metrics.measure("multi", values, targets)(
        one
    ).keys()
    values, targets = numbers(50, 1, 1)
    listed = {spec.name for spec in Numbers("scalar", (), (0.0,), (1.0,)).metrics()}
    assert listed == metrics.measure("scalar", values, targets)(one).keys()


def test_a_class_without_test_examples_is_left_out_of_averages():
    values, targets = single(200, 4, 2)
    targets[targets == 3] = 0
    found = metrics.measure("single", values, targets)(np.ones((200, 1)))
    ones = [sk.roc_auc_score(targets == c, values[:, c]) for c in range(3)]
    assert found["auroc"][0] == pytest.approx(np.mean(ones))
    present = list(range(3))
    recall = sk.recall_score(targets, values.argmax(axis=1), labels=present, average="macro")
    assert found["balanced_accuracy"][0] == pytest.approx(recall)
    union = sk.precision_recall_fscore_support(targets, values.argmax(axis=1), average="macro", zero_division=0)
    assert [found[f"{name}_macro"][0] for name in ("precision", "recall", "f1")] == pytest.approx(union[:3])


def test_undefined_metrics_are_nan_and_give_no_warning():
    values, targets = single(20, 2, 2)
    found = metrics.measure("single", values, np.zeros_like(targets))(np.ones((20, 1)))
    assert np.isnan(found["auroc"][0])
    assert np.isnan(found["average_precision"][0])
    constant = metrics.measure("scalar", np.arange(5.0)[:, None], np.full(5, 0.1))(np.ones((5, 1)))
    assert np.isnan(constant["r2"][0])
    assert np.isnan(constant["spearman"][0])


def test_only_computes_what_is_asked():
    values, targets = single(50, 3, 1)
    for name in oracle_single(values, targets):
        assert list(metrics.measure("single", values, targets, only=(name,))(np.ones((50, 1)))) == [name]


def test_a_thousand_resamples_of_ten_thousand_examples_take_seconds():
    values, targets = single(10_000, 10, 0)
    started = time.perf_counter()
    of = metrics.measure("single", values.astype(np.float32), targets)
    for weights in bootstrap.weights(bootstrap.design("single", targets, None), seed=0, resamples=1000):
        of(weights)
    assert time.perf_counter() - started < 3 * 3  # 3 s on one core of an idle machine, measured 0.4 s
