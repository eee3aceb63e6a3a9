"""A backbone that is a chain: named groups of steps, each one tensor in and one tensor out, so every boundary is a cut.

`families` says as data which network is which chain. A network that no chain fits exactly becomes one indivisible
chain: its layer groups still freeze and learn separately, and the cuts on offer are none and all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.models import Features, InputSpec, LayerGroup
from warmstart.models.families import Chain

TAPS = ("=grid", "=grid_nhwc", "=tokens")


@dataclass(frozen=True)
class Group:
    """One layer group of a chain: the steps that compute it and what it owns."""

    name: str
    steps: tuple[str, ...]
    owned: tuple[str, ...] = ()
    """Paths of parameters and modules that belong to the group without being a step."""


class ChainBackbone(nn.Module):
    """A backbone made of a network and the chain that it is; see the contract in `warmstart.models`.

    Args:
        network: Without its classifier: its own forward would return pooled features.
        groups: Input to output; together they own every parameter once.
        spec: How the weights want their pictures.
        dim: Length of the pooled features.
        classifier: The linear layer that was removed; kept aside, unregistered, for tasks that start from it.
        divisible: False when only the whole chain may be computed.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[Group],
        *,
        spec: InputSpec,
        dim: int,
        classifier: nn.Linear | None = None,
        divisible: bool = True,
    ) -> None:
        super().__init__()
        self.network = network
        self.groups = tuple(groups)
        self.spec = spec
        self.dim = dim
        self.divisible = divisible
        # In a tuple, so that its parameters are not the backbone's.
        self._classifier = (classifier,)
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    @property
    def classifier(self) -> nn.Linear | None:
        """The classifier that came with the weights, a linear layer on `pooled` that stays on the CPU; or None."""
        return self._classifier[0]

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute pooled features from pixels."""
        return self.features(inputs).pooled

    def features(self, inputs: Tensor) -> Features:
        """Compute features from pixels.

        Shape:
            inputs: uint8 or float (B, 3, H, W), RGB, 0 to 255.
        """
        return self.suffix(inputs, 0)

    def layer_groups(self) -> Sequence[LayerGroup]:
        """Return the layer groups as the network is now: a module that a strategy replaced is found in its place."""
        return tuple(self._layer_group(group) for group in self.groups)

    def cuts(self) -> Sequence[int]:
        """Return the cuts on offer: every group boundary, or none and all for an indivisible network."""
        num_groups = len(self.groups)
        return tuple(range(num_groups + 1)) if self.divisible else (0, num_groups)

    def prefix(self, inputs: Tensor, cut: int) -> Tensor:
        """Compute groups 0 … cut-1 from pixels; at cut 0 the pixels come back, at the last cut `pooled`."""
        self._check_cut(cut)
        return self._run(self._normalise(inputs), 0, cut).pooled if cut else inputs

    def suffix(self, hidden: Tensor, cut: int) -> Features:
        """Compute groups cut … last from what `prefix` returned."""
        self._check_cut(cut)
        return self._run(hidden if cut else self._normalise(hidden), cut, len(self.groups))

    def _run(self, value: Tensor, first: int, last: int) -> Features:
        """Compute a range of groups; the running value is `pooled`."""
        taps: dict[str, Tensor] = {}
        for group in self.groups[first:last]:
            for step in group.steps:
                if step in TAPS:
                    taps[step] = value
                elif step.startswith("@"):
                    value = FUNCTIONS[step[1:]](self.network, value)
                else:
                    value = self.network.get_submodule(step)(value)
        nhwc = taps.get("=grid_nhwc")
        grid = taps.get("=grid") if nhwc is None else nhwc.permute(0, 3, 1, 2)  # (B, H, W, D') → (B, D', H, W)
        return Features(pooled=value, grid=grid, tokens=taps.get("=tokens"))

    def _normalise(self, pixels: Tensor) -> Tensor:
        """Turn pixels into what the network was trained on, in the operations and order of torchvision's transforms."""
        values = pixels.to(self.mean.dtype)
        if self.spec.channels == "BGR":
            values = values.flip(1)
        if self.spec.scale != 1.0:
            values = values / self.spec.scale
        return (values - self.mean) / self.std

    def _layer_group(self, group: Group) -> LayerGroup:
        modules: list[nn.Module] = []
        parameters: dict[int, nn.Parameter] = {}
        for path in dict.fromkeys((*(step for step in group.steps if step[0] not in "@="), *group.owned)):
            found = _find(self.network, path)
            if isinstance(found, nn.Module):
                modules.append(found)
                parameters |= {id(parameter): parameter for parameter in found.parameters()}
            elif isinstance(found, nn.Parameter):
                parameters[id(found)] = found
        return LayerGroup(group.name, tuple(modules), tuple(parameters.values()))

    def _check_cut(self, cut: int) -> None:
        if cut not in self.cuts():
            raise ValueError(f"cut {cut} is not on offer, only {list(self.cuts())}")


