"""CONTRACT of sources: where backbones come from. One file per source; `find` splits `source/name`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from warmstart import plugins
from warmstart.errors import SourceError, closest

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
    return source.load(rest)
