"""Weights on disk: safetensors with a card beside them, and their hash. Nothing here can run code from a file.

A weights folder holds `model.safetensors` (the network's own parameter names, so timm and torchvision can read it too)
and `card.json`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from warmstart import durable
from warmstart.errors import CheckpointError, RunError, SourceError, WarmstartError, listed
from warmstart.models import Card, lazy, parts
from warmstart.models.lazy import LazyBackbone

if TYPE_CHECKING:
    from torch import Tensor, nn

    from warmstart.models import Backbone

WEIGHTS = "model.safetensors"
CARD = "card.json"
NETWORK = "network."
"""Where a `ChainBackbone` keeps its network."""
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
DTYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BF16": "bfloat16",
    "BOOL": "bool",
}
"""What safetensors calls a type → what torch calls it."""
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class LoadReport:
    """What happened to every tensor when weights met a network."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    """In the network and not in the file: they keep their values."""
    unexpected: tuple[str, ...] = ()
    """In the file and not in the network: they were ignored."""
    reshaped: tuple[str, ...] = ()
    """In both with different shapes, `name: file (3, 4), network (3, 5)`: they keep their values."""

    @property
    def exact(self) -> bool:
        """Whether file and network agree on every name and shape."""
        return not (self.missing or self.unexpected or self.reshaped)

    def require_exact(self, what: str) -> None:
        """Raise unless every tensor was loaded and none was left over.

        Raises:
            CheckpointError: All differences, in one message.
        """
        if self.exact:
            return
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.reshaped}
        said = "; ".join(f"{len(names)} {kind} ({listed(names, 3)})" for kind, names in kinds.items() if names)
        raise CheckpointError(f"{what} does not fit the network: {said}", "use the weights of this very network")


def tensors_of(backbone: Backbone | nn.Module) -> dict[str, Tensor]:
    """Return a backbone's tensors under the names of its network."""
    state = cast("nn.Module", backbone).state_dict()
    return {name.removeprefix(NETWORK): tensor for name, tensor in state.items()}


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, shapes, dtypes and bytes of every tensor; the order of the mapping does not count.

    Args:
        tensors: Under the names of a network, or of a backbone around it: a leading `network.` does not count.

    Returns:
        32 hexadecimal characters.
    """
    import torch

    named = {name.removeprefix(NETWORK): tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return _hashed(
        (name, str(tensor.dtype), list(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().data)
        for name, tensor in sorted(named.items())
    )


def backbone_hash(backbone: Backbone) -> str:
    """Hash the weights of a backbone as they are now; those of a stack by the hash and input size of each part."""
    inside = cast("tuple[Backbone, ...]", lazy.parts(backbone))
    if not inside:
        return weights_hash(tensors_of(backbone))
    sizes: tuple[int, ...] = backbone.sizes  # type: ignore[attr-defined]
    return str(parts.hash_of([(backbone_hash(part), size) for part, size in zip(inside, sizes, strict=True)]))


def hash_of(data: bytes) -> str:
    """Return the `weights_hash` of the tensors in a safetensors file, from its bytes and without torch.

    Raises:
        CheckpointError: It holds a type of number that is not known here.
        SafetensorError: The bytes are damaged or foreign.
    """
    from safetensors import deserialize

    found = sorted((name.removeprefix(NETWORK), facts) for name, facts in deserialize(data))  # type: ignore[no-untyped-call]
    odd = sorted({str(facts["dtype"]) for _, facts in found} - set(DTYPES))
    if odd:
        raise CheckpointError(f"tensors of the type {', '.join(odd)} are not known here", "save them as float32")
    return _hashed(
        (name, f"torch.{DTYPES[str(facts['dtype'])]}", list(facts["shape"]), memoryview(facts["data"]))
        for name, facts in found
    )


def arrays_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the `weights_hash` of tensors that are given as arrays."""
    return _hashed(
        (name, f"torch.{array.dtype}", list(array.shape), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        for name, array in sorted(arrays.items())
    )


def _hashed(tensors: Iterable[tuple[str, str, list[int], memoryview]]) -> str:
    """Hash (name, dtype, shape, bytes), sorted by name."""
    state = hashlib.blake2b(digest_size=16)
    for name, dtype, shape, data in tensors:
        head = json.dumps([name, dtype, shape]).encode()
        state.update(len(head).to_bytes(8, "little") + head)
        state.update(data)
    return state.hexdigest()


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as one safetensors file, whole or not at all.

    Raises:
        RunError: The disk refused.
    """
    import safetensors.torch

    apart = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    durable.write_bytes(path, safetensors.torch.save(apart))


@contextlib.contextmanager
def reading(path: Path, what: str, fix: str = "delete that file and fetch it again") -> Iterator[None]:
    """Turn whatever a library says about a damaged or foreign file into one error of ours.

    Raises:
        CheckpointError: With the library's own reason.
    """
    try:
        yield
    except (WarmstartError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path} does not hold {what} ({reason})", fix) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        SourceError: There is no such file.
        CheckpointError: A pickle, or a file that is damaged or of another format.
    """
    import safetensors.torch

    _refuse_missing(path)
    with reading(path, "safetensors weights", "fetch or save the weights again"):
        return safetensors.torch.load_file(path)


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise SourceError(f"no weights at {path}", "give a folder with model.safetensors and card.json")
    refuse_pickle(path)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file as arrays, without torch.

    Raises:
        SourceError: There is no such file.
        CheckpointError: A pickle, or a file that is damaged or of another format.
    """
    from safetensors.numpy import load

    _refuse_missing(path)
    with reading(path, "safetensors weights", "fetch or save the weights again"):
        return load(path.read_bytes())


def refuse_pickle(path: Path) -> None:
    """Refuse a file that is, or is named like, a pickle, which could run code when read.

    Raises:
        CheckpointError: With the command that converts it.
    """
    with path.open("rb") as file:
        start = file.read(9)
    safe = start[4:] == b"\0\0\0\0{"  # the length of a safetensors header may begin like a pickle
    if path.suffix in PICKLES or (start.startswith(PICKLE_STARTS) and not safe):
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is read; expected safetensors",
            'where you trust it: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{path}', weights_only=True), '{path.with_suffix('.safetensors')}')\"",
        )


def load_into(module: nn.Module, tensors: Mapping[str, Tensor]) -> LoadReport:
    """Copy tensors into a module where name and shape agree, and say what happened to each."""
    own = module.state_dict()
    reshaped = [n for n in own if n in tensors and own[n].shape != tensors[n].shape]
    fitting = {n: tensors[n] for n in own if n in tensors and n not in reshaped}
    module.load_state_dict(fitting, strict=False)
    return LoadReport(
        loaded=tuple(fitting),
        missing=tuple(n for n in own if n not in tensors),
        unexpected=tuple(n for n in tensors if n not in own),
        reshaped=tuple(f"{n}: file {tuple(tensors[n].shape)}, network {tuple(own[n].shape)}" for n in reshaped),
    )


def load_tensors_into(module: nn.Module, path: Path) -> LoadReport:
    """Load a safetensors file into a module that it fits exactly.

    Raises:
        SourceError: There is no such file.
        CheckpointError: A pickle, a damaged file, or tensors of another module.
    """
    report = load_into(module, load_tensors(path))
    report.require_exact(str(path))
    return report


def save_backbone(backbone: Backbone | LazyBackbone, card: Card, folder: Path) -> Card:
    """Write a backbone as a weights folder; the card comes last, so a folder with a card is complete.

    A backbone that is not built is copied from a file with its tensors, where there is one that has their hash.

    Returns:
        The card as written: with the hash, size and dimension of these very weights.

    Raises:
        RunError: The disk refused.
    """
    if card.parts:
        return _save_parts(lazy.parts(backbone), card, folder)
    if isinstance(backbone, LazyBackbone):
        data = _whole(backbone)
        if data is not None:
            durable.write_bytes(folder / WEIGHTS, data)
            durable.write_json(folder / CARD, card.to_json())
            return card
    network = backbone.get() if isinstance(backbone, LazyBackbone) else backbone
    card = completed(card, network)
    save_tensors(tensors_of(network), folder / WEIGHTS)
    durable.write_json(folder / CARD, card.to_json())
    if isinstance(backbone, LazyBackbone) and backbone.card.weights_hash == card.weights_hash:
        _keep(card, folder / WEIGHTS)
    return card


def _save_parts(backbones: Sequence[Backbone | LazyBackbone], card: Card, folder: Path) -> Card:
    """Write each part of a stack as a weights folder of its own, then their joined card."""
    both = list(zip(backbones, card.parts, strict=True))
    saved = [save_backbone(one, part.card, _part(folder, at)) for at, (one, part) in enumerate(both)]
    card = parts.joined(card.name, [replace(part, card=new) for new, part in zip(saved, card.parts, strict=True)])
    durable.write_json(folder / CARD, card.to_json())
    return card


def _part(folder: Path, at: int) -> Path:
    return folder / f"part{at + 1}"


def _whole(backbone: LazyBackbone) -> bytes | None:
    """Return a file with the tensors of a backbone that is not built, when it is there and has their hash."""
    if backbone.built:
        return None
    for path in (backbone.tensors, kept(backbone.card)):
        with contextlib.suppress(Exception):
            data = path.read_bytes() if path is not None else b""
            if path is not None and data and hash_of(data) == backbone.card.weights_hash:
                os.utime(path)  # used now, so it leaves the cache later
                return data
    return None


def kept(card: Card) -> Path:
    """Return where the tensors of frozen weights are kept, so that saving them again needs no network."""
    return lazy.folder() / f"{card.weights_hash}.safetensors"


def _keep(card: Card, saved: Path) -> None:
    """Keep a copy of a saved weights file. A disk that takes no more costs a second next time, and no run."""
    with contextlib.suppress(RunError, OSError):
        if not kept(card).exists():
            durable.write_bytes(kept(card), saved.read_bytes())


def completed(card: Card, backbone: Backbone) -> Card:
    """Return the card with the hash, size, dimension and input spec of a backbone as it is now."""
    inside = cast("tuple[Backbone, ...]", lazy.parts(backbone))
    if inside:
        both = zip(inside, card.parts, strict=True)
        return parts.joined(card.name, [replace(part, card=completed(part.card, one)) for one, part in both])
    num_params = sum(parameter.numel() for parameter in cast("nn.Module", backbone).parameters())
    identity = weights_hash(tensors_of(backbone))
    return replace(card, weights_hash=identity, num_params=num_params, dim=backbone.dim, spec=backbone.spec)


def read_card(folder: Path) -> Card:
    """Read the card of a weights folder.

    Raises:
        CheckpointError: No readable card.
    """
    fix = f"save the weights again, or give a folder with {WEIGHTS} and {CARD}"
    try:
        return Card.from_json(durable.read_json(folder / CARD, fix=fix, error=CheckpointError))
    except TypeError as error:
        raise CheckpointError(f"{folder / CARD} is not a card ({error})", fix) from error


def load_folder(folder: Path) -> tuple[Backbone, Card]:
    """Build the backbone of a weights folder and load it.

    Raises:
        CheckpointError: Damaged, foreign, a pickle, or other weights than the card says.
        SourceError: The architecture is unknown here.
    """
    from warmstart.models.build import backbone as build

    card = read_card(folder)
    if card.parts:
        return _open_parts(card, folder).get(), card
    tensors = load_tensors(folder / WEIGHTS)
    card = _as_said(card, folder, weights_hash(tensors))
    backbone = build(card.arch or "", card.spec)
    load_into(backbone.network, tensors).require_exact(str(folder / WEIGHTS))
    return backbone.eval(), card


def open_folder(folder: Path) -> LazyBackbone:
    """Check the weights of a folder, and build its backbone only when that is needed to know it.

    Raises:
        CheckpointError: Damaged, foreign, a pickle, or other weights than the card says.
        SourceError: The architecture is unknown here.
    """
    card, path = read_card(folder), folder / WEIGHTS
    if card.parts:
        return _open_parts(card, folder)
    _refuse_missing(path)
    with reading(path, "safetensors weights", "fetch or save the weights again"):
        found = hash_of(path.read_bytes())
    card = _as_said(card, folder, found)
    outline = lazy.known(card)
    if outline is not None:
        return LazyBackbone(card, outline, lambda: load_folder(folder), tensors=path)
    backbone = LazyBackbone.of(*load_folder(folder))
    lazy.remember(lazy.Outline.of(backbone.get(), card), card)
    return backbone


def _open_parts(card: Card, folder: Path) -> LazyBackbone:
    """Check each part of a stack, and that these are the parts of which its card speaks."""
    opened = [open_folder(_part(folder, at)) for at in range(len(card.parts))]
    if parts.joined(card.name, [replace(p, card=o.card) for o, p in zip(opened, card.parts, strict=True)]) != card:
        raise CheckpointError(
            f"the parts in {folder} are not those that its {CARD} speaks of",
            "copy the folder again from where it was made, all of it",
        )
    return LazyBackbone.stacked(card, opened)


def _as_said(card: Card, folder: Path, found: str) -> Card:
    """Return the card with the hash that was found, which has to be its own."""
    if card.weights_hash is not None and found != card.weights_hash:
        raise CheckpointError(
            f"{folder / WEIGHTS} has hash {found}, but its card says {card.weights_hash}",
            "fetch or save the weights again",
        )
    if card.arch is None:
        raise CheckpointError(f"{folder / CARD} has no arch", 'add the network, such as "arch": "timm:resnet50"')
    return replace(card, weights_hash=found)
