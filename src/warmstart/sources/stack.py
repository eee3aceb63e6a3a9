"""Stacks: several backbones side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from warmstart import sources
from warmstart.errors import SourceError
from warmstart.models import Card, Part, parts

if TYPE_CHECKING:
    from warmstart.models import Backbone


@dataclass(frozen=True)
class Stack:
    """Several backbones side by side, `stack/SOURCE/NAME@SIZE+SOURCE/NAME@SIZE`, for a probe on all their features."""

    def available(self) -> Sequence[Card]:
        """Return no cards: any two backbones can be stacked."""
        return ()

    def load(self, name: str) -> tuple[Backbone, Card]:
        """Build every part with its weights.

        Raises:
            SourceError: The name is no stack's, or a part cannot be had.
        """
        from warmstart.models.stack import Stack as Stacked

        named = parts_of(name)
        loaded = [sources.load(part) for part, _ in named]
        sizes = [size for _, size in named]
        found = [Part(card, size) for (_, card), size in zip(loaded, sizes, strict=True)]
        stacked = Stacked([backbone for backbone, _ in loaded], sizes).eval()
        return stacked, parts.joined(f"{parts.PREFIX}{name}", found)

    def fetch(self, name: str) -> Path:
        """Bring the weights of every part, and return where those of the first are.

        Raises:
            SourceError: The name is no stack's, or a part cannot be had.
        """
        found = [source.fetch(rest) for source, rest in (sources.find(part) for part, _ in parts_of(name))]
        return found[0]

    def check(self, name: str) -> None:
        """Refuse a name that is no stack's, and parts that no source knows.

        Raises:
            SourceError: Unknown name.
        """
        for part, _ in parts_of(name):
            sources.check(part)

    def files(self, name: str) -> tuple[Path, ...]:
        """Return nothing: each part is remembered by its own name."""
        return ()


def parts_of(name: str) -> tuple[tuple[str, int], ...]:
    """Return backbone and input size of each part.

    Raises:
        SourceError: The name is no stack's.
    """
    found = parts.parse(f"{parts.PREFIX}{name}")
    if not found:
        near = parts.NAMES.match(name)
        example = near[0] if near else "package/efficientnet_lite0@224+package/mobilenet_v2@160"
        raise SourceError(
            f"{parts.PREFIX}{name} names no stack (expected two or more SOURCE/NAME@SIZE with + between them)",
            f"--backbone {parts.PREFIX}{example}",
        )
    return found


PLUGIN = Stack
