"""Paired comparisons: exact tests as oracle, symmetry, groups, and what the verdict may not do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import binom, ttest_rel

from warmstart import tasks
from warmstart.comparing import Comparison, mcnemar, paired
from warmstart.errors import DataError, RecipeError
from warmstart.evaluation import metrics
from warmstart.tasks import Predictions
from warmstart.tasks.classification import Classes
from warmstart.tasks.regression import Numbers

PAIR = Classes("single", ("no", "yes"))
CLASSES = Classes("single", ("ant", "bee", "cat"))
NUMBERS = Numbers("scalar", (), (0.0,), (1.0,))


def with_hits(hits: np.ndarray) -> Predictions:
    targets = np.arange(len(hits)) % 2
    said = np.where(hits, targets, 1 - targets)
    values = np.where(np.arange(2) == said[:, None], 0.8, 0.2)
    return Predictions(values, values, np.arange(len(hits)), targets)


def discordant(num: int, only_a: int, only_b: int) -> tuple[Predictions, Predictions]:
    a, b = np.ones(num, dtype=bool), np.ones(num, dtype=bool)
    b[:only_a] = False
    a[only_a : only_a + only_b] = False
    return with_hits(a), with_hits(b)


def models(num: int, gain: float, seed: int = 0) -> tuple[Predictions, Predictions]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, num)
    shared = rng.normal(size=(num, 3))
    sides = []
    for margin in (1.5 + gain, 1.5):
        outputs = shared + 0.5 * rng.normal(size=(num, 3)) + margin * np.eye(3)[targets]
        values = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
        sides.append(Predictions(outputs, values, np.arange(num), targets))
    return sides[0], sides[1]


def numbers(num: int, error_a: float, error_b: float) -> tuple[Predictions, Predictions]:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=num)
    sides = [(targets + error * rng.normal(size=num))[:, None] for error in (error_a, error_b)]
    return tuple(Predictions(side, side, np.arange(num), targets) for side in sides)


def test_mcnemar_is_the_binomial_tail():
    for only_a, only_b in ((10, 2), (0, 6), (3, 3), (40, 22)):
        tail = 2 * binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
        assert mcnemar(only_a, only_b) == pytest.approx(min(1.0, tail))
    assert mcnemar(0, 0) == 1.0


def test_five_discordant_examples_are_a_tie_and_six_are_not():
    five = paired(PAIR, *discordant(100, 5, 0), seed=0)
    assert (five.verdict, five.p_value, five.difference) == ("tie", 0.0625, pytest.approx(0.05))
    six = paired(PAIR, *discordant(100, 6, 0), seed=0)
    assert (six.verdict, six.p_value) == ("a", 0.03125)
    assert paired(PAIR, *discordant(100, 0, 6), seed=0).verdict == "b"


@pytest.mark.parametrize("metric", [spec.name for spec in CLASSES.metrics()])
def test_a_clear_gain_is_seen_by_every_metric_and_in_both_orders(metric):
    a, b = models(1500, gain=2.5)
    found, swapped = paired(CLASSES, a, b, metric=metric, seed=0), paired(CLASSES, b, a, metric=metric, seed=0)
    if metric != "ece":
        assert (found.verdict, swapped.verdict) == ("a", "b")
    assert (found.low, found.high) == pytest.approx((-swapped.high, -swapped.low))
    assert found.low <= found.difference <= found.high
    assert found.difference == pytest.approx(found.a - found.b)


def test_pairing_cancels_what_is_hard_for_both():
    a, b = models(500, gain=0.3)
    found = paired(CLASSES, a, b, metric="log_loss", seed=0)
    alone = [metrics(CLASSES, side, split="val", seed=0, only=("log_loss",))[0] for side in (a, b)]
    unpaired = np.hypot(*(metric.high - metric.low for metric in alone))
    assert found.high - found.low < 0.6 * unpaired


def test_a_paired_mean_agrees_with_the_paired_t_test():
    a, b = numbers(400, 0.50, 0.55)
    found = paired(NUMBERS, a, b, metric="mae", seed=0, resamples=8000)
    errors = [np.abs(side.values[:, 0] - side.targets) for side in (a, b)]
    expected = ttest_rel(*errors)
    interval = expected.confidence_interval()
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.01)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.003)


def test_lower_is_better_for_errors():
    assert paired(NUMBERS, *numbers(300, 0.3, 0.6), seed=0).verdict == "a"
    assert paired(NUMBERS, *numbers(300, 0.6, 0.3), seed=0).verdict == "b"
    assert paired(NUMBERS, *numbers(300, 0.6, 0.3), metric="r2", seed=0).verdict == "b"


def test_identical_predictions_tie():
    a, _ = models(100, gain=0)
    for spec in CLASSES.metrics():
        found = paired(CLASSES, a, a, metric=spec.name, seed=0, resamples=100)
        assert (found.verdict, found.difference, found.p_value) == ("tie", 0.0, 1.0)


def test_a_handful_of_examples_never_decides():
    a, b = numbers(4, 0.01, 5.0)
    assert paired(NUMBERS, a, b, seed=0).verdict == "tie"
    a, b = discordant(4, 4, 0)
    for metric in ("accuracy", "log_loss", "f1_macro", "brier"):
        assert paired(PAIR, a, b, metric=metric, seed=0).verdict == "tie"


def test_copies_in_groups_are_not_evidence():
    a, b = discordant(40, 5, 0)
    rows = np.repeat(np.arange(40), 10)
    many_a, many_b = (dataclasses.replace(side.take(rows), index=np.arange(400)) for side in (a, b))
    assert paired(PAIR, many_a, many_b, seed=0).verdict == "a"
    grouped = [dataclasses.replace(side, groups=rows.astype(str)) for side in (many_a, many_b)]
    found = paired(PAIR, *grouped, seed=0)
    assert paired(PAIR, many_a, many_b, seed=0).p_value < 1e-12
    assert found.p_value > 1e-3
    single = paired(PAIR, a, b, metric="balanced_accuracy", seed=0)
    assert found.high - found.low == pytest.approx(single.high - single.low, rel=0.1)


def test_order_does_not_matter_and_folds_join():
    a, b = models(300, gain=0.5)
    shuffled = b.take(np.random.default_rng(1).permutation(300))
    assert paired(CLASSES, a, shuffled, seed=0) == paired(CLASSES, a, b, seed=0)
    folds = [a.take(np.arange(300) % 5 == fold) for fold in (3, 0, 4, 1, 2)]
    assert paired(CLASSES, tasks.concatenate(folds), b, seed=0) == paired(CLASSES, a, b, seed=0)


def test_the_words_say_who_by_how_much_and_how_sure():
    won = Comparison("accuracy", 0.8, 0.9, -0.1, -0.18, -0.02, 0.01, 1200, "b")
    assert won.words("lp_ft", "probe") == (
        "probe is better than lp_ft: accuracy 0.800 against 0.900, difference -0.100 (-0.180 to -0.020, n = 1,200)"
    )
    tie = Comparison("rmse", 0.5, 0.5, 0.0, -0.1, 0.1, 1.0, 50, "tie")
    assert tie.words() == (
        "no difference between a and b that 50 examples can show: "
        "rmse 0.500 against 0.500, difference 0.000 (-0.100 to 0.100, n = 50)"
    )


def test_what_cannot_be_compared_is_refused():
    a, b = models(100, gain=0)
    with pytest.raises(DataError) as rows:
        paired(CLASSES, a, b.take(np.arange(90)), seed=0)
    assert str(rows.value) == (
        "a has predictions for 100 examples and b for 90, 90 of them the same; expected the same examples\n"
        "  fix: predict with both models on the same split"
    )
    with pytest.raises(DataError) as targets:
        paired(CLASSES, a, dataclasses.replace(b, targets=np.roll(b.targets, 1)), seed=0)
    assert "a and b have different targets for " in str(targets.value)
    assert str(targets.value).endswith("of 100 examples\n  fix: predict with both models on the same data")
    with pytest.raises(RecipeError) as name:
        paired(CLASSES, a, b, metric="acuracy", seed=0)
    assert str(name.value) == "unknown metric 'acuracy'\n  fix: did you mean 'accuracy'?"
    single = [dataclasses.replace(side, targets=np.zeros(100, dtype=np.int64)) for side in discordant(100, 5, 0)]
    with pytest.raises(DataError) as undefined:
        paired(PAIR, *single, metric="auroc", seed=0)
    assert str(undefined.value) == "auroc is not defined on these 100 examples\n  fix: compare by another metric"


def test_equal_models_seldom_beat_each_other():
    verdicts = [
        paired(CLASSES, *models(60, gain=0, seed=seed), metric=metric, seed=seed, resamples=150).verdict
        for seed in range(200)
        for metric in ("accuracy", "log_loss")
    ]
    assert verdicts.count("a") / 400 <= 0.05
    assert verdicts.count("b") / 400 <= 0.05
    assert 400 - verdicts.count("tie") > 0
