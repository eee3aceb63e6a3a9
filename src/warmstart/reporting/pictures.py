"""Pictures inside the page: small data URIs, heat-map overlays, and a cap on how many a page may carry."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from warmstart.reporting.facts import AuditFacts, DataFacts, Facts, Shown

if TYPE_CHECKING:
    from PIL.Image import Image

LIMIT_BYTES = 2_600_000
"""All pictures of one page together, in characters of their data URIs; with the text the page stays under 3 MB."""
URI = re.compile(r"data:image/(?:webp|png|jpeg);base64,[A-Za-z0-9+/]+={0,2}\Z")
# Six stops of matplotlib's "inferno", dark to bright: monotone in lightness, so it also reads in grey.
_STOPS = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], float)


def thumbnail(picture: Image, side: int = 112, *, quality: int = 78) -> str:
    """Shrink a picture to fit a square, and return it as a WebP data URI.

    Args:
        picture: Any PIL picture. Tiny ones are enlarged by whole factors without smoothing, so pixels stay visible.
        side: Longer side in pixels.
        quality: WebP quality, 0 to 100.
    """
    from PIL import Image

    small = picture.convert("RGB")
    longest = max(small.size)
    if longest > side:
        # reduce first: resizing a 100-megapixel scan with a wide filter would cost seconds
        small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    elif side // longest > 1:
        factor = side // longest
        small = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)
    return _uri(small, "WEBP", quality=quality, method=4)


def overlay(picture: Image, heat: np.ndarray, side: int = 224, *, strength: float = 0.8) -> str:
    """Lay a heat map over a picture, and return it as a WebP data URI.

    The brighter, the more it mattered. The picture under it fades to grey, so that no colour is mistaken for heat.

    Args:
        picture: The picture, as the model saw it (same crop as the map).
        heat: Relevance.
        side: Longer side in pixels.
        strength: Opacity where the map is 1.

    Shape:
        heat: float (H, W) in [0, 1], any size.
    """
    from PIL import Image

    base = picture.convert("RGB")
    scale = side / max(base.size)
    size = (max(1, round(base.width * scale)), max(1, round(base.height * scale)))
    base = Image.blend(base, base.convert("L").convert("RGB"), 0.8).resize(size, Image.Resampling.BICUBIC)
    grey = np.clip(np.nan_to_num(heat), 0, 1).astype(np.float32)
    level = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR), float)[..., None]  # (H, W, 1)
    hot = colours(0.3 + 0.7 * level[..., 0])  # the darkest colours would look like shadow
    mixed = np.asarray(base, float) * (1 - strength * level) + strength * level * hot
    return _uri(Image.fromarray(mixed.clip(0, 255).astype(np.uint8)), "WEBP", quality=80, method=4)


def colours(level: np.ndarray) -> np.ndarray:
    """Map [0, 1] to RGB, dark to bright.

    Shape:
        level: float (…) → float (…, 3) in [0, 255].
    """
    at = np.linspace(0, 1, len(_STOPS))
    return np.stack([np.interp(level, at, _STOPS[:, channel]) for channel in range(3)], axis=-1)


def png(pixels: np.ndarray) -> str:
    """Return an array as a PNG data URI, exactly.

    Shape:
        pixels: uint8 (H, W, 4) or (H, W, 3).
    """
    from PIL import Image

    return _uri(Image.fromarray(pixels), "PNG", optimize=True)


def _uri(picture: Image, kind: str, **options: int | bool) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def capped(facts: Facts, limit_bytes: int = LIMIT_BYTES) -> Facts:
    """Leave out pictures, the least telling first, until those that remain fit the limit.

    Kept longest: mistakes and explanations, then the classes (one picture each before any second one), then the
    audit. Anything that is not a data URI of a picture is left out as well, so a page never fetches.
    """
    left = limit_bytes

    def keep(uri: str) -> str:
        nonlocal left
        if not 0 < len(uri) <= left or not URI.match(uri):
            return ""
        left -= len(uri)
        return uri

    return replace(
        facts,
        mistakes=tuple(replace(item, picture=keep(item.picture)) for item in facts.mistakes),
        explanations=tuple(
            item
            for item in (replace(e, picture=keep(e.picture), overlay=keep(e.overlay)) for e in facts.explanations)
            if item.picture and item.overlay
        ),
        data=_capped_data(facts.data, keep),
        audit=_capped_audit(facts.audit, keep),
    )


def _capped_data(data: DataFacts, keep: Callable[[str], str]) -> DataFacts:
    """Give every class its first picture before any class gets its second."""
    deepest = max((len(item.pictures) for item in data.classes), default=0)
    kept: list[list[str]] = [[] for _ in data.classes]
    for depth in range(deepest):
        for row, item in zip(kept, data.classes, strict=True):
            row.extend(filter(None, map(keep, item.pictures[depth : depth + 1])))
    classes = tuple(replace(item, pictures=tuple(row)) for item, row in zip(data.classes, kept, strict=True))
    return replace(data, classes=classes, pictures=tuple(filter(None, map(keep, data.pictures))))


def _capped_audit(audit: AuditFacts, keep: Callable[[str], str]) -> AuditFacts:
    def capped_case(case: tuple[Shown, ...]) -> tuple[Shown, ...]:
        return tuple(replace(side, picture=keep(side.picture)) for side in case)

    findings = tuple(replace(item, cases=tuple(map(capped_case, item.cases))) for item in audit.findings)
    return replace(audit, findings=findings)
