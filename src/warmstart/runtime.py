"""Seeds, hashes, devices, threads and the record of the environment."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from warmstart.errors import RecipeError

if TYPE_CHECKING:
    import numpy as np
    import torch

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
RECORDED = ("warmstart", "torch", "torchvision", "timm", "accelerate", "onnxruntime", "numpy", "scikit-learn", "pillow")


def digest(*parts: bytes | str | int) -> str:
    """Hash parts, order and boundaries included.

    Returns:
        32 hexadecimal characters (BLAKE2b, 128 bits).

    Example:
        >>> digest("ab", "c") == digest("a", "bc")
        False
    """
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def seed_of(seed: int, *parts: str | int) -> int:
    """Derive a 63-bit seed from the run's seed and what it is for, such as `(seed, "order", epoch)`."""
    return int(digest(seed, *parts)[:16], 16) >> 1


def rng(seed: int, *parts: str | int) -> np.random.Generator:
    """Return numpy's generator for one purpose: equal arguments, equal numbers, on every machine."""
    import numpy as np

    return np.random.Generator(np.random.Philox(seed_of(seed, *parts)))


def pick_device(name: Device) -> torch.device:
    """Resolve `device`: CUDA, then MPS, then CPU when `auto`.

    Raises:
        RecipeError: The named device is not on this machine.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, present in there.items() if present))
    if not there[name]:
        raise RecipeError(f"device={name!r} is not on this machine", "--device auto")
    return torch.device(name)


def num_cpus() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Limit torch, BLAS and OpenMP to `count` threads inside the block; small matrices are faster on one."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=count):
        yield


def cache_root() -> Path:
    """Return where warmstart keeps what it may compute again: `WARMSTART_CACHE`, else the user's cache folder."""
    named = os.environ.get("WARMSTART_CACHE")
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "warmstart"
    return Path(named) if named else default.expanduser()


def shelf_root() -> Path:
    """Return the local shelf of backbones: `WARMSTART_SHELF`, else the user's data folder."""
    named = os.environ.get("WARMSTART_SHELF")
    default = Path(os.environ.get("XDG_DATA_HOME", "~/.local/share")) / "warmstart" / "shelf"
    return Path(named) if named else default.expanduser()


def environment() -> dict[str, str]:
    """Record what a result may depend on: versions, processor, threads; no names of people or machines."""
    facts = {"python": sys.version.split()[0], "system": platform.system(), "machine": platform.machine()}
    facts["cpus"] = str(num_cpus())
    for package in RECORDED:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts
