"""Linear probing, then fine-tuning: the head is solved first, so that it does not tear the features apart.

Kumar et al., 2022, arXiv 2202.10054: a fresh head sends large, misleading gradients into the backbone; starting from
the probe's solution keeps the pretrained features where they were good. Where we differ: the probe is the exact
solution and not a training run, and layers near the input take smaller steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from warmstart.strategies import Group, HeadStart, Statistics, layerwise, thaw

if TYPE_CHECKING:
    from torch import Tensor

    from warmstart.models.model import Model


@dataclass(frozen=True)
class LpFt:
    """Solve the head, then fine-tune from there.

    Needs:
        A probe that is better than chance.

    Relations:
        `full` without the probe's start; `last_k` when only the last groups are to move.

    Cost:
        The probe, then about three forward passes per example and epoch for the groups that learn.
    """

    depth: int | None = None
    """Layer groups that learn, counted from the output; all when not given."""
    lr_decay: float = 0.8
    """What the learning rate is multiplied by for each group further from the head."""
    batch_norm: Statistics = "still"
    """`still` keeps the running statistics of batch-norm layers while their weights learn, which is what few examples
    want; `adapt` lets them follow the batches, as training from scratch needs."""

    lrs: ClassVar[Mapping[str, float]] = {"adamw": 3e-4, "adam": 3e-4, "sgd": 1e-2}

    @property
    def head_start(self) -> HeadStart:
        """The probe's solution."""
        return "solved"

    def prepare(self, model: Model) -> Sequence[Group]:
        """Thaw the last `depth` groups that have parameters, and the head."""
        groups = [group for group in model.layer_groups() if group.parameters]
        groups = groups if self.depth is None else groups[-(self.depth + 1) :]
        return thaw(groups, layerwise(len(groups), self.lr_decay), statistics=self.batch_norm)

    def penalty(self, model: Model) -> Callable[[], Tensor] | None:
        """Add nothing."""
        return None


PLUGIN = LpFt
