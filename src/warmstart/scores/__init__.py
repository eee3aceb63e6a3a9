"""CONTRACT of scores: a number that estimates, before anything is trained, how well a candidate will do.

A score looks at `Evidence`: features that the frozen backbone gives for some training examples, their targets, the
probabilities that its own classifier gives, or only its card. Higher is better, and a value means something only beside
the values that other candidates have on the same examples. `measure` is how scores are called: it refuses evidence
that a score cannot use, so that the files below hold the mathematics and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from warmstart import plugins
from warmstart.errors import DataError, RecipeError, TrainingError, listed

if TYPE_CHECKING:
    import numpy as np

    from warmstart.models import Backbone, Card

Need: TypeAlias = Literal["features", "source_probabilities", "card"]
Kind: TypeAlias = Literal["single", "multi", "scalar", "vector"]
CLASSES: tuple[Kind, ...] = ("single",)
EVERYTHING: tuple[Kind, ...] = ("single", "multi", "scalar", "vector")
MIN_EXAMPLES = 4
"""With fewer there is nothing to hold out and no covariance."""
SAID: dict[Kind, str] = {
    "single": "one class per example",
    "multi": "labels",
    "scalar": "numbers",
    "vector": "vectors of numbers",
}


@dataclass(frozen=True)
class Evidence:
    """What is known of a candidate before it is trained.

    Shape:
        targets: as in `Dataset.targets`: int (N,) classes, bool (N, C) labels, float (N,) or (N, K) numbers.
        features: float (N, D), what the frozen backbone gives.
        source_probabilities: float (N, Z), what the classifier that came with the weights says of the same examples.
    """

    targets: np.ndarray
    kind: Kind = "single"
    """Of the targets, as in `Dataset.kind`."""
    features: np.ndarray | None = None
    source_probabilities: np.ndarray | None = None
    card: Card | None = None

    @property
    def x(self) -> np.ndarray:
        """The features, which `needs` promised, float64 (N, D)."""
        assert self.features is not None, "a score that uses features says so in `needs`"
        return self.features.astype("float64")

    @property
    def columns(self) -> np.ndarray:
        """The targets as float64 (N, C): one-hot, multi-hot, or numbers with mean 0 and standard deviation 1."""
        import numpy as np

        if self.kind == "single":
            return np.eye(int(self.targets.max()) + 1)[self.targets]
        values = self.targets.astype(np.float64).reshape(len(self.targets), -1)
        if self.kind == "multi":
            return values
        std = values.std(axis=0)
        return (values - values.mean(axis=0)) / np.where(std > 0, std, 1.0)

    @property
    def of(self) -> str:
        """Name the candidate in messages."""
        return "the candidate" if self.card is None else self.card.name


@runtime_checkable
class Score(Protocol):
    """A number that estimates before training. The fields of the class are its options."""

    needs: ClassVar[tuple[Need, ...]]
    """Which parts of the evidence it looks at, besides the targets."""
    kinds: ClassVar[tuple[Kind, ...]]
    """Which kinds of targets it takes."""
    cost: ClassVar[str]
    """What it costs, in one sentence, N examples and D features."""

    def value(self, evidence: Evidence, *, seed: int = 0) -> float:
        """Return the score; higher is better.

        Args:
            evidence: Checked by `measure`: what `needs` names is there and finite, there are two classes at least,
                and classes are numbered 0 … C-1 without gaps.
            seed: Seed of folds and initial values; no effect on most scores.
        """
        ...


@runtime_checkable
class Decomposed(Score, Protocol):
    """A score that is a mean over examples, so that two candidates can be compared by a paired interval."""

    def per_example(self, evidence: Evidence, *, seed: int = 0) -> np.ndarray:
        """Return what each example adds, float64 (N,); their mean is the value."""
        ...


def load(name: str) -> Score:
    """Return a score with its default options.

    Raises:
        RecipeError: There is no such score; the closest name is given.
    """
    score = plugins.load("score", name)()
    assert isinstance(score, Score), f"score {name} lacks a member of the Score protocol"
    return score


def measure(score: Score | str, evidence: Evidence, *, seed: int = 0) -> float:
    """Return what a score says of a candidate; higher is better.

    Args:
        score: A score, or its name.
        evidence: What is known of the candidate.
        seed: Seed of folds and initial values.

    Raises:
        RecipeError: The score does not take such targets, or needs what the candidate does not have.
        DataError: Too few examples, one class only, constant targets, features that are not finite.
        TrainingError: The score is not a number on this evidence.

    Example:
        >>> import numpy as np
        >>> features = np.array([[0.0, 1], [0, 2], [0, 3], [5, 1], [5, 2], [5, 3]])
        >>> measure("loo_ridge", Evidence(np.array([0, 0, 0, 1, 1, 1]), features=features))
        1.0
    """
    score = load(score) if isinstance(score, str) else score
    found = score.value(checked(score, evidence), seed=seed)
    if not math.isfinite(found):
        raise TrainingError(
            f"score {name_of(score)} of {evidence.of} is {found}, not a finite number",
            "leave the candidate out, or use another score",
        )
    return found


def checked(score: Score, evidence: Evidence) -> Evidence:
    """Return the evidence with its classes numbered without gaps, or refuse it.

    Raises:
        RecipeError: The score does not take such targets, or needs what the candidate does not have.
        DataError: Too few examples, one class only, constant targets, features that are not finite.
    """
    name = name_of(score)
    if evidence.kind not in score.kinds:
        others = [other for other in plugins.names("score") if evidence.kind in plugins.load("score", other).kinds]  # type: ignore[attr-defined]
        raise RecipeError(
            f"score {name} takes {_said(score.kinds)}, and the targets are {SAID[evidence.kind]}",
            f"use a score that takes them: {listed(others)}",
        )
    for need in score.needs:
        if getattr(evidence, need) is None:
            raise _missing(name, need, evidence)
    if set(score.needs) == {"card"}:
        return evidence
    _check_arrays(score, evidence)
    return _numbered(name, evidence)


def source_probabilities(backbone: Backbone, features: np.ndarray) -> np.ndarray | None:
    """Return what the classifier that came with the weights says, from pooled features, without another forward pass.

    Shape:
        features: float (N, D). Returns float64 (N, Z), or None when the weights came without a classifier.
    """
    from scipy.special import softmax

    classifier = getattr(backbone, "classifier", None)
    if classifier is None:
        return None
    weight, bias = (parameter.detach().cpu().numpy() for parameter in (classifier.weight, classifier.bias))
    return softmax((features @ weight.T + bias).astype("float64"), axis=1)


def name_of(score: Score) -> str:
    """Return the name that a score has as a plug-in, or its class's own."""
    module = type(score).__module__.rpartition(".")[2]
    return module if module in plugins.names("score") else type(score).__name__


