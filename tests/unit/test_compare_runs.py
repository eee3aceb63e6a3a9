"""Many comparisons at once: Holm's correction, one set of resamples for all, and a best model that is not lost."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart import compare
from warmstart.errors import DataError
from warmstart.tasks import Predictions
from warmstart.tasks.classification import Classes

CLASSES = Classes("single", ("ant", "bee", "cat"))


def models(num: int, margins: list[float], seed: int = 0) -> list[Predictions]:
    rng = np.random.default_rng(seed)
    targets = np.arange(num) % 3
    shared = rng.normal(size=(num, 3))
    sides = []
    for margin in margins:
        outputs = shared + rng.normal(size=(num, 3)) + margin * np.eye(3)[targets]
        values = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
        sides.append(Predictions(outputs, values, np.arange(num), targets))
    return sides


def test_holm_agrees_with_p_adjust_of_r():
    # p.adjust(c(0.01, 0.02, 0.03, 0.005, 0.9), "holm") in R 4.3
    assert compare.holm([0.01, 0.02, 0.03, 0.005, 0.9]) == pytest.approx([0.04, 0.06, 0.06, 0.025, 0.9])
    assert compare.holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert compare.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    rejected, m = set(), len(p_values)
    for step, at in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        if p_values[at] * (m - step) >= 0.05:
            break
        rejected.add(at)
    assert {at for at, p in enumerate(compare.holm(p_values)) if p < 0.05} == rejected


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "f1_macro"])
def test_each_of_many_is_the_pair_and_the_verdict_goes_by_the_corrected_p(metric):
    sides = models(300, [1.5, 2.0, 1.2, 1.5])
    found = compare.many(CLASSES, sides, reference=1, seed=3, metric=metric)
    assert len(found) == 4
    assert (found[1].difference, found[1].verdict, found[1].p_corrected) == (0.0, "tie", 1.0)
    for at in (0, 2, 3):
        alone = compare.paired(CLASSES, sides[at], sides[1], seed=3, metric=metric)
        assert dataclasses.replace(found[at], p_corrected=None, verdict=alone.verdict) == alone
    corrected = compare.holm([found[at].p_value for at in (0, 2, 3)])
    assert [found[at].p_corrected for at in (0, 2, 3)] == pytest.approx(corrected)


def test_what_one_comparison_shows_many_may_not():
    a = models(200, [1.6])[0]
    hits = a.values.argmax(axis=1) == a.targets
    rival = dataclasses.replace(a, values=a.values.copy())
    rival.values[np.flatnonzero(hits)[:6]] = np.eye(3)[(a.targets[np.flatnonzero(hits)[:6]] + 1) % 3]
    assert compare.paired(CLASSES, a, rival, seed=0).verdict == "a"
    assert compare.many(CLASSES, [a, rival], reference=0, seed=0)[1].verdict == "b"
    crowd = [a, rival, *[a] * 6]
    assert compare.many(CLASSES, crowd, reference=0, seed=0)[1].verdict == "tie"


def test_models_on_other_examples_are_refused_by_position():
    a, b, c = models(60, [1, 1, 1])
    with pytest.raises(DataError, match="model 0 has predictions for 60 examples and model 2 for 50, 50 of them the"):
        compare.many(CLASSES, [a, b, c.take(np.arange(50))], reference=0, seed=0)
