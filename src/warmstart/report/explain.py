"""Where a model looked: heat maps over its inputs, from the gradient of one output.

Convolutional backbones (`Features.grid`): Grad-CAM (Selvaraju et al., arXiv 1610.02391, equations 1 and 2): channels of
the last grid weighted by the mean gradient of the class score, summed, negative evidence cut off.

Transformers (`Features.tokens`): gradient × activation of each patch token (HiResCAM, Draelos and Carin, arXiv
2011.08891), taken at the deepest cut at which patch tokens still reach the output. After the last block a model that
reads its class token ignores all others, so the gradient there would be zero.

We differ from both in the scale: every map is divided by its own maximum, so maps cannot be compared with each other.
No hooks are set, no gradient is left behind, and the model's modes are put back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.models import Backbone
from warmstart.models.model import Model

MICRO_BATCH = 8
MOST_PREFIX_TOKENS = 8
"""Class and register tokens stand before the patch tokens; no network in use has more."""
GRAD_CAM = "Method: Grad-CAM (Selvaraju et al., arXiv 1610.02391) on the last feature grid."
TOKENS = "Method: gradient × activation of the patch tokens (HiResCAM, Draelos and Carin, arXiv 2011.08891)."


def explain(model: Model, inputs: Tensor, classes: Tensor) -> Tensor | None:
    """Compute how much each place of each picture spoke for one output.

    Args:
        model: Backbone and head; it comes back as it was.
        inputs: The pictures.
        classes: The output to explain for each picture: its class, or its target column.

    Returns:
        The maps, or None when the backbone has neither a grid nor tokens that can be laid out as one. A map is all
        zero when nothing in the picture spoke for the output.

    Shape:
        inputs: uint8 (B, 3, H, W); classes: int64 (B,). Returns float32 (B, H, W) in [0, 1], on the CPU.
    """
    maps = []
    with _eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        for start in range(0, len(inputs), MICRO_BATCH):
            part = slice(start, start + MICRO_BATCH)
            found = _relevance(model, inputs[part], classes[part])
            if found is None:
                return None
            maps.append(_normalised(found, (inputs.shape[2], inputs.shape[3])))
    return torch.cat(maps) if maps else torch.zeros(0, *inputs.shape[2:])


def method(model: Model, inputs: Tensor) -> str:
    """Say in a sentence how `explain` explains this model; empty when it cannot.

    Shape:
        inputs: uint8 (B, 3, H, W); one picture is enough.
    """
    with _eval_mode(model), torch.inference_mode():
        features = model.backbone.features(inputs[:1])
    return GRAD_CAM if features.grid is not None else TOKENS if features.tokens is not None else ""


def _relevance(model: Model, inputs: Tensor, classes: Tensor) -> Tensor | None:
    """Return unscaled relevance, (B, h, w)."""
    device = next(model.parameters()).device
    classes = classes.to(device)
    # A leaf of floats gives the features a graph even when every parameter is frozen.
    pixels = inputs.detach().clone().to(device, torch.float32).requires_grad_()
    features = model.backbone.features(pixels)
    if features.grid is not None:
        return _grad_cam(features.grid, _score(model.head(features.pooled), classes))
    if features.tokens is not None:
        return _token_relevance(model, pixels.detach(), classes, features.tokens, features.pooled)
    return None


def _score(outputs: Tensor, classes: Tensor) -> Tensor:
    """Sum the explained outputs; samples do not mix in eval mode, so one backward pass serves them all."""
    return outputs.gather(1, classes[:, None]).sum()


def _grad_cam(grid: Tensor, score: Tensor) -> Tensor | None:
    gradient = _gradient(score, grid)
    if gradient is None:
        return None
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (B, D, 1, 1)
    return (weights * grid).sum(dim=1).detach()  # (B, h, w)


def _token_relevance(model: Model, pixels: Tensor, classes: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor | None:
    """Walk from the output towards the input until patch tokens matter."""
    size = (pixels.shape[2], pixels.shape[3])
    for hidden, reached in chain([(tokens, pooled)], _hidden_tokens(model.backbone, pixels)):
        found = _patches(hidden, _gradient(_score(model.head(reached), classes), hidden), size)
        if found is not None:
            return found
    return None


def _hidden_tokens(backbone: Backbone, pixels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield token activations and the pooled features that follow from them, deepest cut first."""
    for cut in reversed([cut for cut in backbone.cuts() if cut > 0][:-1]):
        with torch.no_grad():
            hidden = backbone.prefix(pixels, cut)
        if hidden.ndim == 3:
            hidden = hidden.detach().requires_grad_()  # (B, N, D)
            yield hidden, backbone.suffix(hidden, cut).pooled


def _patches(hidden: Tensor, gradient: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """Lay the relevance of the patch tokens out as a grid; None when they have none, or do not form one."""
    if gradient is None:
        return None
    layout = patch_layout(hidden.shape[1], size)
    if layout is None:
        return None
    relevance = (gradient * hidden).sum(dim=2).detach()[:, layout[0] :]  # (B, h·w)
    return relevance.view(-1, *layout[1:]) if bool((gradient[:, layout[0] :] != 0).any()) else None


def patch_layout(num_tokens: int, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """Find how many tokens stand before the patches, and how the patches lie in the picture.

    Args:
        num_tokens: All tokens of a picture.
        size: Height and width of the picture.

    Returns:
        (prefix tokens, rows, columns), with the fewest prefix tokens that fit; None when none does.

    Example:
        >>> patch_layout(197, (224, 224))
        (1, 14, 14)
    """
    for prefix in range(min(MOST_PREFIX_TOKENS, num_tokens - 1) + 1):
        patches = num_tokens - prefix
        rows = math.isqrt(patches * size[0] // size[1])
        if rows and patches % rows == 0 and rows * size[1] == (patches // rows) * size[0]:
            return prefix, rows, patches // rows
    return None


def _gradient(score: Tensor, at: Tensor) -> Tensor | None:
    """Differentiate without touching any `.grad`; None when the score does not depend on `at`."""
    if not (score.requires_grad and at.requires_grad):
        return None
    return torch.autograd.grad(score, at, allow_unused=True)[0]


def _normalised(relevance: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut off negative evidence, enlarge to the picture, and scale each map to its maximum."""
    positive = relevance.float().clamp_min(0)[:, None]  # (B, 1, h, w)
    large = functional.interpolate(positive, size=size, mode="bilinear", align_corners=False)[:, 0]  # (B, H, W)
    peak = large.amax(dim=(1, 2), keepdim=True)
    return (large / peak.clamp_min(torch.finfo(torch.float32).tiny)).nan_to_num(0.0).cpu()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode inside the block, and each back into its own mode after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
