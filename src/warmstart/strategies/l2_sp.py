"""Fine-tune everything, pulled back towards the pretrained weights.

L2-SP, Li, Grandvalet & Davoine, 2018, arXiv 1802.01483, eq. 3: Ω(w) = α/2 ‖w_S − w_S⁰‖² + β/2 ‖w_head‖².
Where we differ: with a solved head, β pulls towards that solution too, since it is then a start worth keeping.
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
class L2Sp:
    """Fine-tune everything with a pull back to where it started.

    Needs:
        Weight decay off for the backbone (`optim.weight_decay=0`), or two pulls work against each other.

    Relations:
        `full` and `lp_ft` without the pull. Prefer it on small data that resembles what the weights were trained on.

    Cost:
        That of `full`, and one more copy of the weights in memory.
    """

    alpha: float = 0.01
    """Strength of the pull on the backbone."""
    beta: float = 0.01
    """Strength of the pull on the head."""
    head: Literal["solved", "fresh"] = "solved"
    """Start from the probe's solution, or from a new head."""
    lr_decay: float = 1.0
    """What the learning rate is multiplied by for each group further from the head."""
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
        """Return Ω over copies of the starting weights."""
        *backbone, head = model.layer_groups()
        pulled = [(p, p.detach().clone()) for group in backbone for p in group.parameters if p.requires_grad]
        kept = self.head == "solved"
        headed = [(p, p.detach().clone() if kept else p.detach().clone().zero_()) for p in head.parameters]

        def omega() -> Tensor:
            return 0.5 * (self.alpha * _distance(pulled) + self.beta * _distance(headed))

        return omega


def _distance(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum the squared distances of weights from where they started."""
    import torch

    return torch.stack([(weights - start).pow(2).sum() for weights, start in pairs]).sum()


PLUGIN = L2Sp
