"""What every source must keep of the contract in `warmstart.sources`, without network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from torch import nn

from warmstart.errors import SourceError
from warmstart.models import Backbone, Card
from warmstart.models.weights import backbone_hash
from warmstart.sources import Source

LOADERS = ("torch.load", "safetensors.torch.load_file", "safetensors.torch.load", "safetensors.safe_open")


def check_source(source: Source, name: str, *, known: str | None = None, loads: bool = False) -> None:
    """Raise AssertionError unless a source keeps its contract while there is no network.

    It lists cards without loading weights, the same ones each time, under unique names of its own; a name that it does
    not know is a SourceError with the closest name; what it loads is a backbone, and the card says what it is.

    Args:
        source: With any options.
        name: Name of the source, what stands before the `/`.
        known: What follows the `/` in the name of a backbone; the first of `available()` when not given.
        loads: Load the known one too, because its weights are on this machine.
    """
    assert isinstance(source, Source), f"{source!r} lacks a member of the Source protocol"
    where = f"source {name}"
    with offline():
        cards = _check_cards(source, name, where)
        assert known or cards, f"{where}: nothing is available, so name a backbone with known="
        known = known or cards[0].name.partition("/")[2]
        _check_unknown(source, known, where)
        _check_names(source, known, where)
        if loads:
            _check_loaded(source, known, f"{where}, {known}")


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Refuse every connection for a while."""
    refused = OSError("there is no network during a check")
    with (
        mock.patch("socket.socket.connect", side_effect=refused),
        mock.patch("socket.getaddrinfo", side_effect=refused),
    ):
        yield


def _check_cards(source: Source, name: str, where: str) -> list[Card]:
    """Cards are listed without weights, again the same, under unique names that begin with the source's."""
    loading = AssertionError(f"{where}: available() loads weights, and should only list cards")
    with contextlib.ExitStack() as patched:
        for loader in LOADERS:
            patched.enter_context(mock.patch(loader, side_effect=loading))
        cards, again = list(source.available()), list(source.available())
    assert cards == again, f"{where}: available() gives other cards the second time"
    names = [card.name for card in cards]
    assert len(set(names)) == len(names), f"{where}: cards share names"
    odd = [one for one in names if not one.startswith(f"{name}/")]
    assert not odd, f"{where}: cards are named {odd[:3]}, expected {name}/…"
    for card in cards:
        assert card.to_json() == Card.from_json(card.to_json()).to_json(), f"{where}: {card.name} is no JSON-ready card"
    return cards


def _check_unknown(source: Source, known: str, where: str) -> None:
    """A misspelt name is a SourceError that names what was probably meant, and never a wait for a network."""
    misspelt = f"{known}x"
    try:
        source.load(misspelt)
    except SourceError as error:
        said = f"{error.problem} {error.fix}"
        assert known in error.fix, f"{where}: the error about {misspelt!r} does not name {known!r}: {said}"
        return
    except Exception as error:
        raise AssertionError(
            f"{where}: loading {misspelt!r} raises {type(error).__name__} ({error}), expected SourceError"
        ) from error
    raise AssertionError(f"{where}: loading {misspelt!r} works, and there is no such name")


def _check_names(source: Source, known: str, where: str) -> None:
    """Names are judged before anything is loaded, as `load` would judge them."""
    try:
        source.check(known)
    except SourceError as error:
        raise AssertionError(f"{where}: check({known!r}) refuses what is available: {error}") from error
    with contextlib.suppress(SourceError):
        source.check(f"{known}x")
        raise AssertionError(f"{where}: check('{known}x') passes, and load refuses it")


def _check_loaded(source: Source, known: str, where: str) -> None:
    """What is loaded is a backbone in eval mode, the same each time, as its card says."""
    (backbone, card), (_, again) = source.load(known), source.load(known)
    assert isinstance(backbone, nn.Module), f"{where}: load gives a {type(backbone).__name__}, no nn.Module"
    assert isinstance(backbone, Backbone), f"{where}: {type(backbone).__name__} lacks a member of the Backbone protocol"
    assert not backbone.training, f"{where}: the backbone is in train mode"
    assert card == again, f"{where}: loading twice gives two cards"
    count, found = sum(p.numel() for p in backbone.parameters()), backbone_hash(backbone)
    assert card.num_params == count, f"{where}: the card says {card.num_params} parameters, and there are {count}"
    assert card.dim == backbone.dim, f"{where}: the card says dim {card.dim}, and the backbone {backbone.dim}"
    assert card.weights_hash == found, f"{where}: the card says hash {card.weights_hash}, and the weights have {found}"
    assert card.spec == backbone.spec, f"{where}: card and backbone disagree on the input spec"
