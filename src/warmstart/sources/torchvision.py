"""Backbones of torchvision, with the weights that torchvision publishes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from warmstart.errors import SourceError, closest
from warmstart.models import Card, specs
from warmstart.sources import _catalogue, _network

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.models import WeightsEnum

    from warmstart.models import Backbone

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)


@dataclass(frozen=True)
class Torchvision:
    """Backbones of torchvision, `torchvision/NAME` or `torchvision/NAME:WEIGHTS`; without weights their DEFAULT.

    Weights are cached by torch's hub, where other programs find them too (`TORCH_HOME`).
    """

    def available(self) -> Sequence[Card]:
        """Return the cards of every published classification weight, from torchvision's own tables."""
        return _catalogue.remembered("torchvision", _all_cards)

    def load(self, name: str) -> tuple[Backbone, Card]:
        """Build the backbone with its weights, from torch's hub cache or, when connected, from its server.

        Raises:
            SourceError: Unknown name, no published weights, or offline and not cached.
            CheckpointError: The cached file does not hold this network.
        """
        import torch

        from warmstart.models import weights
        from warmstart.models.build import as_backbone, network

        network_name, found = _weights(name)
        card = _card(network_name, found)
        path = _network.torch_hub_file(card.name, found.url)
        built = network(card.arch or "", card.spec)
        with weights.reading(path, card.name):
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            built.load_state_dict(_renamed(tensors))
        backbone = as_backbone(built, card.spec).eval()
        return backbone, weights.completed(card, backbone)

    def fetch(self, name: str) -> Path:
        """Bring the weights into torch's hub cache and return the file.

        Raises:
            SourceError: Unknown name, no published weights, or no network.
        """
        network_name, found = _weights(name)
        return _network.torch_hub_file(_card(network_name, found).name, found.url)

    def check(self, name: str) -> None:
        """Refuse a name that torchvision's tables do not have.

        Raises:
            SourceError: No such network or weights, or a network without any.
        """
        listed = f"torchvision/{name}"
        if not any(card.name == listed or card.name.startswith(f"{listed}:") for card in self.available()):
            _weights(name)

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the file in torch's hub cache."""
        return (self.fetch(name),)


def _weights(name: str) -> tuple[str, WeightsEnum]:
    """Find the published weights that a name means.

    Raises:
        SourceError: No such network, no such weights, or a network without any.
    """
    import torchvision

    network, _, wanted = name.partition(":")
    known = torchvision.models.list_models(module=torchvision.models)
    if network not in known:
        full = [f"torchvision/{each}" for each in known]
        raise SourceError(f"torchvision has no network {network!r}", closest(f"torchvision/{network}", full))
    published = torchvision.models.get_model_weights(network)
    if not list(published):
        raise SourceError(f"torchvision publishes no weights for {network!r}", f"random/torchvision:{network}")
    if wanted and wanted not in published.__members__:
        full = [f"torchvision/{network}:{each.name}" for each in published]
        raise SourceError(f"torchvision has no weights {name!r}", closest(f"torchvision/{name}", full))
    return network, published[wanted or "DEFAULT"]


def _all_cards() -> list[Card]:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return [_card(name, weights) for name in names for weights in torchvision.models.get_model_weights(name)]


def _card(network: str, weights: WeightsEnum) -> Card:
    import torchvision

    accuracy = weights.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1", math.nan)  # NaN for features without head
    known = not math.isnan(accuracy)
    return Card(
        name=f"torchvision/{network}:{weights.name}",
        spec=specs.of_torchvision(network, weights),
        num_params=weights.meta["num_params"],
        macs=round(weights.meta["_ops"] * 1e9),  # published as GFLOPS; a multiply-add counts once there
        accuracy=accuracy if known else None,
        accuracy_source=f"torchvision, {weights.transforms().crop_size[0]} px" if known else "",
        default=weights is torchvision.models.get_model_weights(network)["DEFAULT"],
        licence=weights.meta.get("license"),
        trained_on=_trained_on(weights.name),
        url=weights.url,
        arch=f"torchvision:{network}",
    )


def _trained_on(weights: str) -> str | None:
    if not weights.startswith("IMAGENET1K"):
        return None
    return "Instagram hashtags, then ImageNet-1k" if "SWAG" in weights else "ImageNet-1k"


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out auxiliary classifiers and give DenseNet's layers the names that torchvision uses today."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(AUXILIARY)}
    return {OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in kept.items()}


PLUGIN = Torchvision
