"""What a fit remembers between two steps, and how it is put away and taken up again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from warmstart import checkpoint, durable, looptools
from warmstart.errors import CheckpointError, listed
from warmstart.optim import Plateau

if TYPE_CHECKING:
    from warmstart.strategies import Group

Reason = Literal["finished", "early_stopping", "deadline", "stopped", "asked"]
_ANOTHER = "--out NEW, or --overwrite"


@dataclass(frozen=True)
class EpochRecord:
    """One line of the learning curve."""

    epoch: int
    step: int
    """Steps done when the epoch ended."""
    train_loss: float
    """Mean over the epoch's steps, penalty included; skipped batches left out."""
    metric: float | None
    """Of val; None without one."""
    lr: float
    """Of the last step, for a group with `lr_scale` 1."""
    seconds: float
    """Since the fit began, pauses between restarts left out."""


@dataclass(frozen=True)
class Best:
    """The best validation so far and where its weights are."""

    metric: float | None
    epoch: int
    file: str
    sha256: str


@dataclass
class State:
    """Everything of a fit that is not a tensor. It changes with every step and goes into checkpoints as JSON."""

    step: int = 0
    epoch: int = 0
    """Epochs that are done, their validation included."""
    seconds: float = 0.0
    skipped: int = 0
    loss_count: int = 0
    waited: int = 0
    """Epochs without improvement."""
    best: Best | None = None
    plateau: Plateau = field(default_factory=Plateau)
    history: list[EpochRecord] = field(default_factory=list)
    finished: Reason | None = None
    micro_batch: int | None = None
    """Examples per forward pass since memory ran out; as configured when it never did."""
    scaler: dict[str, float] | None = None
    """Of the loss scaling of fp16."""

    def to_json(self) -> dict[str, object]:
        """Return a JSON-ready dict; `from_json` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(facts: Mapping[str, object]) -> State:
        """Rebuild a state."""
        state = State(**facts)  # type: ignore[arg-type]
        best, plateau, history = facts["best"], facts["plateau"], facts["history"]
        state.best = Best(**best) if isinstance(best, dict) else None
        state.plateau = Plateau(**plateau)  # type: ignore[arg-type]
        state.history = [EpochRecord(**line) for line in history]  # type: ignore[attr-defined]
        return state


@dataclass(frozen=True)
class Learned:
    """The tensors of a module that a fit may change, by name; everything else of the module is frozen."""

    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    frozen: dict[str, Tensor]

    @staticmethod
    def of(module: nn.Module, groups: Sequence[Group]) -> Learned:
        """Sort the tensors of a module by whether they are in a group."""
        wanted = {id(parameter) for group in groups for parameter in group.parameters}
        trained = [part for group in groups for part in group.modules]
        still = [norm for group in groups if group.statistics == "still" for norm in looptools.norms(group.modules)]
        kept = {id(buffer) for norm in still for buffer in norm.buffers()}
        moving = {id(buffer) for part in trained for buffer in part.buffers()} - kept
        parameters = {name: p for name, p in module.named_parameters() if id(p) in wanted}
        buffers = {name: b for name, b in module.named_buffers() if id(b) in moving}
        known = {*parameters, *buffers}
        frozen = {name: t for name, t in checkpoint.tensors_of(module).items() if name not in known}
        return Learned(parameters, buffers, frozen)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved as weights."""
        return {**self.parameters, **self.buffers}


class Ema:
    """Moving average of what learns: `average = decay · average + (1 - decay) · weights` after each step."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        self._names = list(parameters)
        self._live = list(parameters.values())
        self._average = [parameter.detach().clone() for parameter in self._live]
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self._update(self._average, self._live, None)

    def swap(self) -> None:
        """Exchange average and weights without a copy; twice is nothing."""
        for parameter, average in zip(self._live, self._average, strict=True):
            parameter.data, average.data = average.data, parameter.data

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by parameter name."""
        return dict(zip(self._names, self._average, strict=True))


