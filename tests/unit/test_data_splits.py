"""Splits: disjoint, complete, stratified, group-pure, and the same whatever the order of the files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from warmstart.data import Dataset, TargetKind, splits
from warmstart.errors import DataError


def dataset(
    targets: np.ndarray | None,
    kind: TargetKind = "single",
    *,
    groups: np.ndarray | None = None,
    given_split: np.ndarray | None = None,
    count: int | None = None,
) -> Dataset:
    count = len(targets) if targets is not None else count or 0
    num = 0
    if targets is not None and kind != "scalar":
        num = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
    return Dataset(
        [f"{row:05d}.png" for row in range(count)],
        [b""] * count,
        kind if targets is not None else "none",
        targets,
        tuple(f"c{at}" for at in range(num)),
        groups=groups,
        given_split=given_split,
        name="photos",
    )


def parts_by_id(data: Dataset, made: object) -> dict[str, tuple[str, ...]]:
    assert isinstance(made, splits.Splits)
    return {name: tuple(sorted(data.ids[row] for row in made.rows(name))) for name in ("train", "val", "test")}


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["single", "multi", "scalar", "vector", "none"]))
    count = draw(st.integers(30, 1500))
    classes = draw(st.integers(2, 6))
    groups = None
    if draw(st.booleans()):
        groups = rng.choice(np.array([f"g{at}" for at in range(draw(st.integers(6, 60)))]), count)
        groups[:6] = [f"g{at}" for at in range(6)]
    if kind == "single":
        targets = rng.choice(classes, count, p=rng.dirichlet(np.full(classes, 2.0)))
        targets[: 2 * classes] = np.repeat(np.arange(classes), 2)
    elif kind == "multi":
        targets = rng.random((count, classes)) < rng.uniform(0.02, 0.6, classes)
    elif kind == "none":
        return dataset(None, count=count, groups=groups)
    else:
        targets = rng.normal(size=count if kind == "scalar" else (count, 3))
    return dataset(targets, kind, groups=groups)


@settings(max_examples=120, deadline=None)
@given(datasets(), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_disjoint_complete_group_pure_and_independent_of_order(data: Dataset, seed: int, random: object) -> None:
    made = splits.make(data, seed=seed)
    rows = np.concatenate([made.train, made.val, made.test])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(data)))
    for part in (made.train, made.val, made.test):
        assert (np.diff(part) > 0).all()
        assert part.dtype == np.int64
    assert len(made.train)
    assert len(made.test)
    assert bool(len(made.val)) != bool(made.folds)
    sides = [(made.train, made.test), (made.train, made.val), (made.val, made.test), *made.folds]
    for left, right in sides:
        assert not set(left) & set(right)
        if data.groups is not None:
            assert not set(data.groups[left]) & set(data.groups[right])
    for left, right in made.folds:
        np.testing.assert_array_equal(np.sort(np.concatenate([left, right])), made.train)
        assert len(right)
    if made.folds:
        np.testing.assert_array_equal(np.sort(np.concatenate([right for _, right in made.folds])), made.train)
    order = np.random.default_rng(seed).permutation(len(data))
    shuffled = data.take(order)
    again = splits.make(shuffled, seed=seed)
    assert parts_by_id(shuffled, again) == parts_by_id(data, made)
    assert again.fingerprint == made.fingerprint


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 400), min_size=2, max_size=8), st.integers(0, 99), st.floats(0.05, 0.45))
def test_without_groups_every_class_has_its_share_to_one_example(sizes: list[int], seed: int, fraction: float) -> None:
    targets = np.repeat(np.arange(len(sizes)), sizes)
    made = splits.make(dataset(targets), seed=seed, test_fraction=fraction)
    got = np.bincount(targets[made.test], minlength=len(sizes))
    assert (abs(got - fraction * np.array(sizes)) < 1 + 1e-9).all()
    assert (np.bincount(targets[made.train], minlength=len(sizes)) > 0).all()
    for train, _ in made.folds:
        assert set(targets[train]) == set(range(len(sizes))) or min(sizes) < 4


def test_fractions_are_of_all_and_of_the_rest() -> None:
    made = splits.make(dataset(np.arange(1000) % 2), seed=0, test_fraction=0.3, val_fraction=0.25)
    assert (len(made.test), len(made.val), len(made.train)) == (300, 175, 525)
    assert made.origin == "split at random, stratified; test is 30% of all; val is 25% of the rest"
    assert made.folds == ()


def test_seeds_differ_and_equal_seeds_agree() -> None:
    data = dataset(np.arange(1000) % 3)
    assert splits.make(data, seed=1).fingerprint == splits.make(data, seed=1).fingerprint
    first, second = splits.make(data, seed=1), splits.make(data, seed=2)
    assert first.fingerprint != second.fingerprint
    assert 20 < len(set(first.test) & set(second.test)) < 60, "two draws of a fifth share about 40 of 200"


def test_groups_keep_class_proportions_as_well_as_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 200, 4000)
    lean = rng.dirichlet([2, 1, 0.5], 200)  # every group leans to some classes
    targets = np.array([rng.choice(3, p=lean[group]) for group in groups])
    whole = np.bincount(targets) / len(targets)

    def distance(rows: np.ndarray) -> float:
        return float(abs(np.bincount(targets[rows], minlength=3) / len(rows) - whole).max())

    data = dataset(targets, groups=groups.astype(str))
    ours = splits.make(data, seed=0, val_fraction=0.0)
    theirs = [rows for _, rows in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(targets, targets, groups)]
    assert abs(len(ours.test) / len(targets) - 0.2) < 0.01
    assert distance(ours.test) <= max(0.01, *(distance(rows) for rows in theirs))
    sizes = np.bincount(groups)
    assert sizes[np.unique(groups[ours.test])].mean() == pytest.approx(sizes.mean(), rel=0.1), "not only small groups"


def test_multi_label_and_regression_keep_their_distribution() -> None:
    rng = np.random.default_rng(5)
    labels = rng.random((3000, 5)) < np.array([0.5, 0.3, 0.1, 0.05, 0.01])
    made = splits.make(dataset(labels, "multi"), seed=0)
    share = labels[made.test].mean(axis=0) / labels.mean(axis=0)
    assert abs(share - 1).max() < 0.12
    for seed in range(12):
        test = splits.make(dataset(labels, "multi"), seed=seed).test
        assert abs(labels[test][:, 4].sum() - 0.2 * labels[:, 4].sum()) <= 1.0, "the rarest label is exact"
    numbers = rng.exponential(size=3000)
    made = splits.make(dataset(numbers, "scalar"), seed=0)
    deciles = np.linspace(0.05, 0.95, 10)
    gap = np.quantile(numbers[made.test], deciles) - np.quantile(numbers, deciles)
    assert abs(gap).max() < 0.1


def test_a_class_of_two_keeps_one_for_train() -> None:
    targets = np.array([0] * 400 + [1] * 400 + [2] * 2)
    for seed in range(40):
        made = splits.make(dataset(targets), seed=seed, test_fraction=0.45, val_fraction=0.45)
        assert 2 in targets[made.train]


def test_a_label_of_one_group_comes_to_train_even_if_its_group_fits_test_better() -> None:
    groups = np.repeat(["a", "b", "c", "d"], [50, 30, 10, 10])
    labels = np.ones((100, 11), bool)
    labels[:, 10] = groups == "b"
    for seed in range(5):
        made = splits.make(dataset(labels, "multi", groups=groups), seed=seed, test_fraction=0.45, val_fraction=0.0)
        assert labels[made.train][:, 10].any()


def test_rare_combinations_of_labels_are_tested_too() -> None:
    labels = np.random.default_rng(1).random((2000, 16)) < 0.5  # nearly every combination is there once
    made = splits.make(dataset(labels, "multi"), seed=0)
    assert abs(len(made.test) - 400) <= 1


def test_seeds_differ_with_groups_of_equal_size() -> None:
    data = dataset(np.arange(400) % 2, groups=np.repeat(np.arange(40), 10).astype(str))
    assert len({tuple(splits.make(data, seed=seed).test) for seed in range(10)}) > 8


def test_last_resorts_of_dealing_groups_out() -> None:
    to, sizes = np.array([0, 0, 0, 1]), np.array([9, 3, 5, 1])
    splits._fill_empty(to, sizes, 3)
    assert to.tolist() == [0, 2, 0, 1], "the smallest group that its part can spare"
    to = np.array([0, 1, 1, 1])
    labels = [(np.array(own), np.ones(len(own))) for own in ([0], [0, 1], [1], [0])]
    splits._teach(to, labels, sizes)
    assert to.tolist() == [0, 0, 1, 1], "label 1 comes to train with the smaller of its two groups"


def test_a_class_that_lives_in_one_group_is_taught() -> None:
    targets = np.array([0] * 100 + [1] * 100 + [2] * 10)
    groups = np.array([f"g{row // 10}" for row in range(210)])
    for seed in range(20):
        made = splits.make(dataset(targets, groups=groups), seed=seed)
        assert 2 in targets[made.train]


@pytest.mark.parametrize(
    ("count", "num_classes", "small"), [(99, 2, True), (100, 2, False), (104, 21, True), (105, 21, False)]
)
def test_rule_for_small_data(count: int, num_classes: int, small: bool) -> None:
    data = dataset(np.arange(1000) % num_classes)
    assert splits.is_small(data, num_val=count) is small


def test_small_data_gets_stratified_folds_and_an_empty_val() -> None:
    targets = np.array([0] * 150 + [1] * 50)
    made = splits.make(dataset(targets), seed=0)
    assert len(made.val) == 0
    assert len(made.folds) == 5
    assert [int((targets[val] == 1).sum()) for _, val in made.folds] == [8] * 5
    assert made.origin.endswith("val would be too small to select on: 5-fold cross-validation on train")


def given_by(*names: str, each: int = 200) -> np.ndarray:
    return np.repeat(np.array(names), each)


def test_given_splits_are_honoured() -> None:
    data = dataset(np.arange(600) % 2, given_split=given_by("test", "train", "val"))
    made = splits.make(data, seed=0)
    np.testing.assert_array_equal(made.test, np.arange(200))
    np.testing.assert_array_equal(made.train, np.arange(200, 400))
    np.testing.assert_array_equal(made.val, np.arange(400, 600))
    assert (made.origin, made.folds) == ("given: train, val, test", ())


def test_val_is_taken_from_train_where_only_test_is_given() -> None:
    data = dataset(np.arange(1600) % 2, given_split=given_by("train", "test", each=800))
    made = splits.make(data, seed=0)
    np.testing.assert_array_equal(made.test, np.arange(800, 1600))
    assert (len(made.val), len(made.train)) == (160, 640)
    assert made.val.max() < 800
    assert made.origin == "given: train, test; val is 20% of train"


def test_no_test_is_made_where_train_and_val_are_given_unless_asked_for() -> None:
    data = dataset(np.arange(400) % 2, given_split=given_by("train", "val"))
    assert len(splits.make(data, seed=0).test) == 0
    asked = splits.make(data, seed=0, test_fraction=0.25)
    assert (len(asked.train), len(asked.val), len(asked.test)) == (150, 200, 50)
    assert asked.origin == "given: train, val; test is 25% of train"


def test_train_alone_is_no_split() -> None:
    data = dataset(np.arange(400) % 2, given_split=given_by("train", each=400))
    assert splits.make(data, seed=0).fingerprint == splits.make(replace(data, given_split=None), seed=0).fingerprint


def test_fingerprint_sees_ids_targets_classes_and_assignment() -> None:
    data = dataset(np.arange(400) % 2)
    made = splits.make(data, seed=0)
    parts = {"train": made.train, "val": made.val, "test": made.test}
    same = splits.fingerprint(data, **parts)
    assert same == made.fingerprint
    assert len(same) == 32
    flipped = data.targets.copy() if data.targets is not None else np.zeros(0)
    flipped[7] = 1 - flipped[7]
    others = [
        splits.fingerprint(replace(data, targets=flipped), **parts),
        splits.fingerprint(replace(data, class_names=("c1", "c0")), **parts),
        splits.fingerprint(replace(data, ids=["x", *data.ids[1:]]), **parts),
        splits.fingerprint(data, train=made.train, val=made.test, test=made.val),
        splits.fingerprint(data, train=made.train[1:], val=made.val, test=made.test),
    ]
    assert len({same, *others}) == 6


LONELY = np.array([0] * 50 + [1] * 50 + [2])


@pytest.mark.parametrize(
    ("data", "options", "text"),
    [
        (
            dataset(np.zeros(0, np.int64), "scalar"),
            {},
            "photos has no examples, nothing can be split\n  fix: check the path and the table",
        ),
        (
            dataset(np.zeros(40, np.int64)),
            {},
            "all 40 examples of photos are of one class ('c0')\n  fix: add examples of at least one other class",
        ),
        (
            dataset(LONELY),
            {},
            (
                "1 classes of photos have one example, which cannot be in train and in test ('c2')\n"
                "  fix: add examples to these classes, or remove them"
            ),
        ),
        (
            dataset(np.arange(40) % 2, groups=np.array(["a", "b"] * 20)),
            {},
            (
                "2 groups cannot fill 3 splits, a group must not be on both sides\n"
                "  fix: name a finer group column, or set data.test_fraction=0"
            ),
        ),
        (
            dataset(np.arange(40) % 2, given_split=given_by("val", "test", each=20)),
            {},
            "photos gives test, val, but no train\n  fix: call the examples to learn from train",
        ),
        (
            dataset(LONELY, given_split=np.array(["train"] * 100 + ["test"])),
            {},
            "1 classes are not in train ('c2' in test)\n  fix: add examples of them to train, or remove them",
        ),
        (
            dataset(np.arange(40) % 2),
            {"val_fraction": 1.0},
            "data.val_fraction=1.0, expected at least 0 and less than 1\n  fix: data.val_fraction=0.2",
        ),
        (
            dataset(np.arange(40) % 2, groups=np.array(["a"] * 40)),
            {"test_fraction": 0.0, "val_fraction": 0.2},
            (
                "1 groups cannot fill 2 splits, a group must not be on both sides\n"
                "  fix: name a finer group column, or set data.test_fraction=0"
            ),
        ),
        (
            dataset(
                np.arange(40) % 2,
                groups=np.array(["a"] * 20 + ["b"] * 20),
                given_split=given_by("train", "test", each=20),
            ),
            {},
            ("1 groups are left for train, too few for two folds\n  fix: add examples, or name a finer group column"),
        ),
        (
            dataset(np.ones(2), "scalar"),
            {},
            "photos has 2 examples, too few to split\n  fix: add examples",
        ),
    ],
)
def test_what_cannot_be_split(data: Dataset, options: dict[str, float], text: str) -> None:
    with pytest.raises(DataError) as caught:
        splits.make(data, seed=0, **options)
    assert str(caught.value) == text
