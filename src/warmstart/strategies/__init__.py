"""CONTRACT of strategies: which parameters learn, when, and how fast.

A strategy never sees data, task or optimizer. `prepare` receives the model and returns what learns; everything not
returned is frozen: no gradient, normalisation in eval mode, bits unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from warmstart.models import LayerGroup
    from warmstart.models.model import Model


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate: one entry of the optimizer."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    modules: tuple[nn.Module, ...] = ()
    """Modules that go to train mode while the group learns."""
    lr_scale: float = 1.0
    """Times `optim.lr`."""
    from_epoch: int = 0
    """First epoch in which the group learns (gradual thawing)."""


@runtime_checkable
class Strategy(Protocol):
    """A way to fine-tune. The fields of the class are its options."""

    head_start: ClassVar[Literal["solved", "fresh"]]
    """Whether the head starts from the solution on cached features, or from its initialisation."""

    def cut(self, model: Model) -> int:
        """Return the deepest offered cut below which nothing ever learns; the prefix may be cached there."""
        ...

    def prepare(self, model: Model) -> Sequence[Group]:
        """Return what learns. May replace modules. Empty when the solved head is the whole answer."""
        ...

    def penalty(self, model: Model) -> Tensor | None:
        """Return a scalar added to the loss, or None."""
        ...


def thaw(groups: Sequence[LayerGroup], lr_scales: Sequence[float] | None = None) -> tuple[Group, ...]:
    """Turn layer groups into optimizer groups, one each, leaving out those without parameters."""
    scales = [1.0] * len(groups) if lr_scales is None else lr_scales
    return tuple(
        Group(group.name, group.parameters, group.modules, scale)
        for group, scale in zip(groups, scales, strict=True)
        if group.parameters or group.modules
    )
