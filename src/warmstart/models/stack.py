"""A backbone made of several: each looks at its own square of the picture, and their features stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from warmstart.models import Backbone, Features, InputSpec, LayerGroup


class Stack(nn.Module):
    """Several backbones on one sheet of squares, as `transforms.SideBySide` lays it out.

    The squares are made of the picture itself, one for each part, so every part gives the features that it gives alone.
    It is one layer group per part, and offers the cuts none and all, since the parts stand beside each other.

    Args:
        parts: Two or more backbones.
        sizes: Side in pixels that each of them sees.

    Shape:
        inputs: uint8 or float (B, 3, max(sizes), sum(sizes)), RGB, 0 to 255.
    """

    def __init__(self, parts: Sequence[Backbone], sizes: Sequence[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(cast("Sequence[nn.Module]", parts))
        self.sizes = tuple(sizes)
        self.dim = sum(part.dim for part in parts)
        self.spec = InputSpec(image_size=max(sizes), fixed_size=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute pooled features from a sheet."""
        return self.features(inputs).pooled

    def features(self, inputs: Tensor) -> Features:
        """Compute the features of every part from its square; there is no common grid, and no common tokens."""
        found = [part.features(square).pooled for part, square in zip(self.each(), self._squares(inputs), strict=True)]
        return Features(torch.cat(found, dim=1))  # (B, D₁ + … + Dₙ)

    def layer_groups(self) -> Sequence[LayerGroup]:
        """Return each part as one group."""
        parts = enumerate(self.parts, start=1)
        return tuple(LayerGroup(f"part{at}", (part,), tuple(part.parameters())) for at, part in parts)

    def cuts(self) -> Sequence[int]:
        """Return none and all."""
        return (0, len(self.parts))

    def prefix(self, inputs: Tensor, cut: int) -> Tensor:
        """Return the sheet itself at cut 0, else `pooled`."""
        self._check_cut(cut)
        return self.features(inputs).pooled if cut else inputs

    def suffix(self, hidden: Tensor, cut: int) -> Features:
        """Return the features of a sheet at cut 0, else those that `prefix` returned."""
        self._check_cut(cut)
        return Features(hidden) if cut else self.features(hidden)

    def each(self) -> Sequence[Backbone]:
        """Return the parts, left to right."""
        return cast("list[Backbone]", list(self.parts))

    def _squares(self, sheet: Tensor) -> list[Tensor]:
        """Cut the sheet up again."""
        wanted = (max(self.sizes), sum(self.sizes))
        if tuple(sheet.shape[2:]) != wanted:
            raise ValueError(
                f"a stack of {list(self.sizes)} px takes sheets of {wanted}, and these are {tuple(sheet.shape)}"
            )
        wide = torch.split(sheet, list(self.sizes), dim=3)
        return [strip[:, :, :size].contiguous() for strip, size in zip(wide, self.sizes, strict=True)]

    def _check_cut(self, cut: int) -> None:
        if cut not in self.cuts():
            raise ValueError(f"cut {cut} is not on offer, only {list(self.cuts())}")
