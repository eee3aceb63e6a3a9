"""A linear probe: the backbone stays as it is, only the head is fitted.

Alain & Bengio, 2016, arXiv 1610.01644. Where we differ: the head is solved on cached features (L-BFGS or ridge, with
the regularisation chosen on val) unless a gradient loop is asked for, as the textbooks have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from warmstart.strategies import Group, HeadStart, Statistics, thaw

if TYPE_CHECKING:
    from torch import Tensor

    from warmstart.models.model import Model


@dataclass(frozen=True)
class Probe:
    """Fit the head on frozen features.

    Needs:
        Features that already separate the classes; anything from a dozen examples up.

    Relations:
        `lp_ft` starts from this solution and goes on; `last_k` when the last stage does not fit the data.

    Cost:
        One forward pass over the data, once for all seeds and heads; then well under a minute.
    """

    head: Literal["solved", "gradient"] = "solved"
    """Solve the head on cached features, or train it by the optimizer of the recipe."""
    batch_norm: Statistics = "still"
    """`adapt` lets batch-norm statistics of the frozen backbone drift, as loops do that forget `eval()`; then nothing
    can be cached. No effect on a solved head."""

    lrs: ClassVar[Mapping[str, float]] = {"adamw": 1e-3, "adam": 1e-3, "sgd": 1e-2}

    @property
    def head_start(self) -> HeadStart:
        """A solved head is the whole answer; a trained one starts fresh."""
        return "only" if self.head == "solved" else "fresh"

    def prepare(self, model: Model) -> Sequence[Group]:
        """Thaw the head, or nothing when it is solved."""
        if self.head == "solved":
            return ()
        head = thaw(model.layer_groups()[-1:])
        if self.batch_norm == "still":
            return head
        drifting = tuple(module for group in model.backbone.layer_groups() for module in group.modules)
        return (Group("statistics", (), drifting, statistics="adapt"), *head)

    def penalty(self, model: Model) -> Callable[[], Tensor] | None:
        """Add nothing; weight decay belongs to the optimizer."""
        return None


PLUGIN = Probe
