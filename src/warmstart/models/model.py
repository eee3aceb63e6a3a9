"""A model is a backbone with a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from warmstart.models import Backbone, LayerGroup


class Model(nn.Module):
    """Backbone and head; inputs may be pixels, or the hidden values of any cut that the backbone offers."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: Tensor, cut: int = 0) -> Tensor:
        """Compute raw outputs.

        Shape:
            inputs: uint8 (B, 3, H, W) at cut 0, else the (B, …) output of `backbone.prefix(…, cut)`. Returns (B, C).
        """
        return self.head(self.backbone.suffix(inputs, cut).pooled)

    def layer_groups(self) -> Sequence[LayerGroup]:
        """Return the groups of the backbone, then the head as the last one."""
        head = LayerGroup("head", (self.head,), tuple(self.head.parameters()))
        return (*self.backbone.layer_groups(), head)

    @property
    def num_groups(self) -> int:
        """Count the layer groups of the backbone, which is also its last cut."""
        return len(self.backbone.layer_groups())


class LinearHead(nn.Module):
    """A linear layer on features that were centred and scaled by the statistics of the training features.

    Standardising inside the head makes one learning rate and one regularisation strength fit every backbone.
    A fresh head has mean 0 and scale 1, so it equals `nn.Linear`.

    Shape:
        features: float (B, D) → (B, C).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, num_outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.linear = nn.Linear(dim, num_outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Standardise, then multiply."""
        return self.linear((features - self.mean) * self.scale)
