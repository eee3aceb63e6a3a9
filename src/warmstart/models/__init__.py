"""CONTRACT of models: what a backbone promises, and the facts that travel with weights.

Pictures arrive as uint8 RGB and the backbone normalises them itself, by the `InputSpec` of its weights: preprocessing
belongs to the weights, so a recipe cannot get it wrong, and an exported model takes plain pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class InputSpec:
    """How the weights want their pictures. Values are in the units of `scale`."""

    image_size: int = 224
    """Side in pixels that the weights were trained at."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: float = 255.0
    """Pixels are divided by this before mean and std; 1.0 keeps 0 to 255."""
    channels: Literal["RGB", "BGR"] = "RGB"
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic"
    crop_fraction: float = 1.0
    """Fraction of the resized picture that the weights' own evaluation kept in its centre crop."""
    embedded_size: int | None = None
    """Side in pixels that a position embedding was made for, where that is not `image_size`."""
    fixed_size: bool = False
    """True when the network takes no other input size."""


@dataclass(frozen=True)
class Card:
    """The facts that travel with weights. Unknown facts are None, never guessed."""

    name: str
    """`source/name`, the way a user writes it."""
    spec: InputSpec = field(default_factory=InputSpec)
    num_params: int | None = None
    """As published, with the classifier where the file has one; of the backbone alone once it was loaded."""
    macs: int | None = None
    """Multiply-adds of one picture at `spec.image_size`."""
    accuracy: float | None = None
    """Published top-1 on ImageNet-1k in percent, of the weights' own classifier or a linear one on frozen features."""
    accuracy_source: str = ""
    """Who published it, and at what input size."""
    default: bool = False
    """True when the name without its tag means these weights."""
    dim: int | None = None
    licence: str | None = None
    trained_on: str | None = None
    url: str | None = None
    weights_hash: str | None = None
    """Hash over names, shapes, dtypes and bytes of every tensor: the identity of the weights."""
    arch: str | None = None
    """Which network, for the loader: `timm:tf_efficientnet_lite0`, `torchvision:resnet50`."""
    notes: str = ""
    parts: tuple[Part, ...] = ()
    """The backbones that a stack is made of; empty for a network of its own."""

    def to_json(self) -> dict[str, object]:
        """Return a JSON-ready dict; `from_json` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(facts: dict[str, object]) -> Card:
        """Rebuild a card; unknown keys of newer versions are ignored."""
        spec = dict(facts.get("spec") or {})  # type: ignore[call-overload]
        for key in ("mean", "std"):
            if key in spec:
                spec[key] = tuple(spec[key])
        known = {k: v for k, v in facts.items() if k in Card.__dataclass_fields__ and k not in ("spec", "parts")}
        parts = tuple(Part.from_json(part) for part in facts.get("parts") or ())  # type: ignore[attr-defined]
        inner = InputSpec(**{k: v for k, v in spec.items() if k in InputSpec.__dataclass_fields__})
        return Card(**known, spec=inner, parts=parts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Part:
    """One backbone of a stack, and the side in pixels that it sees pictures at."""

    card: Card
    image_size: int

    @staticmethod
    def from_json(facts: dict[str, object]) -> Part:
        """Rebuild a part.

        Raises:
            TypeError: These are facts of something else.
        """
        try:
            return Part(Card.from_json(facts["card"]), int(facts["image_size"]))  # type: ignore[arg-type, call-overload]
        except (AttributeError, KeyError, ValueError) as error:
            raise TypeError(f"a part without card or image_size: {error}") from error


@dataclass(frozen=True)
class Features:
    """Output of a backbone.

    Shape:
        pooled: float (B, D).
        grid: float (B, D', H, W) for convolutional networks, before pooling; None otherwise.
        tokens: float (B, N, D') for transformers, before pooling; None otherwise.
        mask: bool (B, N), True where a token is real; None when all are.
    """

    pooled: Tensor
    grid: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class LayerGroup:
    """Parameters that freeze and learn together."""

    name: str
    modules: tuple[nn.Module, ...]
    """Modules of the group; their train/eval mode follows the group's freeze state."""
    parameters: tuple[nn.Parameter, ...]
    """Every parameter of the group, those of its modules included."""


@runtime_checkable
class Backbone(Protocol):
    """A network without head. Implementations are `nn.Module`s."""

    dim: int
    """D, the length of `Features.pooled`."""
    spec: InputSpec

    def features(self, inputs: Tensor) -> Features:
        """Compute features from pixels.

        Shape:
            inputs: uint8 (B, 3, H, W), RGB.
        """
        ...

    def layer_groups(self) -> Sequence[LayerGroup]:
        """Return the layer groups, input to output; together they hold every parameter exactly once."""
        ...

    def cuts(self) -> Sequence[int]:
        """Return the cuts on offer, ascending, 0 and `len(layer_groups())` always among them.

        Cut k freezes groups 0 … k-1: `prefix` is what they compute, `suffix` the rest.
        """
        ...

    def prefix(self, inputs: Tensor, cut: int) -> Tensor:
        """Compute the frozen part: pixels → hidden. At cut 0 the pixels come back, at the last cut `pooled`."""
        ...

    def suffix(self, hidden: Tensor, cut: int) -> Features:
        """Compute the rest: `suffix(prefix(x, k), k)` equals `features(x)` for every cut on offer."""
        ...
