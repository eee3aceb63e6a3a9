"""CONTRACT of sources: where backbones come from. One file per source; `find` splits `source/name`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from warmstart import plugins
from warmstart.errors import SourceError, closest
from warmstart.models import Part, parts
from warmstart.models.lazy import LazyBackbone
from warmstart.sources import _memory

if TYPE_CHECKING:
    from warmstart.models import Backbone, Card


@runtime_checkable
class Source(Protocol):
    """One place that backbones come from. The fields of the class are its options."""

    def available(self) -> Sequence[Card]:
        """Return the cards on offer, without loading weights and without network."""
        ...

    def load(self, name: str) -> tuple[Backbone, Card]:
        """Build the backbone with its weights.

        Args:
            name: What follows `source/`.

        Raises:
            SourceError: Unknown name, or weights that are not here; offline it says where it looked and which
                command fetches.
        """
        ...

    def fetch(self, name: str) -> Path:
        """Bring the weights onto this machine and return where they are."""
        ...

    def check(self, name: str) -> None:
        """Refuse a name that `load` cannot know, at once: no weights are read, and nobody is waited for.

        Raises:
            SourceError: Unknown name.
        """
        ...

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the files that the last `load` of this name read; empty when its weights come from no file."""
        ...


def find(name: str) -> tuple[Source, str]:
    """Return the source and the rest of a backbone's full name; a path to a folder goes to `local`.

    Raises:
        SourceError: The name has no known source.
    """
    source, slash, rest = name.partition("/")
    if slash and rest and source in plugins.names("source"):
        return plugins.load("source", source)(), rest
    if Path(name).expanduser().exists():
        return plugins.load("source", "local")(), str(Path(name).expanduser())
    raise SourceError(
        f"backbone {name!r} names no source and is no folder (expected source/name)",
        closest(name, [f"{known}/{name.rpartition('/')[2]}" for known in plugins.names("source")]),
    )


def load(name: str) -> tuple[Backbone, Card]:
    """Load a backbone by its full name, `source/name` or a path.

    Raises:
        SourceError: See `Source.load`.
    """
    source, rest = find(name)
    backbone, card = source.load(rest)
    _memory.remember(name, source.files(rest), backbone, card)
    return backbone, card


def defer(name: str, then: Callable[[Backbone], None] | None = None) -> LazyBackbone:
    """Return a backbone that is built when needed; at once, when nothing is remembered about its weights.

    Args:
        name: Full name, or a path.
        then: Called with the network when it is built.

    Raises:
        SourceError: See `Source.load`.
    """
    stack = parts.parse(name)
    if stack:
        inside = [(defer(part, then), size) for part, size in stack]
        return LazyBackbone.stacked(
            parts.joined(name, [Part(one.card, size) for one, size in inside]), [one for one, _ in inside]
        )

    def build() -> tuple[Backbone, Card]:
        backbone, card = load(name)
        if then is not None:
            then(backbone)
        return backbone, card

    known = _memory.recall(name)
    return LazyBackbone.of(*build()) if known is None else LazyBackbone(*known, build)


def card(name: str) -> Card:
    """Return the facts of a backbone, without loading it where they are known: remembered, or on a list of cards.

    Raises:
        SourceError: Unknown name, or unlisted weights that cannot be loaded.
    """
    known, stack = _memory.recall(name), parts.parse(name)
    if known is not None:
        return known[0]
    if stack:
        return parts.joined(name, [Part(card(part), size) for part, size in stack])
    source, _ = find(name)
    listed = (card for card in source.available() if card.name == name)
    return next(listed, None) or load(name)[1]


def check(name: str) -> None:
    """Refuse a backbone's name that no source knows, within a moment.

    Raises:
        SourceError: See `find` and `Source.check`.
    """
    if _memory.recall(name) is None:
        source, rest = find(name)
        source.check(rest)
