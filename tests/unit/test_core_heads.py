"""Solved heads against scikit-learn, scipy, torch's own losses and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from warmstart import heads, runtime
from warmstart.errors import TrainingError
from warmstart.heads import Solved, solve
from warmstart.tasks.classification import Classes

SHAPES = [(90, 6, 3), (90, 6, 2), (24, 60, 3)]


def problem(num: int, dim: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of unequal scale and offset, and classes that overlap."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num) % classes)
    centres = rng.normal(size=(classes, dim))
    features = (centres[labels] + 2.0 * rng.normal(size=(num, dim))) * rng.uniform(0.1, 10, dim) + rng.normal(size=dim)
    return features.astype(np.float32), labels


def hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[labels]


def only(patch: pytest.MonkeyPatch, l2: float) -> float:
    """Leave the path one value."""
    patch.setattr(heads, "L2S", (l2,))
    patch.setattr(heads, "MIDDLE", l2)
    return l2


def sklearn_outputs(
    features: np.ndarray, labels: np.ndarray, rows: np.ndarray, l2: float, weight: dict[int, float] | None = None
) -> np.ndarray:
    """Fit scikit-learn on standardised rows at C = 1 / (l2 N); return log-probabilities of all rows."""
    scaler = StandardScaler().fit(features[rows].astype(np.float64))
    model = LogisticRegression(C=1 / (l2 * len(rows)), tol=1e-10, max_iter=10_000, class_weight=weight)
    model.fit(scaler.transform(features[rows].astype(np.float64)), labels[rows])
    return np.asarray(model.predict_log_proba(scaler.transform(features.astype(np.float64))))


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize(("num", "dim", "classes"), SHAPES)
def test_softmax_is_that_of_scikit_learn(
    num: int, dim: int, classes: int, l2: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, l2)
    features, labels = problem(num, dim, classes)
    rows = np.arange(num)
    found = solve("softmax", features, hot(labels, classes), train=rows, folds=())
    assert found.l2 == l2
    # two classes: scikit-learn has one vector w, and we the pair ±w/2, which has half the norm
    expected = sklearn_outputs(features, labels, rows, l2 if classes > 2 else l2 / 2)
    np.testing.assert_allclose(softmax(found.outputs(features), 1), np.exp(expected), atol=2e-3)


def test_class_weights_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    l2 = only(monkeypatch, 1e-2)
    features, labels = problem(90, 6, 3)
    weights = np.array([0.2, 1.0, 4.0])
    found = solve("softmax", features, hot(labels, 3), train=np.arange(90), folds=(), output_weights=weights)
    expected = sklearn_outputs(features, labels, np.arange(90), l2, dict(enumerate(weights)))
    np.testing.assert_allclose(softmax(found.outputs(features), 1), np.exp(expected), atol=2e-3)
    plain = sklearn_outputs(features, labels, np.arange(90), l2)
    assert np.abs(np.exp(plain) - np.exp(expected)).max() > 0.05


def test_labels_are_one_scikit_learn_each(monkeypatch: pytest.MonkeyPatch) -> None:
    l2 = only(monkeypatch, 3e-3)
    features, _ = problem(80, 5, 3)
    rng = np.random.default_rng(1)
    labels = (features[:, :3] / features[:, :3].std(0) + rng.normal(size=(80, 3)) > 0.3).astype(np.float32)
    found = solve("sigmoid", features, labels, train=np.arange(80), folds=())
    for column in range(3):  # the loss is averaged over the labels, so each sees three times the penalty
        expected = sklearn_outputs(features, labels[:, column], np.arange(80), 3 * l2)
        own = torch.from_numpy(found.outputs(features)[:, column]).sigmoid().numpy()
        np.testing.assert_allclose(own, np.exp(expected[:, 1]), atol=2e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (0.3, 1.0, 3.0)], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", ["single", "multi"])
def test_the_solver_minimises_the_loss_of_the_task(
    kind: str, weights: tuple[float, ...] | None, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    l2 = only(monkeypatch, 1e-2)
    task = Classes(kind, ("a", "b", "c"), smoothing, weights)  # type: ignore[arg-type]
    features, labels = problem(60, 4, 3)
    targets = labels if kind == "single" else hot(labels, 3) + hot((labels + (features[:, 0] > 0)) % 3, 3) > 0
    targets = targets.astype(np.int64 if kind == "single" else np.float32)
    found = solve(
        task.link,
        features,
        task.soft_targets(targets),
        train=np.arange(60),
        folds=(),
        output_weights=task.output_weights,
    )
    scaled = torch.from_numpy((features - found.mean) * found.scale).double()

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        head = torch.from_numpy(flat.reshape(3, 5)).requires_grad_()
        wanted = torch.from_numpy(targets)
        loss = task.loss(scaled @ head[:, :4].T + head[:, 4], wanted if kind == "single" else wanted.double())
        total = loss + l2 / 2 * head[:, :4].pow(2).sum()
        total.backward()
        assert head.grad is not None
        return total.item(), head.grad.numpy().ravel().copy()

    best = optimize.minimize(objective, np.zeros(15), jac=True, method="L-BFGS-B", options={"ftol": 1e-15}).fun
    own, slope = objective(np.hstack([found.weight, found.bias[:, None]]).astype(np.float64).ravel())
    assert own == pytest.approx(best, rel=1e-5)
    assert np.abs(slope).max() < 2e-3


def test_the_path_is_that_of_scikit_learn_and_its_best_l2_is_kept() -> None:
    features, labels = problem(150, 20, 3)
    train, val = np.arange(100), np.arange(100, 150)
    found = solve("softmax", features, hot(labels, 3), train=train, folds=[(train, val)])
    l2s, losses = zip(*found.path, strict=True)
    assert l2s == heads.L2S[: len(l2s)]
    assert 3 <= len(l2s) < len(heads.L2S), "it ends after the best, before the grid does"
    expected = [log_loss(labels[val], np.exp(sklearn_outputs(features, labels, train, l2)[val])) for l2 in l2s]
    np.testing.assert_allclose(losses, expected, rtol=0.02)
    assert found.l2 == l2s[int(np.argmin(losses))] == l2s[int(np.argmin(expected))]
    own = log_softmax(found.outputs(features), 1)
    np.testing.assert_allclose(
        np.exp(own), np.exp(sklearn_outputs(features, labels, train, found.l2)), atol=2e-3
    )  # the kept head is solved to the end
    np.testing.assert_allclose(found.out_of_fold[val], found.outputs(features[val]), atol=1e-5)
    assert np.isnan(found.out_of_fold[train]).all()


def folds_of(num: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rows = np.arange(num)
    return [(rows[rows % count != at], rows[rows % count == at]) for at in range(count)]


def test_out_of_fold_outputs_are_by_heads_that_did_not_see_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    l2 = only(monkeypatch, 1e-2)
    features, labels = problem(60, 8, 3)
    folds = folds_of(60, 4)
    found = solve("softmax", features, hot(labels, 3), train=np.arange(60), folds=folds)
    for fit, held_out in folds:
        expected = sklearn_outputs(features, labels, fit, l2)[held_out]
        np.testing.assert_allclose(log_softmax(found.out_of_fold[held_out], 1), expected, atol=0.02)
    whole = sklearn_outputs(features, labels, np.arange(60), l2)
    np.testing.assert_allclose(log_softmax(found.outputs(features), 1), whole, atol=0.02)
    assert np.abs(log_softmax(found.out_of_fold, 1) - whole).max() > 0.2, "not the outputs of the kept head"


def test_a_changed_row_changes_every_head_but_the_one_that_judges_it(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 1e-2)
    features, labels = problem(60, 8, 3)
    folds = folds_of(60, 4)
    lied = np.where(np.arange(60) == 5, (labels + 1) % 3, labels)
    one, other = (
        solve("softmax", features, hot(said, 3), train=np.arange(60), folds=folds).out_of_fold
        for said in (labels, lied)
    )
    same = np.isclose(one, other, atol=1e-7).all(1)
    assert list(np.flatnonzero(same)) == list(folds[5 % 4][1])


# --- ridge


def scaled_of(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.asarray(StandardScaler().fit(features[rows].astype(np.float64)).transform(features.astype(np.float64)))


@pytest.mark.parametrize(("num", "dim"), [(60, 7), (15, 40)])
def test_ridge_is_that_of_scikit_learn(num: int, dim: int) -> None:
    features, labels = problem(num, dim, 3)
    rng = np.random.default_rng(2)
    targets = np.stack([labels + rng.normal(size=num), features[:, 0] / 5], 1).astype(np.float32)
    train, val = np.arange(0, num, 2), np.arange(1, num, 2)
    found = solve("identity", features, targets, train=train, folds=[(train, val)])
    scaled = scaled_of(features, train)

    def reference(l2: float) -> np.ndarray:
        fitted = Ridge(alpha=l2 * len(train)).fit(scaled[train], targets[train].astype(np.float64))
        return np.asarray(fitted.predict(scaled))

    losses = [float(((reference(l2)[val] - targets[val]) ** 2).mean()) for l2 in heads.RIDGE_L2S]
    np.testing.assert_allclose([loss for _, loss in found.path], losses, rtol=1e-3)
    assert losses[heads.RIDGE_L2S.index(found.l2)] <= min(losses) * (1 + 1e-4)
    np.testing.assert_allclose(found.outputs(features), reference(found.l2), atol=1e-3)
    np.testing.assert_allclose(found.out_of_fold[val], found.outputs(features[val]), atol=1e-5)


@pytest.mark.parametrize(("num", "dim"), [(30, 5), (12, 25)])
@pytest.mark.parametrize("how", ["no folds", "folds"])
def test_leave_one_out_is_exact(num: int, dim: int, how: str) -> None:
    features, labels = problem(num, dim, 3)
    targets = (labels[:, None] + np.random.default_rng(3).normal(size=(num, 2))).astype(np.float32)
    rows = np.arange(num)
    found = solve("identity", features, targets, train=rows, folds=() if how == "no folds" else folds_of(num, 3))
    scaled = scaled_of(features, rows)

    def left_out(l2: float) -> np.ndarray:
        said = []
        for row in rows:
            rest = rows[rows != row]
            fitted = Ridge(alpha=l2 * num).fit(scaled[rest], targets[rest].astype(np.float64))
            said.append(fitted.predict(scaled[[row]])[0])
        return np.array(said)

    losses = [float(((left_out(l2) - targets) ** 2).mean()) for l2, _ in found.path]
    usable = np.array([l2 for l2, _ in found.path]) > 1e-5  # below, the brute force itself is ill-conditioned
    np.testing.assert_allclose(np.array([loss for _, loss in found.path])[usable], np.array(losses)[usable], rtol=1e-3)
    np.testing.assert_allclose(found.out_of_fold, left_out(found.l2), atol=1e-3)


# --- what a user's data can be


def test_columns_that_never_vary_have_no_say() -> None:
    features, labels = problem(60, 6, 3)
    train, val = np.arange(40), np.arange(40, 60)
    padded = np.hstack([features, np.full((60, 2), 7.0, np.float32), np.zeros((60, 1), np.float32)])
    for link, targets in (("softmax", hot(labels, 3)), ("identity", labels[:, None].astype(np.float32))):
        plain = solve(link, features, targets, train=train, folds=[(train, val)])  # type: ignore[arg-type]
        found = solve(link, padded, targets, train=train, folds=[(train, val)])  # type: ignore[arg-type]
        changed = padded.copy()
        changed[:, 6:] += 100.0
        np.testing.assert_allclose(found.outputs(changed), found.outputs(padded), atol=1e-4)
        np.testing.assert_allclose(found.outputs(padded), plain.outputs(features), atol=1e-2)


@pytest.mark.parametrize("count", [2, 12])
def test_one_picture_repeated_gives_the_share_of_each_class(count: int) -> None:
    features = np.tile(np.random.default_rng(0).normal(size=5), (count, 1)).astype(np.float32)
    labels = (np.arange(count) * 4 >= count * 3).astype(int) if count > 2 else np.array([0, 1])
    rows = np.arange(count)
    found = solve("softmax", features, hot(labels, 2), train=rows, folds=[(rows, rows)])
    share = np.bincount(labels) / count
    np.testing.assert_allclose(softmax(found.outputs(features), 1), np.tile(share, (count, 1)), atol=1e-3)
    ridge = solve("identity", features, labels[:, None].astype(np.float32), train=rows, folds=())
    np.testing.assert_allclose(ridge.outputs(features), labels.mean(), atol=1e-5)


def test_more_features_than_rows_that_separate_perfectly_stay_finite() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(8, 200)).astype(np.float32), np.arange(8) % 2
    found = solve("softmax", features, hot(labels, 2), train=np.arange(8), folds=folds_of(8, 4))
    assert np.isfinite(found.outputs(features)).all() and np.isfinite(found.out_of_fold).all()
    assert (found.outputs(features).argmax(1) == labels).all()


def test_a_class_that_train_lacks_is_never_likely() -> None:
    features, labels = problem(60, 4, 2)
    found = solve("softmax", features, hot(labels, 3), train=np.arange(60), folds=())
    assert softmax(found.outputs(features), 1)[:, 2].max() < 0.02


def test_the_module_says_what_the_arrays_say() -> None:
    features, labels = problem(60, 6, 3)
    found = solve("softmax", features, hot(labels, 3), train=np.arange(60), folds=())
    with torch.no_grad():
        said = found.to_module()(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(said, found.outputs(features), atol=1e-4)


def test_nothing_that_was_given_is_changed() -> None:
    features, labels = problem(40, 60, 3)
    targets, weights = hot(labels, 3), np.array([1.0, 2.0, 3.0])
    before = [array.copy() for array in (features, targets, weights)]
    solve("softmax", features, targets, train=np.arange(40), folds=folds_of(40, 2), output_weights=weights)
    for array, kept in zip((features, targets, weights), before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_equal_calls_give_equal_bits() -> None:
    features, labels = problem(60, 30, 3)
    one, other = (
        solve("softmax", features, hot(labels, 3), train=np.arange(60), folds=folds_of(60, 3)) for _ in range(2)
    )
    assert isinstance(one, Solved)
    assert one.weight.tobytes() == other.weight.tobytes() and one.path == other.path


# --- the minimiser


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dim", [1, 7, 40])
def test_lbfgs_finds_what_scipy_finds(dim: int, seed: int) -> None:
    """Random sums of softplus and a quadratic: smooth, convex, of condition 1e3."""
    rng = np.random.default_rng(seed)
    slopes, curves = rng.normal(size=(3 * dim, dim)), 10.0 ** rng.uniform(-3, 0, dim)
    centre = 3 * rng.normal(size=dim)

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        height = slopes @ point
        value = np.logaddexp(0, height).sum() + 0.5 * (curves * (point - centre) ** 2).sum()
        return float(value), slopes.T @ (1 / (1 + np.exp(-height))) + curves * (point - centre)

    start = rng.normal(size=dim)
    best = optimize.minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-8})
    found = heads.lbfgs(objective, start.copy(), max_steps=1000, tolerance=1e-14)
    assert objective(found)[0] == pytest.approx(best.fun, rel=1e-9)
    np.testing.assert_allclose(found, best.x, atol=1e-4)


def test_lbfgs_stays_where_nothing_is_lower() -> None:
    start = np.array([1.0, -2.0])
    assert (heads.lbfgs(lambda x: (float((x - start) @ (x - start)), 2 * (x - start)), start.copy()) == start).all()


def test_lbfgs_never_goes_up_nor_into_what_is_not_a_number() -> None:
    def steep(x: np.ndarray) -> tuple[float, np.ndarray]:
        if x[0] <= 0:
            return float("nan"), np.full(1, np.nan)
        return float(x[0] - np.log(x[0])), 1 - 1 / x

    assert heads.lbfgs(steep, np.array([50.0]))[0] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("link", ["softmax", "sigmoid", "identity"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers_are_refused(link: heads.Link, bad: float) -> None:
    features = runtime.rng(0).normal(size=(20, 4)).astype(np.float32)
    features[7, 2] = features[11, 0] = bad
    targets = np.eye(2, dtype=np.float32)[np.arange(20) % 2]
    rows = np.arange(20)
    with pytest.raises(TrainingError) as caught:
        heads.solve(link, features, targets, train=rows, folds=[(rows, rows)])
    assert str(caught.value) == (
        "2 of 20 examples have features that are NaN or infinite (first: row 7), and a head needs finite numbers\n"
        "  fix: another backbone or data.image_size, or warmstart cache clear"
    )
    with pytest.raises(TrainingError, match="examples have targets that are NaN"):
        heads.solve(
            link, np.ones((20, 4), np.float32), np.full((20, 2), bad, np.float32), train=rows, folds=[(rows, rows)]
        )


def test_a_loss_that_is_no_number_is_not_called_a_minimum() -> None:
    with pytest.raises(TrainingError, match="the loss of the head is nan before the first step"):
        heads.lbfgs(lambda at: (float("nan"), at), np.ones(3))
    leaves = heads.lbfgs(lambda at: (float(at @ at) if at[0] > 0.9 else float("nan"), 2 * at), np.ones(3))
    assert np.isfinite(leaves).all()
