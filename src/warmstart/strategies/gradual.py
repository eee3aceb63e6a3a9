"""Gradual thawing: the head learns first, then one more layer group at a time joins, output to input.

ULMFiT, Howard & Ruder, 2018, arXiv 1801.06146, §3.3, with its discriminative rates lr of group l-1 = lr of l / 2.6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from warmstart.strategies import Group, HeadStart, Statistics, layerwise, thaw

if TYPE_CHECKING:
    from torch import Tensor

    from warmstart.models.model import Model


@dataclass(frozen=True)
class Gradual:
    """Thaw one more layer group every few epochs.

    Needs:
        At least as many epochs as groups, or the first groups never learn.

    Relations:
        `lp_ft` solves the same problem (a wild head) in fewer epochs; prefer this where the probe is poor.

    Cost:
        Early epochs cost little more than a probe, late ones as much as `full`.
    """

    epochs_per_group: int = 1
    """Epochs between one thaw and the next."""
    depth: int | None = None
    """Layer groups that learn in the end, counted from the output; all when not given."""
    head: Literal["solved", "fresh"] = "fresh"
    """Start from a new head, or from the probe's solution."""
    lr_decay: float = 1 / 2.6
    """What the learning rate is multiplied by for each group further from the head."""
    batch_norm: Statistics = "still"
    """`still` keeps the running statistics of batch-norm layers while their weights learn, which is what few examples
    want; `adapt` lets them follow the batches, as training from scratch needs."""

    lrs: ClassVar[Mapping[str, float]] = {"adamw": 1e-3, "adam": 1e-3, "sgd": 1e-2}

    @property
    def head_start(self) -> HeadStart:
        """As asked."""
        return self.head

    def prepare(self, model: Model) -> Sequence[Group]:
        """Return every group with the epoch in which it joins."""
        groups = [group for group in model.layer_groups() if group.parameters]
        groups = groups if self.depth is None else groups[-(self.depth + 1) :]
        thawed = thaw(groups, layerwise(len(groups), self.lr_decay), statistics=self.batch_norm)
        last = len(thawed) - 1
        return tuple(
            dataclasses.replace(group, from_epoch=(last - position) * self.epochs_per_group)
            for position, group in enumerate(thawed)
        )

    def penalty(self, model: Model) -> Callable[[], Tensor] | None:
        """Add nothing."""
        return None


PLUGIN = Gradual
