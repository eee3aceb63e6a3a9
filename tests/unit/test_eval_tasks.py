"""Tasks: losses against torch, first losses against theory, and the two lines that refuse bad targets."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from warmstart import plugins, tasks
from warmstart.data import Dataset
from warmstart.errors import DataError, RecipeError
from warmstart.tasks.classification import Classification
from warmstart.tasks.regression import Regression


def data(kind: str, targets, names: tuple[str, ...] = (), name: str = "photos") -> Dataset:
    ids = [f"{row}.jpg" for row in range(len(targets))]
    return Dataset(ids, ids, kind, np.asarray(targets), names, name=name)


SINGLE = data("single", [0, 0, 0, 0, 1, 1, 2, 2], ("ant", "bee", "cat"))
MULTI = data("multi", np.array([[1, 0], [1, 1], [1, 0], [0, 1], [0, 0]], dtype=bool), ("red", "big"))
SCALAR = data("scalar", [1.0, 2.0, 3.0, 10.0])
VECTOR = data("vector", [[1.0, 100.0], [2.0, 300.0], [3.0, 100.0]], ("x", "y"))
EVERY = [
    (Classification(), SINGLE),
    (Classification(label_smoothing=0.1, class_weights="balanced"), SINGLE),
    (Classification(), MULTI),
    (Classification(label_smoothing=0.1, class_weights="balanced"), MULTI),
    (Regression(), SCALAR),
    (Regression(loss="huber", delta=0.5), VECTOR),
    (Regression(loss="l1"), VECTOR),
]


def test_there_are_two_tasks_and_their_options_are_described():
    assert plugins.names("task") == ("classification", "regression")
    for name in plugins.names("task"):
        plugin = plugins.load("task", name)
        assert isinstance(plugin(), tasks.TaskOptions)
        assert all(option.description for option in plugins.options(plugin))


@pytest.mark.parametrize(("options", "dataset"), EVERY)
def test_a_bound_task_keeps_the_contract(options, dataset):
    options.check(dataset)
    task = options.bind(dataset)
    assert isinstance(task, tasks.Task)
    assert task.link == {"single": "softmax", "multi": "sigmoid"}.get(dataset.kind, "identity")
    output = task.head(16, seed=1)(torch.ones(len(dataset), 16))
    assert output.shape == (len(dataset), task.num_outputs)
    loss = task.loss(output, torch.from_numpy(task.targets(dataset)))
    assert loss.shape == ()
    assert loss.requires_grad
    assert task.predict(output).shape == output.shape


@pytest.mark.parametrize(("options", "dataset"), EVERY)
def test_a_bound_task_survives_json(options, dataset):
    task = options.bind(dataset)
    assert type(options)().restore(json.loads(json.dumps(task.to_json()))) == task


@pytest.mark.parametrize(("options", "dataset"), EVERY)
def test_micro_batches_add_up_to_the_batch(options, dataset):
    task = options.bind(dataset)
    output = torch.randn(6, task.num_outputs, generator=torch.Generator().manual_seed(0))
    targets = torch.from_numpy(task.targets(dataset.take(np.resize(np.arange(len(dataset)), 6))))
    halves = (task.loss(output[:2], targets[:2]) * 2 + task.loss(output[2:], targets[2:]) * 4) / 6
    assert halves.item() == pytest.approx(task.loss(output, targets).item(), rel=1e-6)


def test_the_first_loss_is_what_knowing_nothing_costs():
    features = torch.randn(500, 256, generator=torch.Generator().manual_seed(0)).abs()  # as after ReLU and pooling
    for classes in (2, 10, 100):
        names = tuple(map(str, range(classes)))
        dataset = data("single", np.arange(500) % classes, names)
        task = Classification().bind(dataset)
        first = task.loss(task.head(256, seed=3)(features), torch.from_numpy(task.targets(dataset))).item()
        assert first == pytest.approx(math.log(classes), rel=0.02)
    labels = data("multi", np.random.default_rng(0).random((500, 5)) < 0.5, tuple("abcde"))
    task = Classification().bind(labels)
    first = task.loss(task.head(256, seed=3)(features), torch.from_numpy(task.targets(labels))).item()
    assert first == pytest.approx(math.log(2), rel=0.02)
    prices = data("scalar", np.random.default_rng(0).normal(1e5, 2e4, 500))
    task = Regression().bind(prices)
    first = task.loss(task.head(256, seed=3)(features), torch.from_numpy(task.targets(prices))).item()
    assert first == pytest.approx(1.0, rel=0.1)


def test_the_head_comes_from_its_seed_alone():
    task = Classification().bind(SINGLE)
    state = torch.random.get_rng_state()
    first, again, other = task.head(8, seed=1), task.head(8, seed=1), task.head(8, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.linear.weight, again.linear.weight)
    assert not torch.equal(first.linear.weight, other.linear.weight)


def test_balanced_weights_are_those_of_scikit_learn():
    task = Classification(class_weights="balanced").bind(SINGLE)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=SINGLE.targets)
    assert task.output_weights == pytest.approx(expected)
    assert task.output_weights[SINGLE.targets].mean() == pytest.approx(1.0)
    assert Classification().bind(SINGLE).output_weights is None
    assert Classification(class_weights="balanced").bind(MULTI).output_weights == pytest.approx([2 / 3, 3 / 2])


def test_balanced_classes_are_selected_by_balanced_accuracy():
    assert Classification().bind(SINGLE).metrics()[0].name == "accuracy"
    assert Classification(class_weights="balanced").bind(SINGLE).metrics()[0].name == "balanced_accuracy"
    assert Classification().bind(MULTI).metrics()[0].name == "average_precision"
    assert Regression().bind(SCALAR).metrics()[0] == tasks.MetricSpec("rmse", higher_is_better=False)


def test_losses_are_those_of_the_textbook():
    output = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(SINGLE.targets)
    task = Classification(label_smoothing=0.1).bind(SINGLE)
    assert torch.equal(task.loss(output, labels), functional.cross_entropy(output, labels, label_smoothing=0.1))
    outputs, numbers = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(1))
    for name, expected in (("mse", functional.mse_loss), ("l1", functional.l1_loss)):
        assert torch.equal(Regression(loss=name).bind(VECTOR).loss(outputs, numbers), expected(outputs, numbers))
    huber = Regression(loss="huber", delta=0.3).bind(VECTOR).loss(outputs, numbers)
    assert torch.equal(huber, functional.huber_loss(outputs, numbers, delta=0.3))


def test_balanced_labels_weigh_their_positive_examples():
    task = Classification(class_weights="balanced").bind(MULTI)
    output = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    on = torch.from_numpy(MULTI.targets).float()
    weights = torch.tensor([2 / 3, 3 / 2])
    cells = -(weights * on * output.sigmoid().log() + (1 - on) * (1 - output.sigmoid()).log())
    assert task.loss(output, on).item() == pytest.approx(cells.mean().item(), rel=1e-5)


def test_regression_learns_in_unit_scale_and_predicts_in_target_units():
    task = Regression().bind(VECTOR)
    scaled = task.targets(VECTOR)
    assert scaled.dtype == np.float32
    assert scaled.mean(axis=0) == pytest.approx([0, 0], abs=1e-6)
    assert scaled.std(axis=0) == pytest.approx([1, 1], abs=1e-6)
    assert task.predict(torch.from_numpy(scaled)).numpy() == pytest.approx(VECTOR.targets, rel=1e-6)


def test_the_scale_comes_from_train_and_not_from_what_is_evaluated():
    task = Regression().bind(SCALAR)
    assert task.targets(SCALAR.take(np.array([3])))[0, 0] == pytest.approx((10 - 4) / np.std([1, 2, 3, 10]))


def test_the_task_follows_from_the_data():
    assert [tasks.for_dataset(d) for d in (SINGLE, MULTI)] == ["classification"] * 2
    assert [tasks.for_dataset(d) for d in (SCALAR, VECTOR)] == ["regression"] * 2


def test_targets_are_cast_where_nothing_is_lost():
    stars = data("single", [0, 1, 2, 0], ("1", "3", "10"))
    cast = tasks.cast(stars, "regression")
    assert (cast.kind, cast.targets.tolist()) == ("scalar", [1.0, 3.0, 10.0, 1.0])
    assert tasks.cast(SINGLE, "regression") is SINGLE
    grades = tasks.cast(data("scalar", [0.0, 0.5, 0.5, 0.0]), "classification")
    assert (grades.kind, grades.class_names, grades.targets.tolist()) == ("single", ("0", "0.5"), [0, 1, 1, 0])
    assert tasks.cast(SCALAR, "classification") is SCALAR


def refused(options, dataset) -> str:
    with pytest.raises(DataError) as caught:
        options.check(dataset)
    return str(caught.value)


def test_one_class_is_refused():
    assert refused(Classification(), data("single", [0, 0, 0], ("cat",))) == (
        "photos has only one class ('cat') in 3 examples, expected at least 2\n"
        "  fix: add examples, or leave these classes out of the data"
    )


def test_all_thin_classes_are_named_together():
    dataset = data("single", [0, 0, 1, 3], ("ant", "bee", "cat", "dog"))
    assert refused(Classification(), dataset) == (
        "class 'cat' has no example, expected at least 2; class 'bee' has 1 example (2.jpg), expected at least 2; "
        "class 'dog' has 1 example (3.jpg), expected at least 2\n"
        "  fix: add examples, or leave these classes out of the data"
    )


def test_twenty_problems_are_listed_and_the_rest_counted():
    text = refused(Classification(), data("single", np.arange(25), tuple(f"c{i}" for i in range(25))))
    assert text.count("has 1 example") == 20
    assert text.splitlines()[0].endswith("; and 5 more")


def test_labels_that_never_change_are_refused():
    targets = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 1], [1, 0, 0]], dtype=bool)
    assert refused(Classification(), data("multi", targets, ("a", "b", "c"))) == (
        "label 'a' is on in 4 of 4 examples, expected at least 2 without it; "
        "label 'b' is on in 1 of 4 examples, expected at least 2\n"
        "  fix: add examples, or leave these classes out of the data"
    )


def test_nan_and_infinite_targets_are_named():
    assert refused(Regression(), data("scalar", [1.0, math.nan, 2.0, math.inf])) == (
        "2 of 4 targets are NaN or infinite (1.jpg, 3.jpg), expected finite numbers\n"
        "  fix: correct or remove these rows, or name another --target-column"
    )


def test_targets_that_do_not_vary_are_refused_together_with_nan():
    targets = [[1.0, 5.0], [2.0, 5.0], [math.nan, 5.0]]
    assert refused(Regression(), data("vector", targets, ("x", "y"))) == (
        "1 of 3 targets are NaN or infinite (2.jpg), expected finite numbers; "
        "target 'y' is 5 for every example, expected numbers that vary\n"
        "  fix: correct or remove these rows, or name another --target-column"
    )


def test_the_other_task_is_the_fix():
    assert refused(Regression(), SINGLE) == (
        "targets of photos are no numbers ('ant', 'bee', 'cat'), and regression needs numbers\n"
        "  fix: --task classification"
    )
    assert refused(Regression(), data("single", [0, 1, 0, 1], ("1", "2"))) == (
        "targets of photos were read as 2 classes, and regression needs numbers\n  fix: --task classification"
    )
    assert refused(Regression(), MULTI) == (
        "targets of photos are sets of labels, and regression needs numbers\n  fix: --task classification"
    )
    assert refused(Classification(), SCALAR) == (
        "targets of photos are numbers (4 distinct ones), and classification needs classes\n  fix: --task regression"
    )
    assert refused(Classification(), VECTOR) == (
        "targets of photos are 2 numbers each, and classification needs classes\n  fix: --task regression"
    )


@pytest.mark.parametrize("options", [Classification(), Regression()])
def test_no_targets_are_refused(options):
    dataset = dataclasses.replace(SINGLE, kind="none", targets=None)
    expected = (
        "photos has 8 examples and no targets (expected a class or a number for each)\n"
        "  fix: one folder per class, or --target-column NAME for a table"
    )
    assert refused(options, dataset) == expected
    with pytest.raises(DataError, match="no targets"):
        tasks.for_dataset(dataset)


def test_options_out_of_range_are_refused():
    with pytest.raises(RecipeError) as caught:
        Classification(label_smoothing=1.0)
    assert str(caught.value) == (
        "label_smoothing is 1.0 (expected at least 0 and less than 1)\n  fix: task.label_smoothing=0.1"
    )
    with pytest.raises(RecipeError) as caught:
        Regression(delta=0)
    assert str(caught.value) == "delta is 0 (expected more than 0)\n  fix: task.delta=1.0"


def test_out_of_fold_predictions_join_in_the_order_of_the_data():
    def part(rows: list[int]) -> tasks.Predictions:
        values = np.array(rows, dtype=np.float32)[:, None]
        return tasks.Predictions(values, values, np.array(rows), np.array(rows) * 1.0)

    joined = tasks.concatenate([part([4, 1]), part([0, 3, 2])])
    assert joined.index.tolist() == [0, 1, 2, 3, 4]
    assert joined.values[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert joined.targets.tolist() == [0, 1, 2, 3, 4]
    assert joined.groups is None
