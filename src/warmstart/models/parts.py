"""Stacks by name and by card: several backbones, each at an input size of its own, whose features stand side by side.

A stack is written `stack/SOURCE/NAME@SIZE+SOURCE/NAME@SIZE`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from warmstart import runtime
from warmstart.models import Card, InputSpec, Part

PREFIX = "stack/"
NAMES = re.compile(r"[^@]+@[1-9]\d*(\+[^@]+@[1-9]\d*)+")
"""What follows the prefix in the name of a stack."""
UNKNOWN = "unknown"
FREE = ("cc0-1.0", "pddl-1.0", "unlicense")
PERMISSIVE = ("apache", "mit", "bsd", "isc", "cc-by-4")
COPYLEFT = ("-sa", "gpl", "mpl")
NON_COMMERCIAL = ("-nc", "non-commercial", "noncommercial", "research")


def spell(parts: Sequence[tuple[str, int]]) -> str:
    """Return the name of a stack.

    Example:
        >>> spell([("timm/resnet18", 224), ("package/efficientnet_lite0", 160)])
        'stack/timm/resnet18@224+package/efficientnet_lite0@160'
    """
    return PREFIX + "+".join(f"{name}@{size}" for name, size in parts)


def parse(name: str) -> tuple[tuple[str, int], ...]:
    """Return backbone and input size of each part of a stack's name; empty for any other name.

    Example:
        >>> parse("stack/timm/resnet18@224+package/efficientnet_lite0@160")
        (('timm/resnet18', 224), ('package/efficientnet_lite0', 160))
        >>> parse("timm/resnet18")
        ()
    """
    if not name.startswith(PREFIX) or not NAMES.fullmatch(name.removeprefix(PREFIX)):
        return ()
    found = re.findall(r"([^@]+)@(\d+)(?:\+|$)", name.removeprefix(PREFIX))
    return tuple((part, int(size)) for part, size in found)


def joined(name: str, parts: Sequence[Part]) -> Card:
    """Return the card of a stack: sums, all licences with the strictest first, and a hash of the parts' hashes."""
    cards = [part.card for part in parts]
    licences = sorted({card.licence or UNKNOWN for card in cards}, key=lambda one: (-strictness(one), one))
    size = max(part.image_size for part in parts)
    return Card(
        name,
        InputSpec(image_size=size, fixed_size=True),
        num_params=_sum([card.num_params for card in cards]),
        macs=_sum([_macs(part) for part in parts]),
        dim=_sum([card.dim for card in cards]),
        licence=None if licences == [UNKNOWN] else " AND ".join(licences),
        trained_on=" and ".join(dict.fromkeys(card.trained_on or UNKNOWN for card in cards)),
        weights_hash=hash_of([(card.weights_hash, part.image_size) for card, part in zip(cards, parts, strict=True)]),
        arch=f"stack of {len(parts)}",
        notes=f"{len(parts)} backbones side by side" + (f"; strictest licence: {licences[0]}" if licences[1:] else ""),
        parts=tuple(parts),
    )


def hash_of(parts: Sequence[tuple[str | None, int]]) -> str | None:
    """Return the identity of a stack's weights, from that of each part and its input size; None when one is unknown."""
    known = [f"{weights}@{size}" for weights, size in parts if weights is not None]
    return runtime.digest("stack", *known) if len(known) == len(parts) else None


def strictness(licence: str) -> int:
    """Rank a licence by how much it forbids; one that is unknown counts as less free than every free one.

    Example:
        >>> sorted(["cc-by-nc-4.0", "unknown", "gpl-3.0", "mit", "cc0-1.0"], key=strictness)
        ['cc0-1.0', 'mit', 'gpl-3.0', 'unknown', 'cc-by-nc-4.0']
    """
    said = licence.lower()
    if any(word in said for word in NON_COMMERCIAL):
        return 4
    if any(word in said for word in COPYLEFT):
        return 2
    if said in FREE:
        return 0
    return 1 if said.startswith(PERMISSIVE) else 3


def _macs(part: Part) -> int | None:
    macs, own = part.card.macs, part.card.spec.image_size
    return None if macs is None else round(macs * (part.image_size / own) ** 2)


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
