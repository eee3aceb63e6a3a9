"""Guards of every fit: what must move moved, what is frozen kept its bits, and what was saved is what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from warmstart.errors import TrainingError, listed

if TYPE_CHECKING:
    from warmstart.strategies import Group

_REPORT = "this is a fault of the strategy or of the model's layer groups: report it with the recipe"


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Hash the bits of tensors, by name."""
    return {name: _digest(tensor) for name, tensor in tensors.items()}


def check_frozen(before: Mapping[str, str], now: Mapping[str, Tensor]) -> None:
    """Refuse a fit that changed a frozen parameter or buffer.

    Args:
        before: Digests of the frozen tensors from before the first step.
        now: The tensors of the module.

    Raises:
        TrainingError: Bits of a frozen tensor differ.
    """
    changed = [name for name, digest in before.items() if _digest(now[name]) != digest]
    if changed:
        raise TrainingError(f"{len(changed)} frozen tensors changed during the fit ({listed(changed)})", _REPORT)


def check_moved(before: Mapping[str, str], now: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]]) -> None:
    """Refuse a fit in which a whole group stayed where it was.

    A single parameter may rest: the network may not use it on these inputs. A group whose every parameter rests was
    not trained.

    Args:
        before: Digests from before the first step.
        now: The tensors of the module.
        groups: Parameter names of each group that learned.

    Raises:
        TrainingError: No parameter of a group moved.
    """
    still = [group for group, names in groups.items() if names and all(_digest(now[n]) == before[n] for n in names)]
    if still:
        raise TrainingError(
            f"{len(still)} groups should have learned and did not move ({listed(still)})",
            "a larger optim.lr, or a strategy that leaves them frozen",
        )


def check_optimized(head: nn.Module | None, groups: Sequence[Group], optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that lacks the head or any other parameter that should learn, or has one twice.

    Raises:
        TrainingError: The optimizer does not hold exactly what learns.
    """
    held = [id(parameter) for entry in optimizer.param_groups for parameter in entry["params"]]
    wanted = [id(parameter) for group in groups for parameter in group.parameters]
    if sorted(held) != sorted(set(wanted)):
        raise TrainingError(f"the optimizer holds {len(held)} parameters, {len(set(wanted))} should learn", _REPORT)
    absent = [name for name, parameter in head.named_parameters() if id(parameter) not in set(held)] if head else []
    if absent:
        raise TrainingError(f"the optimizer lacks {len(absent)} parameters of the head ({listed(absent)})", _REPORT)


def check_saved(names: Collection[str], saved: Collection[str]) -> None:
    """Refuse a checkpoint that lacks something that learned.

    Raises:
        TrainingError: A name is not among the saved ones.
    """
    absent = [name for name in names if name not in saved]
    if absent:
        raise TrainingError(f"the checkpoint lacks {len(absent)} tensors that learned ({listed(absent)})", _REPORT)


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
