"""Many comparisons at once, and finished runs: corrected verdicts, aligned examples, seeds, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from warmstart import comparing, config, contenders, evaluation, predicted
from warmstart.errors import DataError, RecipeError, RunError
from warmstart.rundir import RunDir
from warmstart.tasks import Predictions, Task
from warmstart.tasks.classification import Classes
from warmstart.tasks.regression import Numbers

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
    assert comparing.holm([0.01, 0.02, 0.03, 0.005, 0.9]) == pytest.approx([0.04, 0.06, 0.06, 0.025, 0.9])
    assert comparing.holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert comparing.holm([]) == []
    assert comparing.holm([0.01, 0.02], num=5) == comparing.holm([0.01, 0.02, 1, 1, 1])[:2]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    rejected, m = set(), len(p_values)
    for step, at in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        if p_values[at] * (m - step) >= 0.05:
            break
        rejected.add(at)
    assert {at for at, p in enumerate(comparing.holm(p_values)) if p < 0.05} == rejected


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "f1_macro"])
def test_each_of_many_is_the_pair_and_the_verdict_goes_by_the_corrected_p(metric):
    sides = models(300, [1.5, 2.0, 1.2, 1.5])
    found = comparing.many(CLASSES, sides, reference=1, seed=3, metric=metric)
    assert len(found) == 4
    assert (found[1].difference, found[1].verdict, found[1].p_corrected) == (0.0, "tie", 1.0)
    for at in (0, 2, 3):
        alone = comparing.paired(CLASSES, sides[at], sides[1], seed=3, metric=metric)
        assert dataclasses.replace(found[at], p_corrected=None, verdict=alone.verdict) == alone
    corrected = comparing.holm([found[at].p_value for at in (0, 2, 3)])
    assert [found[at].p_corrected for at in (0, 2, 3)] == pytest.approx(corrected)


def test_what_one_comparison_shows_many_may_not():
    a = models(200, [1.6])[0]
    hits = a.values.argmax(axis=1) == a.targets
    rival = dataclasses.replace(a, values=a.values.copy())
    rival.values[np.flatnonzero(hits)[:6]] = np.eye(3)[(a.targets[np.flatnonzero(hits)[:6]] + 1) % 3]
    assert comparing.paired(CLASSES, a, rival, seed=0).verdict == "a"
    assert comparing.many(CLASSES, [a, rival], reference=0, seed=0)[1].verdict == "b"
    assert comparing.many(CLASSES, [a, rival, a], reference=0, seed=0, chosen=True)[1].p_corrected == 3 * 0.03125
    crowd = [a, rival, *[a] * 6]
    assert comparing.many(CLASSES, crowd, reference=0, seed=0)[1].verdict == "tie"


def test_models_on_other_examples_are_refused_by_position():
    a, b, c = models(60, [1, 1, 1])
    with pytest.raises(DataError, match="model 0 has predictions for 60 examples and model 2 for 50, 50 of them the"):
        comparing.many(CLASSES, [a, b, c.take(np.arange(50))], reference=0, seed=0)


# --- seeds


def test_the_mean_over_seeds_spreads_as_examples_and_seeds_do():
    """Two-level bootstrap against the two-way analysis of variance with examples and seeds at random."""
    rng = np.random.default_rng(0)
    found = 9 + 0.5 * rng.normal(size=600) + 0.05 * rng.normal(size=(4, 1)) + rng.normal(size=(4, 600))
    task = Numbers("scalar", (), (0.0,), (1.0,))
    sides = [Predictions(e[:, None], e[:, None], np.arange(600), np.zeros(600)) for e in found]
    mean = comparing.measured(task, sides, seed=0, metric="mae", resamples=4000).means([[0, 1, 2, 3]], seed=0)
    shared = found.mean(axis=0)
    between = found.mean(axis=1).var(ddof=1) / 4
    residual = found - shared - found.mean(axis=1, keepdims=True) + found.mean()
    own = (residual**2).sum() / (3 * 599) / 600 / 4  # the interaction's mean square, over examples and seeds
    assert own > 0.3 * between > 0, "the two are worth telling apart"
    assert mean.values[0] == pytest.approx(shared.mean())
    assert mean.spread[0] == pytest.approx(between)
    assert mean.replicates[0].var() == pytest.approx(shared.var(ddof=1) / 600 + between - own, rel=0.08)


def test_seeds_that_differ_are_no_evidence_by_their_number_of_examples():
    """With two seeds each, models whose seeds overlap cannot be told apart, however many examples there are."""
    sides = [side for seed in (0,) for side in models(3000, [1.2, 2.0, 1.4, 2.2], seed)]
    together = comparing.measured(CLASSES, sides, seed=0).means([[0, 1], [2, 3]], seed=0)
    assert comparing.paired(CLASSES, sides[2], sides[0], seed=0).verdict == "a"
    found = together.pair(0, 1)
    assert found.verdict == "tie"
    seeds = stats.ttest_ind(together_values(sides, (0, 1)), together_values(sides, (2, 3)), equal_var=False)
    assert found.p_value == pytest.approx(seeds.pvalue, abs=0.1)
    assert "more seeds would be needed" in contenders.verdict(together, 0, 1, found, names=("x", "y"))


def together_values(sides: list[Predictions], rows: tuple[int, ...]) -> list[float]:
    return [float((sides[at].values.argmax(axis=1) == sides[at].targets).mean()) for at in rows]


# --- runs


def run(
    place: Path, told: Predictions, *words: str, task: Task = CLASSES, split: str = "test", prefix: str = "x"
) -> Path:
    """A finished run that has left predictions; examples are told apart by content."""
    recipe = config.read_recipe(overrides=words).to_toml()
    name = "classification" if isinstance(task, Classes) else "regression"
    num = int(told.index.max()) + 1
    hashes = np.frombuffer(b"".join(at.to_bytes(16, "big") for at in range(num)), np.uint8).reshape(num, 16)
    with RunDir.open(place, recipe=recipe, fingerprint=str(place)) as folder:
        ids = [f"{prefix}{at}" for at in range(num)]
        predicted.save(folder, split, told, task=task, task_name=name, ids=ids, hashes=hashes)
        folder.finish("done")
    return place


def test_what_is_saved_is_what_is_loaded(tmp_path: Path):
    told = dataclasses.replace(models(30, [2.0])[0], groups=np.array([f"g{at // 3}" for at in range(30)]))
    told = told.take(np.random.default_rng(0).permutation(30)[:20])
    found = predicted.load(run(tmp_path / "a", told), "test")
    for name in ("outputs", "values", "index", "targets", "groups"):
        np.testing.assert_array_equal(getattr(found.predictions, name), getattr(told, name))
    assert found.task == CLASSES
    assert found.ids == tuple(f"x{at}" for at in told.index)
    assert RunDir.load(tmp_path / "a").verify() == ()


def test_runs_are_aligned_by_content_whatever_their_order_and_ids(tmp_path: Path):
    a, b = models(300, [2.5, 1.5])
    shuffled = b.take(np.random.default_rng(1).permutation(300))
    found = contenders.runs([run(tmp_path / "b", shuffled, "epochs=2", prefix="y"), run(tmp_path / "a", a, "epochs=3")])
    alone = comparing.paired(CLASSES, a, b, seed=0)
    (pair,) = found.pairs
    assert dataclasses.replace(pair.found, p_corrected=None) == alone
    assert (found.split, found.metric, found.n) == ("test", "accuracy", 300)
    assert [one.run for one in found.contenders] == [str(tmp_path / "a"), str(tmp_path / "b")], "best first"
    assert pair.text == f"{tmp_path / 'a'} is better than {tmp_path / 'b'}"
    (metric,) = evaluation.metrics(CLASSES, a, split="test", seed=0, only=("accuracy",))
    best = found.contenders[0]
    assert (best.value, best.low, best.high) == pytest.approx((metric.value, metric.low, metric.high))
    assert found.to_json()["pairs"][0].keys() == {  # type: ignore[index]
        "a", "b", "difference", "low", "high", "p_value", "p_corrected", "verdict",
    }  # fmt: skip


def test_copies_of_one_example_are_told_apart_by_the_order_of_their_ids():
    hashes = np.zeros((3, 16), np.uint8)
    told = models(3, [1.0])[0]
    first = predicted.Predicted(told, CLASSES, "classification", ("c", "a", "b"), hashes)
    second = predicted.Predicted(told, CLASSES, "classification", ("a", "b", "c"), hashes)
    assert sorted(first.keys()) == sorted(second.keys())
    assert first.keys()[1:] + first.keys()[:1] == second.keys()


def test_seeds_of_one_recipe_are_one_contender_unless_nothing_else_is_there(tmp_path: Path):
    sides = models(300, [1.5, 1.6, 1.4, 3.0])
    seeds = [run(tmp_path / f"s{at}", sides[at], f"seed={at}") for at in range(3)]
    other = run(tmp_path / "other", sides[3], "epochs=7")
    found = contenders.runs([*seeds, other])
    assert [len(one.folders) for one in found.contenders] == [1, 3]
    assert found.contenders[1].run == f"{seeds[0]} and 2 more seeds"
    assert found.contenders[1].value == pytest.approx(np.mean(together_values(sides, (0, 1, 2))))
    assert len(found.pairs) == 1 and found.warnings == ()
    assert len(contenders.runs([*seeds, other], group_seeds=False).pairs) == 6
    assert len(contenders.runs(seeds).pairs) == 3


def test_many_models_on_test_are_a_choice_on_test(tmp_path: Path):
    sides = models(120, [1.5, 1.6, 1.7])
    runs = [run(tmp_path / f"{at}", side, f"epochs={at + 1}") for at, side in enumerate(sides)]
    for place, side in zip(runs, sides, strict=True):
        with RunDir.load(place) as folder:
            hashes = np.arange(120 * 16, dtype=np.int64).astype(np.uint8).reshape(120, 16)
            ids = [f"v{at}" for at in range(120)]
            predicted.save(folder, "val", side, task=CLASSES, task_name="classification", ids=ids, hashes=hashes)
    (warning,) = contenders.runs(runs).warnings
    assert warning == (
        "3 models are compared on test: whoever keeps the best of them has chosen on test, and its number flatters; "
        "choose with --split val"
    )
    assert contenders.runs(runs, split="val").warnings == ()
    assert contenders.runs(runs[:2]).warnings == ()
    assert warning in contenders.runs(runs).words()


def test_where_not_every_run_has_opened_test_val_is_compared(tmp_path: Path):
    a, b = models(60, [1.5, 1.6])
    run(tmp_path / "a", a, "epochs=1", split="val")
    run(tmp_path / "b", b, "epochs=2", split="val")
    with RunDir.load(tmp_path / "a") as folder:
        hashes = np.zeros((60, 16), np.uint8)
        predicted.save(folder, "test", a, task=CLASSES, task_name="classification", ids=["x"] * 60, hashes=hashes)
    assert contenders.runs([tmp_path / "a", tmp_path / "b"]).split == "val"
    with pytest.raises(RunError) as refused:
        contenders.runs([tmp_path / "a", tmp_path / "b"], split="test")
    assert str(refused.value) == (
        f"{tmp_path / 'b'} has no predictions on test\n"
        f"  fix: warmstart evaluate {tmp_path / 'b'} --split test, which opens test and is recorded"
    )


def test_what_it_would_take_to_tell(tmp_path: Path):
    a, b = models(200, [1.60, 1.45], seed=3)
    found = contenders.runs([run(tmp_path / "a", a, "epochs=1"), run(tmp_path / "b", b, "epochs=2")])
    (pair,) = found.pairs
    assert pair.found.verdict == "tie" and pair.found.difference > 0
    more = int(pair.text.partition("about ")[2].partition(" ")[0].replace(",", ""))
    hits = [(side.values.argmax(axis=1) == side.targets).astype(float) for side in (a, b)]
    closed = ((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * np.std(hits[0] - hits[1]) / pair.found.difference) ** 2
    assert more == pytest.approx(closed - 200, rel=0.15)
    same = contenders.runs([tmp_path / "a", run(tmp_path / "c", a, "epochs=3")])
    assert same.pairs[0].text.endswith("they differ by nothing that these examples show")


def test_other_examples_are_refused_with_what_is_shared(tmp_path: Path):
    a, b = models(300, [1.5, 1.6])
    first = run(tmp_path / "a", a.take(np.arange(200)))
    second = run(tmp_path / "b", b.take(np.arange(150, 300)))
    with pytest.raises(DataError) as refused:
        contenders.runs([first, second])
    assert str(refused.value) == (
        f"{first} and {second} have different test examples: 200 and 150, 50 of them shared\n"
        "  fix: run both on data that says its split (folders train/ val/ test/, or --split-column)"
    )


def test_other_tasks_metrics_targets_and_too_few_runs_are_refused(tmp_path: Path):
    a, b = models(60, [1.5, 1.6])
    numbers = Predictions(a.outputs[:, :1], a.values[:, :1], a.index, a.values[:, 0])
    first, second = run(tmp_path / "a", a), run(tmp_path / "b", b, "epochs=2")
    third = run(tmp_path / "c", numbers, task=Numbers("scalar", (), (0.0,), (1.0,)))
    lied = run(tmp_path / "d", dataclasses.replace(b, targets=(b.targets + (np.arange(60) < 7)) % 3))
    with pytest.raises(
        DataError, match=r"a is classification of classes .ant, bee, cat. and .*c is regression of a numb"
    ):
        contenders.runs([first, third])
    with pytest.raises(DataError, match=r"a and .*d have different targets for 7 of 60 examples"):
        contenders.runs([first, lied])
    with pytest.raises(RecipeError, match=r"unknown metric 'accurac'\n  fix: did you mean 'accuracy'\?"):
        contenders.runs([first, second], metric="accurac")
    with pytest.raises(RecipeError, match="1 run was named, expected at least 2\n  fix: warmstart compare RUN RUN"):
        contenders.runs([first])
    with pytest.raises(RecipeError, match=r"a is named twice, expected different runs"):
        contenders.runs([first, tmp_path / "." / "a"])
    with pytest.raises(RunError, match="no run at"):
        contenders.runs([first, tmp_path / "nowhere"])


def test_a_changed_file_is_refused(tmp_path: Path):
    a, b = models(60, [1.5, 1.6])
    first, second = run(tmp_path / "a", a), run(tmp_path / "b", b)
    file = first / "predictions/test.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    with pytest.raises(RunError) as refused:
        contenders.runs([first, second])
    assert str(refused.value) == (
        f"{file} is not what the run wrote (its hash differs)\n  fix: warmstart evaluate {first} --split test"
    )
