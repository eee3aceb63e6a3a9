"""Fine-tune everything, with smaller steps for the layers near the input.

Layer-wise learning-rate decay as in ELECTRA (Clark et al., 2020, arXiv 2003.10555) and BEiT (arXiv 2106.08254):
lr of group l = lr · decay^(L - l).
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
class Full:
    """Fine-tune everything at once.

    Needs:
        Enough data that all layers can learn from it, and the memory for their activations.

    Relations:
        `lp_ft` is this with a better start; `l2_sp` is this with a pull back to the pretrained weights.

    Cost:
        About three forward passes per example and epoch.
    """

    head: HeadStart = "fresh"
    """Start from a new head, the probe's solution, or the classifier that came with the weights (`own`)."""
    lr_decay: float = 0.8
    """What the learning rate is multiplied by for each group further from the head; 1.0 trains all alike."""
    batch_norm: Statistics = "still"
    """`still` keeps the running statistics of batch-norm layers while their weights learn, which is what few examples
    want; `adapt` lets them follow the batches, as training from scratch needs."""

    lrs: ClassVar[Mapping[str, float]] = {"adamw": 3e-4, "adam": 3e-4, "sgd": 1e-2}

    @property
    def head_start(self) -> HeadStart:
        """As asked."""
        return self.head

    def prepare(self, model: Model) -> Sequence[Group]:
        """Thaw every group."""
        groups = [group for group in model.layer_groups() if group.parameters or group.modules]
        return thaw(groups, layerwise(len(groups), self.lr_decay), statistics=self.batch_norm)

    def penalty(self, model: Model) -> Callable[[], Tensor] | None:
        """Add nothing."""
        return None


PLUGIN = Full
