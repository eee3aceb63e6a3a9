"""Where a model looked: heat maps over its inputs, from the gradient of one output.

Convolutional backbones (`Features.grid`): Grad-CAM (Selvaraju et al., arXiv 1610.02391, equations 1 and 2): channels of
the last grid weighted by the mean gradient of the score, summed, negative evidence cut off.

Transformers (`Features.tokens`): integrated gradients (Sundararajan et al., arXiv 1703.01365, equation 1) of the score
along the way from the picture's mean patch token to each patch token, in four steps, at a cut at two fifths of the
depth. Tokens after the last block will not do: a model that reads its class token ignores all others there. One
gradient alone will not do either: attention that has found its evidence is saturated and flat.

We differ from both papers in the score: for classes that exclude each other it is the log-odds of the class, because a
softmax does not change when all outputs grow together, and training leaves that sum to chance. Every map is divided by
its own maximum, so maps cannot be compared with each other. No hooks are set, no gradient is left behind, and the
model's modes are put back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.models import Features
from warmstart.models.model import Model
from warmstart.tasks import Link

Layout: TypeAlias = tuple[int, int, int]
"""Tokens before the patches, rows of patches, columns of patches."""
MICRO_BATCH = 8
MOST_PREFIX_TOKENS = 8
"""Class and register tokens stand before the patch tokens; no network in use has more."""
DEPTH = 0.4
"""Where to cut a transformer, as a fraction of its depth: early tokens lack meaning, late ones lost their place."""
STEPS = 4
TINY = torch.finfo(torch.float32).tiny
GRAD_CAM = "Method: Grad-CAM (Selvaraju et al., arXiv 1610.02391) on the last feature grid."
TOKENS = "Method: integrated gradients (Sundararajan et al., arXiv 1703.01365) of the patch tokens."


def explain(model: Model, inputs: Tensor, classes: Tensor, *, link: Link = "softmax") -> Tensor | None:
    """Compute how much each place of each picture spoke for one output.

    Args:
        model: Backbone and head; it comes back as it was.
        inputs: The pictures.
        classes: The output to explain for each picture: its class, or its target column.
        link: `Task.link`: whether outputs compete (softmax) or stand for themselves (sigmoid, identity).

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
            found = _relevance(Scorer(model, classes[part], link), inputs[part])
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


@dataclass(frozen=True)
class Scorer:
    """Turns pooled features into the sum of the explained scores.

    Samples do not mix in eval mode, so one backward pass from the sum serves them all.
    """

    model: Model
    classes: Tensor
    link: Link

    def __call__(self, pooled: Tensor) -> Tensor:
        """Return a scalar."""
        outputs: Tensor = self.model.head(pooled)  # (B, C)
        index = self.classes.clone().to(outputs.device)[:, None]  # a clone, since inference tensors have no gradient
        score = outputs.gather(1, index)  # (B, 1)
        if self.link == "softmax" and outputs.shape[1] > 1:
            score = score - outputs.scatter(1, index, -torch.inf).logsumexp(dim=1, keepdim=True)
        return score.sum()


def _relevance(scorer: Scorer, inputs: Tensor) -> Tensor | None:
    """Return unscaled relevance, (B, h, w)."""
    backbone = scorer.model.backbone
    device = next(scorer.model.parameters()).device
    # A leaf of floats gives the features a graph even when every parameter is frozen.
    pixels = inputs.detach().clone().to(device, torch.float32).requires_grad_()
    features = backbone.features(pixels)
    if features.grid is not None:
        return _grad_cam(features.grid, scorer(features.pooled))
    if features.tokens is not None:
        return _token_relevance(scorer, features, pixels.detach())
    return None


def _grad_cam(grid: Tensor, score: Tensor) -> Tensor | None:
    gradient = _gradient(score, grid)
    if gradient is None:
        return None
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (B, D, 1, 1)
    return (weights * grid).sum(dim=1).detach()  # (B, h, w)


def _token_relevance(scorer: Scorer, features: Features, pixels: Tensor) -> Tensor | None:
    """Explain at a middle cut; where there is none, by the tokens that the backbone hands out."""
    backbone, size = scorer.model.backbone, (pixels.shape[2], pixels.shape[3])
    inner = backbone.cuts()[1:-1]
    cut = inner[round(DEPTH * (len(inner) - 1))] if inner else 0
    with torch.no_grad():
        hidden = backbone.prefix(pixels, cut)
    if cut and hidden.ndim == 3:
        return _integrated(scorer, hidden, cut, patch_layout(hidden.shape[1], size))
    tokens = features.tokens
    assert tokens is not None
    layout = patch_layout(tokens.shape[1], size)
    base = _baseline(tokens, layout[0] if layout else 0)
    return _patch_relevance(tokens, base, _gradient(scorer(features.pooled), tokens), layout)


def _integrated(scorer: Scorer, hidden: Tensor, cut: int, layout: Layout | None) -> Tensor | None:
    """Average the gradient between baseline and tokens (midpoint rule), (B, N, D) → (B, h, w)."""
    if layout is None:
        return None
    base = _baseline(hidden, layout[0])
    total = torch.zeros_like(hidden)
    for step in range(STEPS):
        between = (base + (step + 0.5) / STEPS * (hidden - base)).requires_grad_()
        gradient = _gradient(scorer(scorer.model.backbone.suffix(between, cut).pooled), between)
        if gradient is None:
            return None
        total += gradient / STEPS
    return _patch_relevance(hidden, base, total, layout)


def _baseline(hidden: Tensor, prefix: int = 0) -> Tensor:
    """Replace every patch token by the mean one; class and register tokens stay."""
    tokens = hidden.detach()
    mean = tokens[:, prefix:].mean(dim=1, keepdim=True).expand_as(tokens[:, prefix:])
    return torch.cat([tokens[:, :prefix], mean], dim=1)  # (B, N, D)


def _patch_relevance(hidden: Tensor, base: Tensor, gradient: Tensor | None, layout: Layout | None) -> Tensor | None:
    """Lay (token - baseline) · gradient out as a grid; None when patches have no layout or no influence."""
    if layout is None or gradient is None:
        return None
    prefix, rows, columns = layout
    if not bool((gradient[:, prefix:] != 0).any()):
        return None  # the output is read from the class token behind the last exchange between tokens
    relevance = (gradient * (hidden.detach() - base)).sum(dim=2)[:, prefix:]  # (B, h·w)
    return relevance.view(-1, rows, columns)


def patch_layout(num_tokens: int, size: tuple[int, int]) -> Layout | None:
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
    return (large / peak.clamp_min(TINY)).nan_to_num(0.0).cpu()


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