def _said(kinds: Sequence[Kind]) -> str:
    return " or ".join(SAID[kind] for kind in kinds)


def _missing(name: str, need: Need, evidence: Evidence) -> RecipeError:
    others = [other for other in plugins.names("score") if need not in plugins.load("score", other).needs]  # type: ignore[attr-defined]
    problem = {
        "features": f"score {name} needs features, and none of {evidence.of} are given",
        "source_probabilities": f"score {name} needs source class probabilities, and {evidence.of} has no classifier",
        "card": f"score {name} needs the card of the weights, and none is given",
    }[need]
    return RecipeError(problem, f"use a score that needs no {need.replace('_', ' ')}: {listed(others)}")


def _check_arrays(score: Score, evidence: Evidence) -> None:
    """Refuse too few rows, rows that do not match, and values that are not finite."""
    import numpy as np

    num = len(evidence.targets)
    if num < MIN_EXAMPLES:
        problem = f"score {name_of(score)} has {num} examples to go by, expected at least {MIN_EXAMPLES}"
        raise DataError(problem, "give it more training examples")
    for need in ("targets", *score.needs):
        array = getattr(evidence, need)
        if not isinstance(array, np.ndarray):
            continue
        words = need.replace("_", " ")
        if len(array) != num or (need != "targets" and array.ndim != 2):
            problem = f"{words} of {evidence.of} have shape {array.shape}, expected ({num}, D) as for the targets"
            raise DataError(problem, "pass one row per example")
        bad = ~np.isfinite(array.astype(np.float64)).reshape(num, -1)
        if bad.any():
            rows = int(bad.any(axis=1).sum())
            raise DataError(
                f"{words} of {evidence.of} hold {int(bad.sum())} values that are not finite, in {rows} of {num} rows",
                "leave the candidate out, or look at these examples with `warmstart audit`",
            )


def _numbered(name: str, evidence: Evidence) -> Evidence:
    """Number classes without gaps, and refuse targets that say nothing."""
    import numpy as np

    targets = evidence.targets
    varies = (targets != targets[:1]).reshape(len(targets), -1).any() if len(targets) else False
    if not varies:
        what = {"single": "of one class", "multi": "labelled alike"}.get(evidence.kind, "the same number")
        raise DataError(f"the {len(targets)} examples that score {name} looks at are all {what}", "draw other examples")
    if evidence.kind != "single":
        return evidence
    return replace(evidence, targets=np.unique(targets, return_inverse=True)[1])


__all__ = [
    "CLASSES",
    "EVERYTHING",
    "Decomposed",
    "Evidence",
    "Kind",
    "Need",
    "Score",
    "checked",
    "load",
    "measure",
    "name_of",
    "source_probabilities",
]
