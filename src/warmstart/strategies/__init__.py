"""CONTRACT of strategies: which parameters learn, when, and how fast.

A strategy never sees data, task or optimizer. `prepare` receives the model and returns what learns; everything not
returned is frozen: no gradient, normalisation in eval mode, bits unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

Statistics = Literal["still", "adapt"]
HeadStart = Literal["solved", "fresh", "own", "only"]

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
    statistics: Statistics = "still"
    """Whether running statistics of the group's normalisation layers stay as they are, or adapt to the batches."""


@runtime_checkable
class Strategy(Protocol):
    """A way to fine-tune. The fields of the class are its options."""

    lrs: ClassVar[Mapping[str, float]]
    """Learning rate for each optimizer when the recipe leaves `optim.lr` open."""

    @property
    def head_start(self) -> HeadStart:
        """Where the head starts: solved on cached features, fresh, or the classifier that came with the weights.

        `only`: the solved head is the whole answer, `prepare` returns nothing, and no network has to be built for it.
        """
        ...

    def prepare(self, model: Model) -> Sequence[Group]:
        """Return what learns. May replace modules. Empty when the solved head is the whole answer (`only`)."""
        ...

    def penalty(self, model: Model) -> Callable[[], Tensor] | None:
        """Return what is added to every loss, or None. Called once, before the first step moves anything."""
        ...


def deepest_cut(model: Model, groups: Sequence[Group]) -> int:
    """Return the deepest cut on offer below which no group ever learns: what is before it may be cached.

    Example:
        Groups of a head alone give the last cut, where the whole backbone is frozen.
    """
    learning = {id(parameter) for group in groups for parameter in group.parameters}
    moving = _inside(module for group in groups for module in group.modules)
    layers = model.backbone.layer_groups()
    touched = [
        depth
        for depth, layer in enumerate(layers)
        if learning & {id(parameter) for parameter in layer.parameters} or moving & _inside(layer.modules)
    ]
    first = min(touched, default=len(layers))
    return max(cut for cut in model.backbone.cuts() if cut <= first)


def _inside(modules: Iterable[nn.Module]) -> set[int]:
    """Return the identities of modules and of all that is in them: a strategy may name a part of a layer group."""
    return {id(part) for module in modules for part in module.modules()}


def layerwise(depth: int, decay: float) -> list[float]:
    """Return the learning-rate scales of `depth` groups, input to output: `decay` per group, 1 at the output."""
    return [decay ** (depth - 1 - position) for position in range(depth)]


def thaw(
    groups: Sequence[LayerGroup], lr_scales: Sequence[float] | None = None, *, statistics: Statistics = "still"
) -> tuple[Group, ...]:
    """Turn layer groups into optimizer groups, one each, leaving out those that are empty."""
    scales = [1.0] * len(groups) if lr_scales is None else lr_scales
    return tuple(
        Group(group.name, group.parameters, group.modules, scale, statistics=statistics)
        for group, scale in zip(groups, scales, strict=True)
        if group.parameters or group.modules
    )
