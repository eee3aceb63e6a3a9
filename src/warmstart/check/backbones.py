"""What every backbone must keep of the contract in `warmstart.models`, whatever network is inside."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from warmstart.models import Backbone


def check_backbone(backbone: Backbone, pixels: Tensor) -> None:
    """Raise AssertionError, with what was broken, unless a backbone keeps its contract on these pixels.

    Args:
        backbone: In eval mode.
        pixels: uint8 (B, 3, H, W), at least two pictures.
    """
    assert isinstance(backbone, nn.Module) and isinstance(backbone, Backbone)
    with torch.inference_mode():
        check_features(backbone, pixels)
        check_cuts(backbone, pixels)
    check_groups(backbone)
    check_modes(backbone)
    check_order(backbone, pixels)


def check_features(backbone: Backbone, pixels: Tensor) -> None:
    """Features are finite, repeatable, as long as promised, and the same for pixels as floats."""
    first, again = backbone.features(pixels), backbone.features(pixels)
    assert first.pooled.shape == (len(pixels), backbone.dim), f"pooled is {tuple(first.pooled.shape)}"
    assert first.pooled.isfinite().all(), "features are not finite"
    assert torch.equal(first.pooled, again.pooled), "features differ from call to call in eval mode"
    assert torch.equal(first.pooled, backbone.features(pixels.float()).pooled), "uint8 and float pixels differ"
    assert not torch.equal(first.pooled[0], first.pooled[1]), "different pictures have equal features"
    if first.grid is not None:
        assert first.grid.ndim == 4 and len(first.grid) == len(pixels), f"grid is {tuple(first.grid.shape)}"
    if first.tokens is not None:
        assert first.tokens.ndim == 3 and len(first.tokens) == len(pixels), f"tokens are {tuple(first.tokens.shape)}"


def check_cuts(backbone: Backbone, pixels: Tensor) -> None:
    """`suffix(prefix(x, k), k)` is `features(x)` to the bit at every cut, and leaves the hidden values as they were."""
    cuts, num_groups = list(backbone.cuts()), len(backbone.layer_groups())
    assert cuts == sorted(set(cuts)) and cuts[0] == 0 and cuts[-1] == num_groups, f"cuts {cuts} of {num_groups} groups"
    whole = backbone.features(pixels)
    for cut in cuts:
        hidden = backbone.prefix(pixels, cut)
        kept = hidden.clone()
        features = backbone.suffix(hidden, cut)
        assert torch.equal(features.pooled, whole.pooled), f"suffix(prefix(x, {cut}), {cut}) is not features(x)"
        assert torch.equal(hidden, kept), f"suffix at cut {cut} overwrites its input"
    assert torch.equal(backbone.prefix(pixels, 0), pixels), "prefix at cut 0 is not the pixels"
    assert torch.equal(backbone.prefix(pixels, num_groups), whole.pooled), "prefix at the last cut is not pooled"


def check_groups(backbone: Backbone) -> None:
    """Layer groups hold every parameter once, under names of their own."""
    groups = backbone.layer_groups()
    assert isinstance(backbone, nn.Module)
    names = [group.name for group in groups]
    assert len(set(names)) == len(names), f"groups share names: {names}"
    assert all(group.parameters for group in groups), "a group has no parameters"
    held = [id(parameter) for group in groups for parameter in group.parameters]
    assert len(set(held)) == len(held), "a parameter is in two groups"
    assert set(held) == {id(parameter) for parameter in backbone.parameters()}, "a parameter is in no group"
    for group in groups:
        inside = {id(parameter) for module in group.modules for parameter in module.parameters()}
        assert inside <= {id(parameter) for parameter in group.parameters}, f"{group.name} does not hold its modules"


def check_modes(backbone: Backbone) -> None:
    """The modules of the groups govern the train/eval mode of every module that computes, each one once."""
    assert isinstance(backbone, nn.Module)
    governed = [id(m) for group in backbone.layer_groups() for top in group.modules for m in set(top.modules())]
    leaves = {id(m): name for name, m in backbone.named_modules() if not [*m.children()]}
    ungoverned = [name for key, name in leaves.items() if key not in set(governed)]
    assert not ungoverned, f"in no group: {ungoverned}"
    per_group = [{id(m) for top in group.modules for m in top.modules()} for group in backbone.layer_groups()]
    for one, other in itertools.combinations(per_group, 2):
        assert not (one & other) & set(leaves), "a module is in two groups"


def check_order(backbone: Backbone, pixels: Tensor) -> None:
    """Groups are ordered input to output: through the suffix at k, groups from k on get gradients and no other does."""
    assert isinstance(backbone, nn.Module)
    groups = backbone.layer_groups()
    # The smallest parameters of a group stand for it: gradients of wide layers cost time and say no more.
    chosen = [sorted(group.parameters, key=torch.Tensor.numel)[:8] for group in groups]
    for cut in backbone.cuts()[:-1]:
        with torch.no_grad():
            hidden = backbone.prefix(pixels, cut)
        output = backbone.suffix(hidden, cut).pooled.square().sum()
        found = iter(torch.autograd.grad(output, [p for few in chosen for p in few], allow_unused=True))
        for index, (group, few) in enumerate(zip(groups, chosen, strict=True)):
            learns = any(gradient is not None for gradient in list(itertools.islice(found, len(few))))
            assert learns == (index >= cut), f"suffix at cut {cut}: group {group.name} gradient {learns}"
