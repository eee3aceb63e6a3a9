"""A small backbone and small data for the tests of the cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from warmstart.data import Dataset
from warmstart.data.transforms import Transform, for_eval
from warmstart.models import Card, Features, InputSpec, LayerGroup

SPEC = InputSpec(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CARD = Card("test/tiny", SPEC, arch="test:tiny")


class Tiny(nn.Module):
    """Two convolutions with batch norm, pooled: a Backbone of three cuts."""

    dim = 6
    spec = SPEC

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.one = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
            self.two = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.seen = 0

    def features(self, inputs: Tensor) -> Features:
        return self.suffix(inputs, 0)

    def layer_groups(self) -> Sequence[LayerGroup]:
        return [LayerGroup(f"g{i}", (m,), tuple(m.parameters())) for i, m in enumerate((self.one, self.two))]

    def cuts(self) -> Sequence[int]:
        return (0, 1, 2)

    def prefix(self, inputs: Tensor, cut: int) -> Tensor:
        if cut == 0:
            return inputs
        hidden = self.one((inputs.float() / 255 - 0.5) / 0.5)
        return hidden if cut == 1 else self.two(hidden).mean((2, 3))

    def suffix(self, hidden: Tensor, cut: int) -> Features:
        hidden = self.prefix(hidden, 1) if cut == 0 else hidden
        return Features(hidden if cut == 2 else self.two(hidden).mean((2, 3)))


def pictures(num: int, *, seed: int = 0, size: int = 8) -> np.ndarray:
    """Draw pictures of noise.

    Shape:
        uint8 (num, size, size, 3).
    """
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), dtype=np.uint8)


def dataset(arrays: np.ndarray) -> Dataset:
    """Wrap pictures in memory."""
    return Dataset(ids=[str(i) for i in range(len(arrays))], inputs=list(arrays))


def transform() -> Transform:
    """Return the transform of the tiny backbone."""
    return for_eval(SPEC)
