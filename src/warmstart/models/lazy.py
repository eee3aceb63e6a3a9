"""A backbone that is known before it is built, so that nothing is built where every feature is known already.

Building a network takes seconds, most of them imports. What cache keys need of it is little: the hash of its weights, a
hash of its structure, its number of layer groups. That much is remembered in the cache folder whenever a backbone comes
fresh from disk, under the hash of its weights, so it can never be wrong about other weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from warmstart import durable, runtime
from warmstart.errors import RunError, SourceError
from warmstart.models import Card, InputSpec

if TYPE_CHECKING:
    from warmstart.models import Backbone

log = logging.getLogger(__name__)
FORMAT = 1
LIBRARIES = ("warmstart", "torch", "torchvision", "timm", "numpy")
"""What is remembered holds for these versions of them."""


@dataclass(frozen=True)
class Outline:
    """What keys and cuts need to know of a backbone."""

    identity: str
    """Hash of everything that its values depend on; see `identity`."""
    num_groups: int
    """Number of layer groups, which is the last cut."""

    @staticmethod
    def of(backbone: Backbone, card: Card) -> Outline:
        """Describe a backbone whose tensors are those that its card names."""
        assert card.weights_hash is not None
        return Outline(_identity(backbone, card, card.weights_hash), len(backbone.layer_groups()))


def identity(backbone: Backbone, card: Card) -> str:
    """Hash what a backbone's values depend on: its tensors as they are now, its structure, its normalisation.

    The tensors are hashed anew because a card does not notice that training changed them. Structure counts because
    variants of one network share all tensors and differ in padding or in an epsilon.
    """
    from warmstart.models import weights

    return _identity(backbone, card, weights.backbone_hash(backbone))


def _identity(backbone: Backbone, card: Card, tensors: str) -> str:
    structure = re.sub(r" at 0x[0-9a-f]+", "", repr(backbone))
    spec = json.dumps(asdict(backbone.spec), sort_keys=True)
    return runtime.digest(tensors, card.arch or "", structure, spec)


class LazyBackbone:
    """A backbone that is built when something needs more than what is known of it.

    Args:
        card: The facts of its weights, their hash among them.
        outline: What else is known.
        build: Builds it with its weights, and returns it with its card.
        tensors: A safetensors file with its tensors and nothing else, where there is one.
        parts: The backbones of a stack.
    """

    def __init__(
        self,
        card: Card,
        outline: Outline,
        build: Callable[[], tuple[Backbone, Card]],
        *,
        tensors: Path | None = None,
        parts: tuple[LazyBackbone, ...] = (),
    ) -> None:
        self.card = card
        self.tensors = tensors
        self.parts = parts
        self._outline = outline
        self._build = build
        self._backbone: Backbone | None = None

    @staticmethod
    def of(backbone: Backbone, card: Card) -> LazyBackbone:
        """Wrap a backbone that is built already, its tensors those that the card names."""
        lazy = LazyBackbone(card, Outline.of(backbone, card), lambda: (backbone, card))
        lazy._backbone = backbone
        return lazy

    @staticmethod
    def stacked(card: Card, parts: Sequence[LazyBackbone]) -> LazyBackbone:
        """Put backbones side by side, as their joined card says; none is built for it."""

        def build() -> tuple[Backbone, Card]:
            from warmstart.models.stack import Stack

            return Stack([part.get() for part in parts], [part.image_size for part in card.parts]).eval(), card

        outline = Outline(runtime.digest("stack", *(part.identity for part in parts)), len(parts))
        return LazyBackbone(card, outline, build, parts=tuple(parts))

    @property
    def built(self) -> bool:
        """Say whether the network is in memory, where somebody may have changed it."""
        return self._backbone is not None

    @property
    def identity(self) -> str:
        """Hash of everything that its values depend on, as it is now."""
        return self._outline.identity if self._backbone is None else identity(self._backbone, self.card)

    @property
    def num_groups(self) -> int:
        """Number of layer groups, which is the last cut."""
        return self._outline.num_groups

    def get(self) -> Backbone:
        """Return the network, built at the first call.

        Raises:
            SourceError: The weights are no longer those that were remembered.
        """
        if self._backbone is None:
            backbone, card = self._build()
            if card.weights_hash != self.card.weights_hash:
                raise SourceError(
                    f"the weights of {self.card.name} were {self.card.weights_hash} when they were last read, and are "
                    f"{card.weights_hash} now",
                    "run the command again: from now on the new weights count",
                )
            self._backbone = backbone
        return self._backbone


def parts(backbone: Backbone | LazyBackbone) -> tuple[Backbone | LazyBackbone, ...]:
    """Return the backbones of a stack, unbuilt where that is enough; nothing for a network of its own."""
    if isinstance(backbone, LazyBackbone):
        return backbone.parts or (parts(backbone.get()) if backbone.card.parts else ())
    from warmstart.models.stack import Stack

    return tuple(backbone.each()) if isinstance(backbone, Stack) else ()


def known(card: Card) -> Outline | None:
    """Return the outline of the backbone with these weights, architecture and input spec, where it is remembered."""
    facts = recall(_place(card))
    try:
        return None if facts is None else Outline(**facts)  # type: ignore[arg-type]
    except TypeError:
        return None


def remember(outline: Outline, card: Card) -> None:
    """Keep an outline for `known`."""
    keep(_place(card), asdict(outline))


def folder() -> Path:
    """Return where facts and weights of backbones are kept."""
    return runtime.cache_root() / "backbones"


def versions() -> str:
    """Name the versions that what is remembered holds for."""
    fields = " ".join((*Card.__dataclass_fields__, *InputSpec.__dataclass_fields__))
    return " ".join(f"{name} {_version(name)}" for name in LIBRARIES) + f" format {FORMAT} {fields}"


def recall(path: Path) -> dict[str, object] | None:
    """Read facts that `keep` wrote; damaged ones are forgotten."""
    try:
        seal, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if seal != _seal(body):
        log.warning("%s is damaged, and what it says is found out again", path)
        return None
    facts = json.loads(body)
    assert isinstance(facts, dict), "a seal is only put on an object"
    return facts


def keep(path: Path, facts: dict[str, object]) -> None:
    """Write facts with a hash of themselves. A disk that takes no more costs a second next time, and no run."""
    body = json.dumps(facts).encode()
    try:
        durable.write_bytes(path, _seal(body) + b"\n" + body)
    except RunError as error:
        log.debug("not remembered: %s", error.problem)


def _seal(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode()


def _place(card: Card) -> Path:
    spec = json.dumps(asdict(card.spec), sort_keys=True)
    return folder() / f"{runtime.digest(card.weights_hash or '', card.arch or '', spec, versions())}.json"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
