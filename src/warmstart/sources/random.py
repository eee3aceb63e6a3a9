"""Networks with random weights: the honest baseline of every pretrained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from warmstart.errors import SourceError
from warmstart.models import Card, specs

if TYPE_CHECKING:
    from warmstart.models import Backbone


@dataclass(frozen=True)
class Random:
    """Backbones with random weights, `random/NAME` (timm's NAME) or `random/LIBRARY:NAME`; never a pretrained one."""

    seed: int = 0
    """Seed of the initialisation: equal seeds give equal weights."""

    def available(self) -> Sequence[Card]:
        """Return no cards: every architecture of the libraries can be had."""
        return ()

    def load(self, name: str) -> tuple[Backbone, Card]:
        """Build the backbone.

        Raises:
            SourceError: No library has such an architecture.
        """
        from warmstart.models import weights
        from warmstart.models.build import backbone as build

        arch = name if ":" in name else f"timm:{name}"
        backbone = build(arch, specs.of_arch(arch), seed=self.seed).eval()
        card = Card(name=f"random/{name}", arch=arch, notes=f"random weights, seed {self.seed}")
        return backbone, weights.completed(card, backbone)

    def fetch(self, name: str) -> Path:
        """Refuse: there is nothing to bring.

        Raises:
            SourceError: Always.
        """
        raise SourceError(f"random/{name} has no weights to fetch", f"use it as it is: --backbone random/{name}")

    def check(self, name: str) -> None:
        """Refuse an architecture that no library has.

        Raises:
            SourceError: Unknown name.
        """
        from warmstart.models.build import require

        require(name if ":" in name else f"timm:{name}")

    def files(self, name: str) -> tuple[Path, ...]:
        """Return nothing: no file holds these weights."""
        return ()


PLUGIN = Random
