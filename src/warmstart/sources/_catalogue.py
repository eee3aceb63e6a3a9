"""Cards of big libraries without importing them: a JSON file per library version, built on first use."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version

from warmstart import durable, runtime
from warmstart.errors import WarmstartError
from warmstart.models import Card

log = logging.getLogger(__name__)
FORMAT = 3
"""Raise it when cards get another field or the tables of facts change."""


def remembered(library: str, build: Callable[[], Sequence[Card]]) -> tuple[Card, ...]:
    """Return the cards of a library from the cache folder; a missing or damaged file is built again.

    Args:
        library: The distribution whose version the file belongs to.
        build: Makes the cards; may import the library.
    """
    path = runtime.cache_root() / "catalogue" / f"{library}-{version(library)}-{FORMAT}.json"
    try:
        return tuple(Card.from_json(facts) for facts in json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError):
        log.debug("no usable catalogue at %s", path)
    cards = tuple(build())
    try:
        durable.write_bytes(path, json.dumps([card.to_json() for card in cards]).encode())
    except WarmstartError as error:
        log.debug("catalogue not kept: %s", error)
    return cards
