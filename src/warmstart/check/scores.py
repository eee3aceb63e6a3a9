"""What every score must keep of the contract in `warmstart.scores`, on made-up evidence of every kind that it takes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np

from warmstart import runtime
from warmstart.errors import SourceError
from warmstart.models import Card
from warmstart.scores import SAID, Decomposed, Evidence, Kind, Score, checked, measure

NUM_EXAMPLES, DIM, NUM_CLASSES, NUM_SOURCE_CLASSES = 120, 12, 4, 6
CLOSE = 0.2
"""How far the order of the examples may move a value, as a part of the way from useless to good features."""
CARD = Card("package/efficientnet_lite0", arch="timm:tf_efficientnet_lite0", num_params=3_371_008)


def check_score(score: Score) -> None:
    """Raise AssertionError unless a score keeps its contract on every kind of targets that it takes.

    It says what it needs, takes and costs; good features stand above useless ones; the same evidence and seed give the
    same value and leave the evidence as it was; neither the order of examples nor the numbers of classes decide; what
    examples add has the value as its mean; more features than examples, features that never vary and a class of one
    example give a finite value.

    Args:
        score: With any options.
    """
    assert isinstance(score, Score), f"{score!r} lacks a member of the Score protocol"
    name = type(score).__name__
    assert score.needs, f"{name} needs nothing, so it can say nothing"
    strange = set(score.needs) - {"features", "source_probabilities", "card"}
    assert not strange, f"{name} needs {sorted(strange)}, which no evidence has"
    assert score.kinds, f"{name} takes no kind of targets"
    assert not set(score.kinds) - set(SAID), f"{name} takes {score.kinds}, of which some are no kinds of targets"
    assert len(score.cost.split()) > 1, f"{name}: the cost {score.cost!r} is no sentence"
    for kind in score.kinds:
        where = f"{name} on {SAID[kind]}"
        if set(score.needs) == {"card"}:
            _check_card(score, kind, where)
            continue
        _check_order(score, kind, where)
        _check_same(score, evidence(kind, useful=True), where)
        _check_hard(score, kind, where)


def evidence(kind: Kind, *, useful: bool, num: int = NUM_EXAMPLES, dim: int = DIM) -> Evidence:
    """Make evidence whose features and source probabilities tell the targets, or tell nothing."""
    rng = runtime.rng(0, "check scores", num, dim)
    hidden = rng.integers(0, NUM_CLASSES, num)
    hidden[:NUM_CLASSES] = np.arange(NUM_CLASSES)
    features = rng.normal(size=(num, dim))
    chances = rng.random((num, NUM_SOURCE_CLASSES))
    noise = rng.normal(size=(num, 2))
    if useful:
        features[:, :NUM_CLASSES] += 6.0 * np.eye(NUM_CLASSES)[hidden]
        chances += 8.0 * np.eye(NUM_SOURCE_CLASSES)[hidden]
    numbers = np.stack([hidden, hidden**2], axis=1) + 0.1 * noise
    targets = {
        "single": hidden,
        "multi": np.stack([hidden % 2 == 0, hidden > 1], axis=1),
        "scalar": numbers[:, 0],
        "vector": numbers,
    }[kind]
    return Evidence(targets, kind, features.astype(np.float32), chances / chances.sum(axis=1, keepdims=True), CARD)


def _check_card(score: Score, kind: Kind, where: str) -> None:
    """A score of cards gives the same finite number again, or says that the card lacks what it needs."""
    for card in (CARD, Card("random/resnet18", arch="timm:resnet18")):
        found = Evidence(evidence(kind, useful=True).targets, kind, card=card)
        try:
            value = measure(score, found)
        except SourceError:
            continue
        assert measure(score, found) == value, f"{where}: two calls differ for {card.name}"


def _check_order(score: Score, kind: Kind, where: str) -> None:
    """Good features stand above useless ones, whatever the order of examples and the numbers of classes."""
    good = evidence(kind, useful=True)
    high, low = measure(score, good), measure(score, evidence(kind, useful=False))
    assert high > low, f"{where}: features that tell the targets get {high:.4g}, useless ones {low:.4g}"
    shuffled = taken(good, runtime.rng(0, "check order").permutation(NUM_EXAMPLES))
    moved = abs(measure(score, shuffled) - high) / (high - low)
    assert moved < CLOSE, f"{where}: the order of the examples moves the value by {moved:.0%} of what features do"
    if kind == "single":
        renamed = replace(good, targets=10 * (NUM_CLASSES - 1 - good.targets))
        moved = abs(measure(score, renamed) - high) / (high - low)
        assert moved < CLOSE, f"{where}: other numbers of classes move the value by {moved:.0%} of what features do"


def taken(found: Evidence, rows: np.ndarray) -> Evidence:
    """Return the evidence of these rows, in this order."""
    assert found.features is not None and found.source_probabilities is not None
    return replace(
        found,
        targets=found.targets[rows],
        features=found.features[rows],
        source_probabilities=found.source_probabilities[rows],
    )


def _check_same(score: Score, found: Evidence, where: str) -> None:
    """Equal calls give equal values, nothing is written to, and parts add up."""
    kept = copy.deepcopy(found)
    value = measure(score, found, seed=3)
    assert measure(score, found, seed=3) == value, f"{where}: two calls with the same seed differ"
    for part in ("targets", "features", "source_probabilities"):
        assert np.array_equal(getattr(found, part), getattr(kept, part)), f"{where}: the score wrote to the {part}"
    if isinstance(score, Decomposed):
        parts = score.per_example(checked(score, found), seed=3)
        assert parts.shape == (len(found.targets),), (
            f"{where}: per_example has shape {parts.shape}, not one per example"
        )
        mean = float(parts.mean())
        equal = math.isclose(mean, value, abs_tol=1e-9)
        assert equal, f"{where}: per_example has the mean {mean}, and the value is {value}"


def _check_hard(score: Score, kind: Kind, where: str) -> None:
    """`measure` raises when the value is not finite; a score has no excuse for these."""
    wide = evidence(kind, useful=True, num=10, dim=50)
    assert wide.features is not None
    cases = {
        "more features than examples": wide,
        "features that never vary": replace(wide, features=np.ones_like(wide.features)),
        "all in one class but one": replace(wide, targets=np.arange(10) // 9),
    }
    if kind != "single":
        del cases["all in one class but one"]
    for what, hard in cases.items():
        try:
            measure(score, hard)
        except Exception as error:
            raise AssertionError(f"{where}, {what}: {error!r}") from error