def chain_groups(network: nn.Module, chain: Chain) -> tuple[Group, ...] | None:
    """Lay a chain over a network.

    Returns:
        The groups, or None when the network has other parts than the chain says.
    """
    try:
        groups = _parse(network, chain)
    except AttributeError:
        return None
    paths = [path for group in groups for path in (*group.steps, *group.owned) if path[0] not in "@="]
    covered = [name for path in paths for name in _parameter_names(network, path)]
    if sorted(covered) != sorted(name for name, _ in network.named_parameters()):
        return None
    groups[-1] = _with_leftovers(network, groups[-1], paths)
    if not any(True for path in (*groups[-1].steps, *groups[-1].owned) for _ in _parameter_names(network, path)):
        last, before = groups.pop(), groups.pop()
        groups.append(Group(before.name, (*before.steps, *last.steps), (*before.owned, *last.owned)))
    return tuple(groups)


def whole_groups(network: nn.Module, parts: Sequence[tuple[str, Sequence[str]]]) -> tuple[Group, ...]:
    """Make an indivisible chain: layer groups by parameter names, computed in one step by the last one.

    Args:
        network: Its forward returns pooled features.
        parts: Name and parameter names of each group, input to output, every parameter once.
    """
    owned = _owned_modules(network, [set(names) for _, names in parts])
    groups = [Group(name, (), paths) for (name, _), paths in zip(parts, owned, strict=True)]
    last = groups[-1]
    return (*groups[:-1], Group(last.name, ("@network",), last.owned))


def _owned_modules(network: nn.Module, parts: Sequence[set[str]]) -> list[tuple[str, ...]]:
    """Find for each part the topmost modules that lie wholly in it, then the parameters that no such module holds."""
    # By identity, because a shared parameter has one name here and another there.
    own = dict(network.named_parameters())
    part_of = {id(own[name]): index for index, names in enumerate(parts) for name in names}
    owned: list[list[str]] = [[] for _ in parts]

    def visit(module: nn.Module, path: str, around: int) -> None:
        below = {part_of[id(parameter)] for parameter in module.parameters()}
        if path and len(below) <= 1:
            owned[next(iter(below), around)].append(path.removesuffix("."))
            return
        for name, parameter in module.named_parameters(recurse=False):
            owned[part_of[id(parameter)]].append(f"{path}{name}")
        for name, child in module.named_children():
            visit(child, f"{path}{name}.", max(below))

    visit(network, "", len(parts) - 1)
    return [tuple(paths) for paths in owned]


def _parse(network: nn.Module, chain: Chain) -> list[Group]:
    groups: list[Group] = []
    for name, text in chain.items():
        if name.endswith("*"):
            groups += _starred(network, name[:-1], text)
            continue
        steps, owned = _steps(network, text)
        if name == "+":
            last = groups.pop()
            groups.append(Group(last.name, (*last.steps, *steps), (*last.owned, *owned)))
        else:
            groups.append(Group(name, steps, owned))
    return groups


