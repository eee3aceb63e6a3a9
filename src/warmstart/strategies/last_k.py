"""Fine-tune the last k layer groups and the head; everything before them is frozen and computed once.

Yosinski et al., 2014, arXiv 1411.1792, measured how features turn from general to specific with depth; the last
groups are the specific ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from warmstart.strategies import Group, HeadStart, Statistics, layerwise, thaw

if TYPE_CHECKING:
    from torch import Tensor

    from warmstart.models.model import Model


@dataclass(frozen=True)
class LastK:
    """Fine-tune the last k layer groups and the head.

    Needs:
        A backbone that offers a cut before group -k; others are tuned without the cache.

    Relations:
        `probe` is k = 0, `lp_ft` and `full` are k = all. Prefer it when a step of `full` costs too much, or when little
        data would let `full` overfit.

    Cost:
        One forward pass to fill the cache, then only the last k groups per step.
    """

    k: int = 1
    """Layer groups that learn, counted from the output; groups without parameters do not count."""
    head: Literal["solved", "fresh"] = "solved"
    """Start from the probe's solution, or from a new head."""
    lr_decay: float = 1.0
    """What the learning rate is multiplied by for each group further from the head."""
    batch_norm: Statistics = "still"
    """`still` keeps the running statistics of batch-norm layers while their weights learn, which is what few examples
    want; `adapt` lets them follow the batches, as training from scratch needs."""

    lrs: ClassVar[Mapping[str, float]] = {"adamw": 3e-4, "adam": 3e-4, "sgd": 1e-2}

    def __post_init__(self) -> None:
        if self.k < 1:
            from warmstart.errors import RecipeError

            raise RecipeError(f"strategy.k={self.k} thaws nothing (expected 1 or more)", "--strategy probe")

    @property
    def head_start(self) -> HeadStart:
        """As asked."""
        return self.head

    def prepare(self, model: Model) -> Sequence[Group]:
        """Thaw the last k groups that have parameters, and the head."""
        groups = [group for group in model.layer_groups() if group.parameters][-(self.k + 1) :]
        return thaw(groups, layerwise(len(groups), self.lr_decay), statistics=self.batch_norm)

    def penalty(self, model: Model) -> Callable[[], Tensor] | None:
        """Add nothing."""
        return None


PLUGIN = LastK
