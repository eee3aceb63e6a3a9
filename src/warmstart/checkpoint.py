"""Checkpoints: one .safetensors file and one sealed .json per generation, two generations kept, nothing pickled.

The JSON is written last and holds the hash of the tensors and of itself, so a checkpoint is either whole or refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from warmstart import durable
from warmstart.errors import CheckpointError, listed

log = logging.getLogger(__name__)

FORMAT = 1
KEPT = 2
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_OPENING, _MIDDLE, _CLOSING = b'{"sha256":"', b'","body":', b"}\n"
_ANOTHER = "remove it, or name another run folder with --out NEW"


@dataclass(frozen=True)
class Checkpoint:
    """A resumable state, as it was saved."""

    tensors: dict[str, Tensor]
    state: dict[str, object]
    generation: int
    damaged: tuple[str, ...] = ()
    """Newer generations that were refused, each with the reason."""


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file and of the places for them, by name."""

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Places that the file has nothing for."""
    unexpected: tuple[str, ...] = ()
    """Tensors of the file that have no place."""
    reshaped: tuple[str, ...] = field(default=())
    """`name: (file shape) for (own shape)`; not loaded."""

    @property
    def complete(self) -> bool:
        """Whether every place was filled and every tensor used."""
        return not (self.missing or self.unexpected or self.reshaped)

    def require_complete(self, what: str) -> None:
        """Refuse a partial load.

        Raises:
            CheckpointError: Something is missing, unexpected or of another shape; all of it is listed.
        """
        if self.complete:
            return
        found = [("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.reshaped)]
        said = "; ".join(f"{len(names)} {word}: {listed(names)}" for word, names in found if names)
        raise CheckpointError(f"{what} does not fit the model ({said})", _ANOTHER)


def save(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, object], *, generation: int) -> None:
    """Save one generation and remove those before the last two.

    Args:
        folder: Holds the generations of one fit and nothing else of their names.
        tensors: By name, on any device.
        state: JSON-ready; carries `step`.
        generation: One more than the one before.

    Raises:
        RunError: The file system refused; the generations before are untouched.
    """
    written = save_tensors(folder / f"{generation:08d}.safetensors", tensors)
    body = {"format": FORMAT, "generation": generation, "tensors": written.sha256, "state": state}
    durable.write_bytes(folder / f"{generation:08d}.json", _seal(json.dumps(body).encode()))
    _prune(folder)


def load_latest(folder: Path) -> Checkpoint | None:
    """Load the newest generation that is whole, and say which newer ones are damaged.

    Returns:
        None when nothing was saved yet.

    Raises:
        CheckpointError: Generations are there and none is whole.
    """
    damaged: list[str] = []
    for path in reversed(_generations(folder)):
        try:
            tensors, body = _load(path)
        except CheckpointError as error:
            log.warning("%s; going back one checkpoint", error.problem)
            damaged.append(error.problem)
            continue
        state = body["state"]
        assert isinstance(state, dict)
        return Checkpoint(tensors, state, int(path.stem), tuple(damaged))
    if damaged:
        raise CheckpointError(f"no checkpoint of {folder} is whole ({listed(damaged)})", "--overwrite to begin anew")
    return None


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> durable.Written:
    """Write a .safetensors file, one tensor in memory at a time."""
    return durable.write(path, _safetensors(tensors))


def load_tensors(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a .safetensors file.

    Args:
        path: The file.
        sha256: What its bytes must hash to.

    Raises:
        CheckpointError: No such file, a pickle, another format, or not the bytes that were written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"no tensors at {path}", _ANOTHER)
    if is_pickle(path):
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is loaded; expected safetensors",
            "convert it where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)",
        )
    if sha256 is not None and durable.sha256(path) != sha256:
        raise CheckpointError(f"{path} is damaged: its bytes are not those that were written", _ANOTHER)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not safetensors ({error})", _ANOTHER) from error


def is_pickle(path: Path) -> bool:
    """Tell a pickle or a torch.save archive by its first bytes."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[4:] == b"\0\0\0\0{":  # safetensors: the header's length, which may begin like a pickle, and the header
        return False
    return start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Name the parameters and buffers of a module; the tensors are its own, not copies."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@torch.no_grad()
def load_into(places: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> LoadReport:
    """Copy tensors into places of the same name and shape, and report on the rest.

    Args:
        places: Where values go, such as `tensors_of(module)`; changed in place.
        tensors: Values by name.
    """
    shared = [name for name in places if name in tensors]
    loaded = [name for name in shared if places[name].shape == tensors[name].shape]
    for name in loaded:
        places[name].copy_(tensors[name])
    return LoadReport(
        tuple(loaded),
        tuple(name for name in places if name not in tensors),
        tuple(name for name in tensors if name not in places),
        tuple(
            f"{name}: {tuple(tensors[name].shape)} for {tuple(places[name].shape)}"
            for name in shared
            if places[name].shape != tensors[name].shape
        ),
    )


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    body = _unseal(path)
    if body.get("format") != FORMAT or body.get("generation") != int(path.stem):
        raise CheckpointError(f"{path} is a checkpoint of another version or place", _ANOTHER)
    return load_tensors(path.with_suffix(".safetensors"), sha256=str(body["tensors"])), body


def _seal(body: bytes) -> bytes:
    return _OPENING + hashlib.sha256(body).hexdigest().encode() + _MIDDLE + body + _CLOSING


def _unseal(path: Path) -> dict[str, object]:
    """Return the body of a sealed file; every byte is either checked or hashed."""
    data = path.read_bytes()
    start = len(_OPENING) + 64 + len(_MIDDLE)
    body = data[start : -len(_CLOSING)]
    if data != _seal(body):
        raise CheckpointError(f"{path} is damaged or no checkpoint", _ANOTHER)
    value = json.loads(body)
    assert isinstance(value, dict)
    return value


def _generations(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if path.stem.isdigit()) if folder.is_dir() else []


def _prune(folder: Path) -> None:
    """Remove older generations, and tensors whose JSON was never written; the JSON goes first."""
    generations = _generations(folder)
    for path in generations[:-KEPT]:
        durable.remove(path)
    kept = {path.stem for path in generations[-KEPT:]}
    for path in folder.glob("*.safetensors"):
        if path.stem.isdigit() and path.stem not in kept:
            durable.remove(path)


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield a file in the safetensors layout: header length, header, then the tensors by falling alignment and name."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else b""
