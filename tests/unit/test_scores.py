"""Scores against definitions, brute force, scipy and scikit-learn; and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import mutual_info_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from warmstart import heads, plugins, runtime, scores
from warmstart.check.scores import CARD, evidence
from warmstart.errors import DataError, RecipeError, SourceError, TrainingError
from warmstart.models import Card, InputSpec
from warmstart.models.build import as_backbone, network
from warmstart.scores import Evidence, Kind, measure

OF_FEATURES = ("gbc", "h_score", "knn", "logistic", "logme", "loo_ridge", "nleep", "transrate")
SAME_IN_ANY_ORDER = ("gbc", "h_score", "knn", "leep", "logme", "loo_ridge", "nce", "transrate")


def score(name: str, **options: object) -> scores.Score:
    return plugins.load("score", name)(**options)


def hazy(num: int = 40, dim: int = 6, kind: Kind = "single", seed: int = 0) -> Evidence:
    """Make evidence that tells something, but not all."""
    rng = np.random.default_rng(seed)
    hidden = np.arange(num) % 3
    features = rng.normal(size=(num, dim)) + 1.5 * np.eye(3, dim)[hidden] + 2.0
    chances = rng.random((num, 5)) + 2.0 * np.eye(5)[hidden]
    targets = {
        "single": hidden,
        "multi": np.stack([hidden > 0, rng.random(num) < 0.5], axis=1),
        "scalar": hidden + rng.normal(size=num),
        "vector": rng.normal(size=(num, 2)) + features[:, :2],
    }[kind]
    return Evidence(targets, kind, features.astype(np.float32), chances / chances.sum(1, keepdims=True), CARD)


def standardised(features: np.ndarray) -> np.ndarray:
    return (features - features.mean(0)) / features.std(0)


# Each against something that is not ours


@pytest.mark.parametrize("kind", ["single", "multi", "scalar", "vector"])
@pytest.mark.parametrize("dim", [6, 60])
def test_loo_ridge_is_what_refitting_without_each_example_says(kind: Kind, dim: int) -> None:
    found = hazy(dim=dim, kind=kind)
    columns, features, num = found.columns, standardised(found.x), len(found.targets)
    l2 = heads.solve("identity", found.features, columns.astype(np.float32), train=np.arange(num), folds=()).l2
    outputs = np.zeros_like(columns)
    for row in range(num):
        rest = np.arange(num) != row
        outputs[row] = Ridge(alpha=num * l2).fit(features[rest], columns[rest]).predict(features[[row]])
    spread = ((columns - columns.mean(0)) ** 2).sum(1).mean()
    r2 = 1 - ((outputs - columns) ** 2).sum(1) / spread
    assert score("loo_ridge", by="r2").per_example(found) == pytest.approx(r2, abs=2e-4)
    if kind == "single":
        assert measure("loo_ridge", found) == (outputs.argmax(1) == found.targets).mean()
    elif kind == "multi":
        assert measure("loo_ridge", found) == ((outputs > 0.5) == found.targets).mean()
    else:
        assert measure("loo_ridge", found) == pytest.approx(r2.mean(), abs=1e-4)


def test_logistic_is_scikit_learns_on_the_same_folds() -> None:
    from warmstart.scores import logistic

    found = hazy(90)
    folds = logistic._folds(found, 5, 7)
    everybody = np.concatenate([held for _, held in folds])
    assert sorted(everybody) == list(range(90))
    assert all(np.bincount(found.targets[held]).tolist() == [6, 6, 6] for _, held in folds)
    columns = found.columns.astype(np.float32)
    l2 = heads.solve("softmax", found.features, columns, train=np.arange(90), folds=folds).l2
    log_likelihood, hits = np.zeros(90), np.zeros(90)
    for fit, held in folds:
        mean, std = found.x[fit].mean(0), found.x[fit].std(0)
        peer = LogisticRegression(C=1 / (l2 * len(fit)), tol=1e-8, max_iter=1000)
        peer.fit((found.x[fit] - mean) / std, found.targets[fit])
        chances = peer.predict_proba((found.x[held] - mean) / std)
        log_likelihood[held] = np.log(chances[np.arange(len(held)), found.targets[held]])
        hits[held] = chances.argmax(1) == found.targets[held]
    assert score("logistic", by="log_loss").per_example(found, seed=7) == pytest.approx(log_likelihood, abs=2e-2)
    assert measure("logistic", found, seed=7) == hits.mean()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 4, 5])
def test_knn_is_scikit_learns_without_each_example(metric: str, k: int) -> None:
    def nearer_first(distances: np.ndarray) -> np.ndarray:
        return np.tile(1 + 1e-3 * 0.5 ** np.arange(k), (len(distances), 1))

    classes, numbers = hazy(), hazy(kind="scalar")
    hits, predicted = [], []
    for row in range(40):
        rest = np.arange(40) != row
        voters = KNeighborsClassifier(k, metric=metric, weights=nearer_first).fit(
            classes.x[rest], classes.targets[rest]
        )
        hits.append(voters.predict(classes.x[[row]])[0] == classes.targets[row])
        means = KNeighborsRegressor(k, metric=metric).fit(numbers.x[rest], numbers.targets[rest])
        predicted.append(means.predict(numbers.x[[row]])[0])
    assert measure(score("knn", k=k, metric=metric), classes) == np.mean(hits)
    r2 = 1 - np.mean((np.array(predicted) - numbers.targets) ** 2) / numbers.targets.var()
    assert measure(score("knn", k=k, metric=metric), numbers) == pytest.approx(r2)


def test_knn_in_blocks_is_knn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from warmstart.scores import knn

    whole = measure("knn", hazy(100))
    monkeypatch.setattr(knn, "BLOCK", 7)
    assert measure("knn", hazy(100)) == whole


def evidence_at(features: np.ndarray, column: np.ndarray, alpha: float, beta: float) -> float:
    """Return log p(y | F, α, β) / N as the density of a Gaussian, by scipy."""
    covariance = np.eye(len(column)) / beta + features @ features.T / alpha
    return stats.multivariate_normal.logpdf(column, np.zeros(len(column)), covariance) / len(column)


@pytest.mark.parametrize(("num", "dim"), [(40, 6), (30, 50)])
def test_logme_is_the_largest_evidence_that_scipy_finds(num: int, dim: int) -> None:
    found = hazy(num, dim)
    best = []
    for column in found.columns.T:
        starts = [(np.log(a), np.log(b)) for a in (0.1, 100.0) for b in (1.0, 30.0)]
        tries = [
            optimize.minimize(
                lambda at, y=column: -evidence_at(found.x, y, *np.exp(np.clip(at, -14, 14))),
                start,
                method="Nelder-Mead",
            )
            for start in starts
        ]
        best.append(-min(one.fun for one in tries))
    assert measure("logme", found) == pytest.approx(np.mean(best), abs=1e-5)


def fixed_point(features: np.ndarray, column: np.ndarray, steps: int) -> tuple[float, float]:
    """Iterate α and β as the papers have it (arXiv 2102.11005, algorithm 1), here with plain matrices."""
    alpha = beta = 1.0
    gram = features.T @ features
    for _ in range(steps):
        posterior = alpha * np.eye(len(gram)) + beta * gram
        mean = beta * np.linalg.solve(posterior, features.T @ column)
        gamma = np.trace(beta * gram @ np.linalg.inv(posterior))
        alpha = gamma / (mean @ mean)
        beta = (len(column) - gamma) / ((column - features @ mean) ** 2).sum()
    return alpha, beta


def test_logme_is_where_the_fixed_point_iteration_converges_to() -> None:
    for kind in ("single", "vector"):
        found = hazy(50, 8, kind)
        ends = [evidence_at(found.x, column, *fixed_point(found.x, column, 300)) for column in found.columns.T]
        assert measure("logme", found) == pytest.approx(np.mean(ends), abs=1e-6)


def test_logme_of_columns_that_are_features_is_finite_and_high() -> None:
    found = hazy(60)
    exact = replace(found, features=np.hstack([found.features, found.columns]).astype(np.float32))
    assert measure("logme", found) + 1 < measure("logme", exact) < 20


def between(found: Evidence) -> np.ndarray:
    means = np.stack([found.x[found.targets == label].mean(0) for label in found.targets])
    return np.cov(means, rowvar=False, bias=True)


def test_h_score_without_shrinkage_is_its_definition() -> None:
    found = hazy(60)
    expected = np.trace(np.linalg.pinv(np.cov(found.x, rowvar=False, bias=True)) @ between(found))
    assert measure(score("h_score", shrinkage=False), found) == pytest.approx(expected)
    assert 0 < expected < 2  # at most C - 1


@pytest.mark.parametrize("dim", [6, 100])
def test_h_score_shrinks_as_ledoit_and_wolf_do(dim: int) -> None:
    found = hazy(60, dim)
    peer = LedoitWolf().fit(found.x)
    expected = (1 - peer.shrinkage_) * np.trace(np.linalg.solve(peer.covariance_, between(found)))
    assert 0 < peer.shrinkage_ < 1
    assert measure("h_score", found) == pytest.approx(expected)


def leep_by_tables(chances: np.ndarray, targets: np.ndarray) -> float:
    """Go through eq. 2 of arXiv 2002.12462 term by term."""
    num, num_source = chances.shape
    total = 0.0
    for i in range(num):
        inner = 0.0
        for z in range(num_source):
            joint = sum(chances[j, z] for j in range(num) if targets[j] == targets[i]) / num
            inner += joint / (chances[:, z].sum() / num) * chances[i, z]
        total += np.log(inner)
    return total / num


def test_leep_is_its_table() -> None:
    found = hazy()
    assert measure("leep", found) == pytest.approx(leep_by_tables(found.source_probabilities, found.targets))


def test_leep_of_a_perfect_source_is_zero_and_of_a_blind_one_the_entropy() -> None:
    targets = np.array([0, 0, 0, 1, 1, 2])
    assert measure("leep", Evidence(targets, source_probabilities=np.eye(7)[targets])) == pytest.approx(0.0)
    blind = Evidence(targets, source_probabilities=np.full((6, 4), 0.25))
    assert measure("leep", blind) == pytest.approx(-stats.entropy([1 / 2, 1 / 3, 1 / 6]))


def test_nce_is_the_mutual_information_less_the_entropy() -> None:
    found = hazy(200)
    labels = found.source_probabilities.argmax(1)
    expected = mutual_info_score(found.targets, labels) - stats.entropy(np.bincount(found.targets))
    assert measure("nce", found) == pytest.approx(expected)


def test_leep_of_a_source_that_is_always_sure_is_nce() -> None:
    found = hazy()
    sure = replace(found, source_probabilities=np.eye(5)[found.source_probabilities.argmax(1)])
    assert measure("leep", sure) == pytest.approx(measure("nce", found))


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_nleep_is_leep_of_scikit_learns_mixture(covariance: str) -> None:
    found = hazy(90)
    components = PCA(0.8, svd_solver="full").fit_transform(found.x) / np.sqrt(found.x.var(0).sum())
    mixture = GaussianMixture(15, covariance_type=covariance, random_state=5).fit(components)
    expected = leep_by_tables(mixture.predict_proba(components), found.targets)
    assert measure(score("nleep", covariance=covariance), found, seed=5) == pytest.approx(expected, abs=1e-6)


def test_nleep_has_no_more_gaussians_than_a_quarter_of_the_examples() -> None:
    found = hazy(24)
    few = score("nleep", per_class=2)
    assert measure("nleep", found) == measure(few, found)  # 6 either way


@pytest.mark.parametrize("dim", [6, 60])
@pytest.mark.parametrize("unit_rows", [True, False])
def test_transrate_is_its_definition(dim: int, unit_rows: bool) -> None:
    found = hazy(40, dim)
    rows = found.x - found.x.mean(0)
    if unit_rows:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def rate(part: np.ndarray) -> float:
        return 0.5 * np.log(np.linalg.eigvalsh(np.eye(dim) + part.T @ part / (len(part) * 1e-2))).sum()

    within = sum((found.targets == c).mean() * rate(rows[found.targets == c]) for c in range(3))
    assert measure(score("transrate", epsilon=1e-2, unit_rows=unit_rows), found) == pytest.approx(rate(rows) - within)


def test_transrate_of_one_feature_by_hand() -> None:
    found = Evidence(np.array([0, 0, 1, 1]), features=np.array([[1.0], [1], [3], [3]]))
    # Centred the rows are -1, -1, 1, 1: every rate is ½ log(1 + 1/ε), so nothing is gained.
    assert measure("transrate", found) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("covariance", ["spherical", "diagonal"])
def test_gbc_of_one_dimension_is_the_integral_of_the_overlap(covariance: str) -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(90) % 3
    features = rng.normal(size=(90, 1)) * np.array([1.0, 2.0, 0.5])[targets][:, None] + targets[:, None]
    normals = [stats.norm(features[targets == c].mean(), features[targets == c].std()) for c in range(3)]
    overlaps = [
        integrate.quad(lambda at, a=a, b=b: np.sqrt(a.pdf(at) * b.pdf(at)), -20, 20, points=[0, 1, 2])[0]
        for a in normals
        for b in normals
        if a is not b
    ]
    found = Evidence(targets, features=features)
    assert measure(score("gbc", covariance=covariance), found) == pytest.approx(-sum(overlaps), abs=1e-6)


def test_gbc_with_spheres_is_the_closed_form() -> None:
    found = hazy(90, 3)
    parts = [found.x[found.targets == c] for c in range(3)]
    total = 0.0
    for a in parts:
        for b in parts:
            if a is not b:
                one, two = (part.var(0).mean() * np.eye(3) for part in (a, b))
                middle, apart = (one + two) / 2, a.mean(0) - b.mean(0)
                ratio = np.linalg.det(middle) / np.sqrt(np.linalg.det(one) * np.linalg.det(two))
                total += np.exp(-apart @ np.linalg.solve(middle, apart) / 8 - np.log(ratio) / 2)
    assert measure(score("gbc", covariance="spherical"), found) == pytest.approx(-total)


def test_gbc_lies_between_all_overlap_and_none() -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(400) % 4
    same = Evidence(targets, features=np.tile(rng.normal(size=(100, 5)), (1, 4)).reshape(400, 5))
    far = Evidence(targets, features=rng.normal(size=(400, 5)) + 100.0 * targets[:, None])
    assert measure("gbc", same) == pytest.approx(-4 * 3)
    assert measure("gbc", far) == pytest.approx(0.0, abs=1e-12)


def test_the_prior_is_the_catalogues_and_unpublished_weights_have_none() -> None:
    from warmstart import catalogue

    card = replace(CARD, accuracy=75.0, num_params=25_000_000)
    assert measure("prior", Evidence(np.zeros(0), card=card)) == catalogue.prior(card) == pytest.approx(75.0)
    with pytest.raises(SourceError, match="mine/net has no published accuracy, so it has no static prior") as caught:
        measure("prior", Evidence(np.zeros(0), card=Card("mine/net")))
    assert caught.value.fix.startswith("leave `prior` out")


# Invariances


@pytest.mark.parametrize("name", SAME_IN_ANY_ORDER)
def test_the_order_of_examples_does_not_matter(name: str) -> None:
    found, order = hazy(90), np.random.default_rng(1).permutation(90)
    turned = replace(
        found,
        targets=found.targets[order],
        features=found.features[order],
        source_probabilities=found.source_probabilities[order],
    )
    assert measure(name, turned) == pytest.approx(measure(name, found), abs=1e-6)


@pytest.mark.parametrize("name", ["gbc", "h_score", "knn", "logme", "nleep", "transrate"])
def test_rotated_features_have_the_same_value(name: str) -> None:
    found = hazy(90)
    rotation = stats.ortho_group.rvs(6, random_state=0)
    turned = replace(found, features=found.x @ rotation)
    assert measure(name, turned) == pytest.approx(measure(name, replace(found, features=found.x)), abs=1e-5)


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize("factor", [0.01, 70.0])
def test_the_unit_of_features_does_not_matter(name: str, factor: float) -> None:
    found = hazy(90)
    one = score(name, unit_rows=True) if name == "transrate" else score(name)
    assert measure(one, replace(found, features=factor * found.x)) == pytest.approx(measure(one, found), abs=1e-3)


def test_h_score_without_shrinkage_is_the_same_after_any_linear_map() -> None:
    found, plain = hazy(90), score("h_score", shrinkage=False)
    mixed = replace(found, features=found.x @ np.random.default_rng(2).normal(size=(6, 6)))
    assert measure(plain, mixed) == pytest.approx(measure(plain, found))


@pytest.mark.parametrize("name", OF_FEATURES)
def test_one_example_alone_in_its_class_is_no_obstacle(name: str) -> None:
    found = hazy(40)
    lonely = replace(found, targets=np.where(np.arange(40) == 5, 9, found.targets))
    assert np.isfinite(measure(name, lonely))


# Evidence, and what is refused


def test_which_scores_take_numbers() -> None:
    takers = {name for name in plugins.names("score") if "scalar" in plugins.load("score", name).kinds}
    assert takers == {"knn", "logme", "loo_ridge", "prior"}


@pytest.mark.parametrize("name", ["gbc", "h_score", "leep", "logistic", "nce", "nleep", "transrate"])
def test_other_scores_refuse_numbers_and_name_those_that_take_them(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"score {name} takes one class per example") as caught:
        measure(name, hazy(kind="scalar"))
    assert "and the targets are numbers" in caught.value.problem
    assert caught.value.fix == "use a score that takes them: knn, logme, loo_ridge, prior"


def test_missing_evidence_is_named() -> None:
    found = hazy()
    with pytest.raises(RecipeError, match="needs features, and none of package/efficientnet_lite0 are given") as caught:
        measure("logme", replace(found, features=None))
    assert caught.value.fix == "use a score that needs no features: leep, nce, prior"
    with pytest.raises(
        RecipeError, match="score leep needs source class probabilities, and the candidate has no class"
    ):
        measure("leep", replace(found, source_probabilities=None, card=None))
    with pytest.raises(RecipeError, match="score prior needs the card of the weights, and none is given"):
        measure("prior", replace(found, card=None))


def test_an_unknown_score_is_told_the_closest() -> None:
    with pytest.raises(RecipeError, match="unknown score 'logmee'\n  fix: did you mean 'logme'"):
        measure("logmee", hazy())


@pytest.mark.parametrize("name", OF_FEATURES)
def test_features_that_are_not_finite_are_counted(name: str) -> None:
    found = hazy()
    found.features[[3, 3, 8], [0, 1, 2]] = [np.nan, np.inf, -np.inf]
    with pytest.raises(DataError, match=r"features of package/.* hold 3 values that are not finite, in 2 of 40 rows"):
        measure(name, found)
    numbers = Evidence(np.array([0.0, np.nan, 2, 3]), "scalar", np.eye(4))
    with pytest.raises(DataError, match="targets of the candidate hold 1 values that are not finite, in 1 of 4 rows"):
        measure("logme", numbers)


def test_too_few_examples_and_rows_that_do_not_match() -> None:
    with pytest.raises(DataError, match="score knn has 3 examples to go by, expected at least 4"):
        measure("knn", hazy(3))
    with pytest.raises(DataError, match=r"features of .* have shape \(39, 6\), expected \(40, D\) as for the targets"):
        measure("knn", replace(hazy(), features=hazy().features[1:]))
    with pytest.raises(DataError, match=r"have shape \(40,\), expected \(40, D\)"):
        measure("knn", replace(hazy(), features=np.zeros(40)))


@pytest.mark.parametrize("name", [*OF_FEATURES, "leep", "nce"])
def test_one_class_says_nothing(name: str) -> None:
    with pytest.raises(DataError, match=rf"the 40 examples that score {name} looks at are all of one class"):
        measure(name, replace(hazy(), targets=np.full(40, 2)))


def test_targets_that_do_not_vary_say_nothing() -> None:
    with pytest.raises(DataError, match="are all labelled alike"):
        measure("knn", replace(hazy(kind="multi"), targets=np.ones((40, 2), bool)))
    with pytest.raises(DataError, match="are all the same number"):
        measure("knn", replace(hazy(kind="scalar"), targets=np.full(40, 3.5)))


@dataclass(frozen=True)
class Lost:
    """Gives no number."""

    needs: ClassVar[tuple[scores.Need, ...]] = ("features",)
    kinds: ClassVar[tuple[Kind, ...]] = ("single",)
    cost: ClassVar[str] = "nothing at all"

    def value(self, evidence: Evidence, *, seed: int = 0) -> float:
        """Return NaN."""
        return float("nan")


def test_a_value_that_is_not_a_number_is_told() -> None:
    with pytest.raises(TrainingError, match="score Lost of package/efficientnet_lite0 is nan, not a finite number"):
        measure(Lost(), hazy())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("logistic", {"folds": 1}, r"score logistic has folds=1 \(expected at least 2\)"),
        ("knn", {"k": 0}, r"score knn has k=0 \(expected at least 1\)"),
        ("gbc", {"dims": 0}, r"score gbc has dims=0 \(expected at least 1\)"),
        ("transrate", {"epsilon": 0.0}, r"score transrate has epsilon=0.0 \(expected more than 0\)"),
    ],
)
def test_options_that_cannot_be(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        score(name, **options)


def test_labels_are_numbered_without_gaps() -> None:
    found = hazy()
    gaps = scores.checked(score("leep"), replace(found, targets=found.targets * 7 + 2))
    assert np.array_equal(gaps.targets, found.targets)


def test_seeds_deal_other_folds_and_other_clusters() -> None:
    found = evidence("single", useful=False)
    for name in ("logistic", "nleep"):
        values = {round(float(measure(name, found, seed=seed)), 9) for seed in range(4)}
        assert len(values) > 1, name


def test_source_probabilities_are_what_the_whole_network_says() -> None:
    spec = InputSpec(image_size=32)
    whole = network("timm:test_resnet", spec, seed=0).eval()
    pixels = torch.from_numpy(runtime.rng(0, "pixels").integers(0, 256, (4, 3, 32, 32), dtype=np.uint8))
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (spec.mean, spec.std))
    with torch.no_grad():
        expected = whole((pixels / 255 - mean) / std).softmax(-1)
        backbone = as_backbone(whole, spec)
        features = backbone.features(pixels).pooled.numpy()
    found = scores.source_probabilities(backbone, features)
    assert found == pytest.approx(expected.numpy(), abs=1e-5)
    headless = as_backbone(network("timm:test_resnet", spec, seed=0), spec, keep_classifier=False)
    assert scores.source_probabilities(headless, features) is None


def test_listing_scores_imports_nothing_heavy() -> None:
    heavy = ("numpy", "torch", "timm", "sklearn", "scipy")
    count = "import sys; from warmstart import catalogue; print(len(catalogue.rows('scores')),"
    source = f"{count} *sorted(set({heavy!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["11"]
