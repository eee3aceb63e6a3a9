"""Which weights a name brought last time, as long as their files have not been touched since.

Facts are kept by name, with the stamp (path, size, time of change, inode) of every file that they came from.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from warmstart import runtime
from warmstart.models import Backbone, Card, lazy
from warmstart.models.lazy import Outline

PLACES = (
    *("WARMSTART_PACKAGES", "WARMSTART_SHELF", "XDG_DATA_HOME", "XDG_CACHE_HOME"),
    *("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TORCH_HOME"),
)
"""Variables of the environment that say where weights are looked for."""


def remember(name: str, files: tuple[Path, ...], backbone: Backbone, card: Card) -> None:
    """Keep what a name brought; nothing is kept without files to know it by."""
    if not files or card.weights_hash is None:
        return
    outline = Outline.of(backbone, card)
    lazy.keep(_path(name), {"stamps": _stamps(files), "card": card.to_json(), "outline": asdict(outline)})
    lazy.remember(outline, card)


def recall(name: str) -> tuple[Card, Outline] | None:
    """Return what a name brought, when the files that it came from are there and untouched."""
    facts = lazy.recall(_path(name))
    if facts is None:
        return None
    try:
        stamps = facts["stamps"]
        if stamps != _stamps(tuple(Path(str(stamp[0])) for stamp in stamps)):  # type: ignore[attr-defined]
            return None
        return Card.from_json(facts["card"]), Outline(**facts["outline"])  # type: ignore[arg-type]
    except (KeyError, TypeError, OSError):
        return None


def _stamps(files: tuple[Path, ...]) -> list[list[object]]:
    found = []
    for file in files:
        path = file.expanduser().absolute()
        stat = path.stat()
        found.append([str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    return found


def _path(name: str) -> Path:
    around = [f"{place}={os.environ.get(place, '')}" for place in PLACES]
    # A name may be a path, which depends on the current folder.
    return lazy.folder() / f"{runtime.digest('name', name, str(Path.cwd()), lazy.versions(), *around)}.json"