class Keeper:
    """Puts a fit's checkpoints and best weights into one folder, and takes them up again."""

    def __init__(self, folder: Path, identity: Mapping[str, object]) -> None:
        self.folder = folder
        self._identity = dict(identity)
        self._generation = 0
        self._named: list[str | None] = [None, None]
        """Best files that the last two generations name; fewer when a generation on disk is not known."""

    def save(self, state: State, tensors: Mapping[str, Tensor], before: Mapping[str, str]) -> None:
        """Write the next generation; then remove best weights that no generation names."""
        facts = {"identity": self._identity, "before": dict(before), "fit": state.to_json(), "step": state.step}
        checkpoint.save(self.folder, tensors, facts, generation=self._generation + 1)
        self._generation += 1
        self._named = [*self._named[-1:], state.best.file if state.best else None]
        self._remove_unnamed(state.best)

    def resume(self) -> tuple[State, dict[str, Tensor], dict[str, str]] | None:
        """Return the newest whole generation, or None.

        Raises:
            CheckpointError: None is whole, or they are of another fit.
        """
        found = checkpoint.load_latest(self.folder)
        if found is None:
            return None
        there = found.state["identity"]
        assert isinstance(there, dict)
        differing = [key for key in self._identity if there.get(key) != self._identity[key]]
        if differing:
            shown = [f"{key}: there {there.get(key)}, here {self._identity[key]}" for key in differing]
            raise CheckpointError(f"the checkpoint in {self.folder} is of another fit ({listed(shown, 3)})", _ANOTHER)
        self._generation = found.generation
        state = State.from_json(found.state["fit"])  # type: ignore[arg-type]
        self._named = [state.best.file if state.best else None]
        return state, found.tensors, found.state["before"]  # type: ignore[return-value]

    def save_best(self, tensors: Mapping[str, Tensor], *, metric: float | None, epoch: int) -> Best:
        """Write weights under a name of their own, so that an older checkpoint still finds the weights it names."""
        file = f"best-{epoch:05d}.safetensors"
        written = checkpoint.save_tensors(self.folder / file, tensors)
        best = Best(metric, epoch, file, written.sha256)
        self._remove_unnamed(best)
        return best

    def settle(self, best: Best) -> Path:
        """Give the best weights their final name, once the last checkpoint says that the fit is finished."""
        final = self.folder / "best.safetensors"
        if (self.folder / best.file).exists():
            durable.rename(self.folder / best.file, final)
        for left in self.folder.glob("best-*.safetensors"):
            durable.remove(left)
        return final

    def load_best(self, best: Best) -> dict[str, Tensor]:
        """Read the best weights back.

        Raises:
            CheckpointError: They are damaged.
        """
        path = self.folder / best.file
        return checkpoint.load_tensors(path if path.exists() else self.folder / "best.safetensors", sha256=best.sha256)

    def _remove_unnamed(self, best: Best | None) -> None:
        if len(self._named) < checkpoint.KEPT:
            return
        named = {*self._named, best.file if best else None}
        for path in self.folder.glob("best-*.safetensors"):
            if path.name not in named:
                durable.remove(path)


def pack(learned: Learned, optimizer: torch.optim.Optimizer, ema: Ema | None, loss_sum: Tensor) -> dict[str, Tensor]:
    """Collect every tensor that the next step depends on, under one name each."""
    tensors = {f"model/{name}": tensor for name, tensor in learned.tensors().items()}
    for name, parameter in learned.parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optim/{name}/{key}"] = value
    if ema is not None:
        tensors |= {f"ema/{name}": tensor for name, tensor in ema.tensors().items()}
    return tensors | {"loss_sum": loss_sum}


def unpack(
    tensors: Mapping[str, Tensor],
    learned: Learned,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    loss_sum: Tensor,
) -> None:
    """Put every tensor back to where `pack` found it.

    Raises:
        CheckpointError: Something is missing, unexpected or of another shape.
    """
    places = {f"model/{name}": tensor for name, tensor in learned.tensors().items()} | {"loss_sum": loss_sum}
    if ema is not None:
        places |= {f"ema/{name}": tensor for name, tensor in ema.tensors().items()}
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("optim/")}
    checkpoint.load_into(places, own).require_complete("the checkpoint")
    _unpack_optimizer(tensors, learned, optimizer)


def _unpack_optimizer(tensors: Mapping[str, Tensor], learned: Learned, optimizer: torch.optim.Optimizer) -> None:
    """Rebuild torch's own state dict, whose loader knows which entries live on which device."""
    numbers = {id(p): i for i, p in enumerate(p for entry in optimizer.param_groups for p in entry["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        if full.startswith("optim/"):
            name, _, key = full.removeprefix("optim/").rpartition("/")
            parameter = learned.parameters[name]
            # Files hold rows in order; a step over tensors of unequal memory layouts rounds differently.
            alike = (
                torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
                if tensor.shape == parameter.shape
                else tensor
            )
            state.setdefault(numbers[id(parameter)], {})[key] = alike.detach()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def frozen_alike(before: Mapping[str, str], now: Mapping[str, str], keeper: Keeper) -> None:
    """Refuse to go on with other frozen weights than those that the checkpoint was made with.

    Raises:
        CheckpointError: A frozen tensor has other bits.
    """
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise CheckpointError(
            f"{len(changed)} frozen tensors are not those that the checkpoint in {keeper.folder} was made with "
            f"({listed(changed, 3)})",
            _ANOTHER,
        )


def improved(state: State, metric: float | None, *, higher_is_better: bool) -> bool:
    """Tell whether a validation beats the best one; a tie keeps the earlier, and no metric lets the last one win."""
    if metric is None or state.best is None or state.best.metric is None:
        return True
    if math.isnan(metric):
        return False
    if math.isnan(state.best.metric):
        return True
    return metric > state.best.metric if higher_is_better else metric < state.best.metric
