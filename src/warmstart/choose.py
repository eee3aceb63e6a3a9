"""Which backbone at which input size, decided by measuring on train and val. The race among backbones joins here."""

from __future__ import annotations

import logging

import numpy as np

from warmstart import bench, compare, runtime, sources
from warmstart.config import Choice
from warmstart.errors import SourceError
from warmstart.models import Card
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.tune import Candidate, HeadStart, Trial, solve_head

log = logging.getLogger(__name__)

DEFAULT_BACKBONE = "package/efficientnet_lite0"
SAMPLE = 1000
"""Training examples, at most, on which input sizes are compared."""
STEP = 32
"""Input sizes are multiples of this, which every family's strides divide."""
FEATURES_SHARE = 0.35
"""Share of the budget that frozen features may take, test included."""


def choose(session: Session, data: Prepared) -> Candidate:
    """Return the candidate that everything else is measured against: a probe on the chosen backbone and size."""
    name = session.decide("backbone", lambda: (DEFAULT_BACKBONE, "small, permissively licensed, quick on a CPU"))
    size = session.decide("data.image_size", lambda: choose_size(session, data, str(name)))
    assert isinstance(size, int)
    return Candidate(str(name), size, Choice("probe"))


def as_told(session: Session) -> Candidate:
    """Return the candidate that the recipe names: LP-FT at the weights' own input size where it leaves that open."""
    name = str(session.decide("backbone", lambda: (DEFAULT_BACKBONE, "small, permissively licensed, quick on a CPU")))
    session.decide("strategy.name", lambda: ("lp_ft", "a sound start and all layers"))
    size = session.decide("data.image_size", lambda: own_size(name))
    assert isinstance(size, int)
    return Candidate(name, size, session.recipe.strategy)


def own_size(backbone: str) -> tuple[int, str]:
    """Return the input size that the weights were trained at."""
    return sources.load(backbone)[1].spec.image_size, "what the weights were trained at"


def choose_size(session: Session, data: Prepared, backbone: str) -> tuple[int, str]:
    """Compare input sizes by their probes on a sample, smallest first; a larger one has to be better, not equal.

    Returns:
        The size in pixels, and the reason.
    """
    place = bench.load(session, data, backbone, 1)
    spec = place.card.spec
    if spec.fixed_size:
        return spec.image_size, "the network takes no other"
    fold = [_sample(session, data)]
    best: tuple[int, HeadStart] | None = None
    told = []
    for size in sizes(place.card):
        place = bench.load(session, data, backbone, size)
        rival = solve_head(place, fold)
        seconds = _forecast(rival, len(data.dataset))
        if best is not None and seconds > FEATURES_SHARE * (session.recipe.budget or float("inf")):
            told.append(f"{size} px would take {seconds:.0f} s for features alone")
            break
        if best is None:
            best = (size, rival)
            continue
        a, b = rival.val(place, fold), best[1].val(place, fold)
        found = compare.paired(data.task, a, b, seed=session.recipe.seed)
        told.append(found.words(f"{size} px", f"{best[0]} px"))
        if found.verdict == "a":
            best = (size, rival)
    assert best is not None, "there is at least one size"
    return best[0], f"on {len(fold[0][0])} examples: {'; '.join(told) or 'the only size'}"


def sizes(card: Card) -> tuple[int, ...]:
    """Return the input sizes worth trying, ascending: about 4/7, 5/7, 6/7 and 7/7 of what the weights were trained at.

    Example:
        >>> sizes(Card("timm/resnet50"))
        (128, 160, 192, 224)
    """
    own = card.spec.image_size
    scaled = {max(STEP, round(own * part / 7 / STEP) * STEP) for part in (4, 5, 6)}
    return tuple(sorted({size for size in scaled if size < own} | {own}))


def features(session: Session, data: Prepared, candidate: Candidate) -> np.ndarray:
    """Return frozen features of every example; a frozen winner needs them for test anyway, and the audit now.

    Shape:
        float32 (N, D).
    """
    place = bench.load(session, data, candidate.backbone, candidate.image_size)
    last = len(place.backbone.layer_groups())
    return np.asarray(place.values(data.everything, last, place.plain()).values)


def features_if_any(session: Session, data: Prepared) -> np.ndarray | None:
    """Return features for an audit from the recipe's backbone or the usual one; None when its weights are not here."""
    name = session.recipe.backbone or DEFAULT_BACKBONE
    try:
        size = session.recipe.data.image_size or sizes(sources.load(name)[1])[0]
        return features(session, data, Candidate(name, size, Choice("probe")))
    except SourceError as error:
        if session.recipe.backbone is not None:
            raise
        log.warning("the audit goes on without features: %s", error.problem)
        return None


def pick(session: Session, data: Prepared, trials: list[Trial]) -> tuple[Trial, list[compare.Comparison]]:
    """Keep what validates better by a paired interval; a tie goes to the cheaper, which comes first."""
    winner, comparisons = trials[0], []
    for rival in trials[1:]:
        found = compare.paired(data.task, rival.val, winner.val, seed=session.recipe.seed)
        comparisons.append(found)
        if found.verdict == "a":
            winner = rival
    return winner, comparisons


def _sample(session: Session, data: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Draw a part of train, and a val of at most the same number; with folds, the first fold."""
    train, val = data.folds[0]
    draw = runtime.rng(session.recipe.seed, "size sample")
    return (
        np.sort(draw.permutation(train)[:SAMPLE]),
        np.sort(draw.permutation(val)[:SAMPLE]),
    )


def _forecast(head: HeadStart, num: int) -> float:
    """Forecast the seconds of features for `num` examples from what the sample took."""
    computed = sum(one.computed for one in head.extracted)
    seconds = sum(one.seconds for one in head.extracted)
    return seconds / computed * num if computed else 0.0
