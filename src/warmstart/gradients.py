"""Which layer groups want to move: gradients relative to weights, as surgical fine-tuning measures them.

Lee et al., 2022, arXiv 2210.11466, section 4 (Auto-RGN): the ratio of gradient norm to parameter norm of a block says
how much tuning it would change; blocks near the output stand out when the classes are new, blocks near the input when
the pictures look different. Where we differ: gradients are those of the mean loss over a few batches, at the probe's
solution and before anything moves, and a layer group is the block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from warmstart.data import loading
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.tune import Ready

BATCHES = 4


def relative(session: Session, data: Prepared, ready: Ready) -> dict[str, float]:
    """Return ‖gradient‖ / ‖weights‖ of each layer group with parameters, input to output.

    Args:
        session: The command at work.
        data: A few batches of train are used.
        ready: A model whose groups are all thawed, with its head at the probe's solution.
    """
    model, size = ready.model.eval(), session.recipe.batch_size
    groups = [group for group in model.backbone.layer_groups() if group.parameters]
    parameters = [p for group in groups for p in group.parameters if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    rows = np.sort(data.splits.train[: BATCHES * size])
    picks = [rows[at : at + size] for at in range(0, len(rows), size)]
    stream = loading.batches(data.dataset, picks, ready.place.plain(), seed=0, epoch=0, workers=session.workers)
    for pixels, pick in stream:
        targets = torch.from_numpy(data.targets[pick]).to(session.device)
        loss = data.task.loss(model(pixels.to(session.device), 0), targets)
        for at, gradient in enumerate(torch.autograd.grad(loss, parameters, allow_unused=True)):
            if gradient is not None:
                total[at] += gradient
    by_parameter = {id(p): gradient / len(picks) for p, gradient in zip(parameters, total, strict=True)}
    return {group.name: _ratio(group.parameters, by_parameter) for group in groups}


def _ratio(parameters: Sequence[torch.nn.Parameter], gradients: Mapping[int, torch.Tensor]) -> float:
    learning = [p for p in parameters if id(p) in gradients]
    pull = sum(float(gradients[id(p)].square().sum()) for p in learning)
    size = sum(float(p.detach().square().sum()) for p in learning)
    return math.sqrt(pull / size) if size > 0 else 0.0