def _steps(network: nn.Module, text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split a group's text into steps and owned paths; slices become one step per child."""
    steps: list[str] = []
    owned: list[str] = []
    for word in text.split():
        if word.startswith("+"):
            if _find(network, word[1:]) is not None:
                owned.append(word[1:])
        elif word[0] in "@=":
            steps.append(word)
        else:
            steps += _children(network, word) if ":" in word else [word]
    for step in steps:
        if step[0] not in "@=":
            network.get_submodule(step)
    return tuple(steps), tuple(owned)


def _starred(network: nn.Module, name: str, text: str) -> list[Group]:
    """Split the children of a module: one per group, or cut after every child that matches the pattern."""
    path, _, pattern = text.partition("|")
    groups: list[list[str]] = [[]]
    for child in _children(network, path):
        groups[-1].append(child)
        last = child.rpartition(".")[2]
        kind = type(network.get_submodule(child)).__name__
        wanted = pattern.split(",") if pattern else [".*"]
        if any(re.fullmatch(p, text) for p in "|".join(wanted).split("|") for text in (last, kind)):
            groups.append([])
    return [Group(f"{name}{index}", tuple(steps)) for index, steps in enumerate(groups) if steps]


def _children(network: nn.Module, word: str) -> list[str]:
    """List the paths of a module's children: all of `features`, or those of `features.3:7`."""
    if ":" not in word:
        return [f"{word}.{name}" for name, _ in network.get_submodule(word).named_children()]
    path, _, span = word.rpartition(".")
    first, last = span.split(":")
    return _children(network, path)[int(first) : int(last)]


def _find(network: nn.Module, path: str) -> object | None:
    """Return the parameter or module at a path, or None."""
    found: object = network
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _parameter_names(network: nn.Module, path: str) -> Iterator[str]:
    found = _find(network, path)
    if isinstance(found, nn.Parameter):
        yield path
    elif isinstance(found, nn.Module):
        yield from (f"{path}.{name}" for name, _ in found.named_parameters())


def _with_leftovers(network: nn.Module, last: Group, paths: Sequence[str]) -> Group:
    """Give modules that no step names and that have no parameters (pools, dropout) to the last group."""
    named = set(paths)
    left = []
    for path, module in network.named_modules():
        parents = {path[:end] for end in range(len(path) + 1) if path[end : end + 1] in ("", ".")}
        free = path and not named & parents and not any(n.startswith(f"{path}.") for n in named)
        if free and not any(True for _ in module.parameters()):
            left.append(path)
            named.add(path)
    return Group(last.name, last.steps, (*last.owned, *left))


def _pre_logits(network: nn.Module, value: Tensor) -> Tensor:
    """Do what timm's head does before its classifier: pooling, norms, hidden layers."""
    return network.forward_head(value, pre_logits=True)  # type: ignore[operator]


def _pos_embed(network: nn.Module, value: Tensor) -> Tensor:
    return network._pos_embed(value)  # type: ignore[operator]


def _patch_tokens(network: nn.Module, value: Tensor) -> Tensor:
    """Do what torchvision's vision transformer does before its blocks."""
    tokens: Tensor = network._process_input(value)  # type: ignore[operator]
    first: Tensor = network.class_token.expand(len(tokens), -1, -1)  # type: ignore[operator]
    return torch.cat([first, tokens], dim=1) + network.encoder.pos_embedding  # type: ignore[operator, union-attr]


FUNCTIONS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "average_pool": lambda _, x: functional.adaptive_avg_pool2d(x, (1, 1)).flatten(1),
    "first_token": lambda _, x: x[:, 0],
    "flatten": lambda _, x: x.flatten(1),
    "mean": lambda _, x: x.mean([2, 3]),
    "network": lambda network, x: network(x),
    "patch_tokens": _patch_tokens,
    "pos_embed": _pos_embed,
    "pre_logits": _pre_logits,
    "relu": lambda _, x: functional.relu(x),
}
