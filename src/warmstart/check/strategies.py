"""What every strategy must keep of the contract in `warmstart.strategies`, on a small network of either family."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from warmstart import fit, runtime
from warmstart.data import Batch
from warmstart.errors import TrainingError
from warmstart.models import InputSpec
from warmstart.models.build import backbone, seeded
from warmstart.models.model import LinearHead, Model
from warmstart.optim import OptimConfig, ScheduleConfig
from warmstart.strategies import Group, Strategy, deepest_cut

if TYPE_CHECKING:
    from warmstart.fit import FitResult

NETWORKS = {"timm:test_resnet": 32, "timm:test_vit": 32}
"""A convolutional network with batch-norm and a transformer → input size; timm keeps both small for tests."""
NUM_PICTURES, NUM_CLASSES = 8, 4
EPOCHS = 150
LR = 1e-2
OVERFITTED = 0.5
"""Cross-entropy below which eight examples that are all right count as learned by heart; chance is ln 4 = 1.39."""


def check_strategy(strategy: Strategy) -> None:
    """Raise AssertionError unless a strategy keeps its contract on a convolutional network and on a transformer.

    Its groups are disjoint parts of the model and hold the head; a step moves what they declare and nothing else;
    nothing below the cut learns, so a cached prefix changes no result; the same start gives the same bits; its
    penalty is a finite scalar; eight examples can be learned by heart.

    Args:
        strategy: With any options.
    """
    assert isinstance(strategy, Strategy), f"{strategy!r} lacks a member of the Strategy protocol"
    name = type(strategy).__name__
    assert strategy.head_start in ("solved", "fresh", "own", "only"), f"{name}: head_start is {strategy.head_start!r}"
    for optimizer, lr in strategy.lrs.items():
        assert lr > 0, f"{name}: the learning rate for {optimizer} is {lr}, not positive"
    for arch in NETWORKS:
        where = f"{name} on {arch}"
        if not _check_groups(strategy, arch, where):
            continue
        try:
            _check_cut(strategy, arch, where)
            _check_penalty(strategy, arch, where)
            _check_moves(strategy, arch, where)
            _check_overfits(strategy, arch, where)
        except TrainingError as error:
            raise AssertionError(f"{where}: {error.problem}") from error


def _check_groups(strategy: Strategy, arch: str, where: str) -> Sequence[Group]:
    """Groups are disjoint, part of the model, hold the head, and are the same for the same model."""
    model = small_model(arch)
    groups = strategy.prepare(model)
    if not groups:
        assert strategy.head_start == "only", f"{where}: nothing learns, and head_start is {strategy.head_start!r}"
        return groups
    assert strategy.head_start != "only", f"{where}: head_start is 'only', and something learns"
    held = [id(parameter) for group in groups for parameter in group.parameters]
    assert len(set(held)) == len(held), f"{where}: a parameter is in two groups"
    foreign = set(held) - {id(parameter) for parameter in model.parameters()}
    assert not foreign, f"{where}: {len(foreign)} parameters in groups are not the model's"
    absent = [n for n, parameter in model.head.named_parameters() if id(parameter) not in set(held)]
    assert not absent, f"{where}: the head's {absent} are in no group"
    strange = {id(m) for g in groups for m in g.modules} - {id(m) for m in model.modules()}
    assert not strange, f"{where}: {len(strange)} modules in groups are not the model's"
    for group in groups:
        assert math.isfinite(group.lr_scale), f"{where}: lr_scale of group {group.name} is {group.lr_scale}"
        assert group.lr_scale > 0, f"{where}: lr_scale of group {group.name} is {group.lr_scale}, not positive"
        assert group.from_epoch >= 0, f"{where}: group {group.name} learns from epoch {group.from_epoch}"
    assert any(group.parameters and group.from_epoch == 0 for group in groups), f"{where}: nothing learns in epoch 0"
    other = small_model(arch)
    again = _described(other, strategy.prepare(other))
    assert _described(model, groups) == again, f"{where}: prepare returns other groups for an equal model"
    return groups


def _described(model: nn.Module, groups: Sequence[Group]) -> list[tuple[object, ...]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        (g.name, [names[id(p)] for p in g.parameters], len(g.modules), g.lr_scale, g.from_epoch, g.statistics)
        for g in groups
    ]


def _check_cut(strategy: Strategy, arch: str, where: str) -> None:
    """Nothing below the deepest cut learns, and feeding the loop from the cut or from pixels gives the same bits."""
    model = small_model(arch)
    groups = strategy.prepare(model)
    cut = deepest_cut(model, groups)
    learning = {id(p) for group in groups for p in group.parameters}
    moving = {id(m) for group in groups for top in group.modules for m in top.modules()}
    for layer in model.backbone.layer_groups()[:cut]:
        learns = bool(learning & {id(p) for p in layer.parameters})
        assert not learns, f"{where}: group {layer.name} is below cut {cut} and learns"
        moves = bool(moving & {id(m) for top in layer.modules for m in top.modules() if [*m.buffers(recurse=False)]})
        assert not moves, f"{where}: group {layer.name} is below cut {cut} and its statistics may move"
    if not cut:
        return
    from_pixels, from_cut = (_fitted(strategy, arch, epochs=2, cut=at)[1].state_dict() for at in (0, cut))
    differ = [name for name in from_cut if not torch.equal(from_cut[name], from_pixels[name])]
    assert not differ, f"{where}: {differ[:3]} differ between a fit from cut {cut} and one from pixels"


def _check_penalty(strategy: Strategy, arch: str, where: str) -> None:
    """The penalty is None, or a finite scalar of at least 0 whose gradients reach only what learns."""
    model = small_model(arch)
    groups = strategy.prepare(model)
    penalty = strategy.penalty(model)
    if penalty is None:
        return
    learning = {id(p) for group in groups for p in group.parameters}
    with torch.no_grad():
        for group in groups:
            for parameter in group.parameters:
                parameter.add_(0.01)
    value = penalty()
    assert value.ndim == 0, f"{where}: the penalty has shape {tuple(value.shape)}, not that of a scalar"
    assert value.isfinite() and value >= 0, f"{where}: the penalty is {value.item()}"
    assert value.requires_grad, f"{where}: the penalty of moved weights depends on nothing that learns"
    value.backward()  # type: ignore[no-untyped-call]
    reached = {id(p): n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    frozen = [n for key, n in reached.items() if key not in learning]
    assert not frozen, f"{where}: the penalty pulls at {frozen[:3]}, which are in no group"


def _check_moves(strategy: Strategy, arch: str, where: str) -> None:
    """The first step moves what is declared for epoch 0, all epochs move all of it; the rest keeps its bits."""
    last = max(group.from_epoch for group in strategy.prepare(small_model(arch)))
    for epochs in dict.fromkeys((1, last + 1)):
        result, model, before, groups = _fitted_from(strategy, arch, epochs=epochs)
        moved = {name for name, tensor in _tensors(model).items() if not torch.equal(before[name], tensor)}
        awake = [group for group in groups if group.from_epoch < epochs]
        named = {id(p): name for name, p in model.named_parameters()}
        declared = {named[id(p)] for group in awake for p in group.parameters}
        statistics = _statistics(model, awake)
        wrong = sorted(moved - declared - statistics)
        assert not wrong, f"{where}: {wrong[:3]} changed in {result.steps} steps and no group declares them"
        still = sorted(declared - moved)
        assert not still, f"{where}: {still[:3]} are declared to learn and did not move in {result.steps} steps"
        resting = sorted(statistics - moved)
        assert not resting, f"{where}: statistics {resting[:3]} are declared to adapt and did not"
    twin = _fitted(strategy, arch, epochs=epochs)[1]
    differ = [name for name, tensor in _tensors(twin).items() if not torch.equal(tensor, _tensors(model)[name])]
    assert not differ, f"{where}: two equal fits give other bits of {differ[:3]}"


def _check_overfits(strategy: Strategy, arch: str, where: str) -> None:
    """The real loop learns eight examples by heart, fed from the deepest cut as it would be."""
    cut = deepest_cut(model := small_model(arch), strategy.prepare(model))
    _, model = _fitted(strategy, arch, epochs=EPOCHS, cut=cut)
    pixels, targets = pictures(NETWORKS[arch])
    with torch.inference_mode():
        outputs = model(pixels)
    right, loss = int((outputs.argmax(1) == targets).sum()), float(nn.functional.cross_entropy(outputs, targets))
    learned = right == NUM_PICTURES and loss < OVERFITTED
    assert learned, f"{where}: after {EPOCHS} steps on 8 examples {right} are right and the loss is {loss:.3f}"


def small_model(arch: str) -> Model:
    """Build a small model with random weights, none of which stands at a special start such as 0.

    At the usual start residual branches multiply by zero, and what is inside them gets no gradient.
    """
    body = backbone(arch, InputSpec(image_size=NETWORKS[arch]), seed=0)
    generator = torch.Generator().manual_seed(0)
    with seeded(0):
        head = LinearHead(body.dim, NUM_CLASSES)
    model = Model(body, head)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.add_(torch.rand(parameter.shape, generator=generator) * 0.2)
        head.linear.weight.normal_(0.0, 0.01, generator=generator)
    return model.eval()


def pictures(size: int) -> tuple[Tensor, Tensor]:
    """Make eight pictures, each of other coarse patches, and their classes.

    Shape:
        uint8 (8, 3, size, size) and int64 (8,).
    """
    patches = torch.from_numpy(runtime.rng(0, "check").integers(0, 256, (NUM_PICTURES, 3, 4, 4)).astype("uint8"))
    pixels = patches.repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3)  # (8, 3, size, size)
    return pixels, torch.arange(NUM_PICTURES) % NUM_CLASSES


def _fitted(strategy: Strategy, arch: str, *, epochs: int, cut: int = 0) -> tuple[FitResult, Model]:
    result, model, _, _ = _fitted_from(strategy, arch, epochs=epochs, cut=cut)
    return result, model


def _fitted_from(
    strategy: Strategy, arch: str, *, epochs: int, cut: int = 0
) -> tuple[FitResult, Model, dict[str, Tensor], Sequence[Group]]:
    """Put a new model through the loop; return it with its tensors from before the first step, and its groups."""
    model = small_model(arch)
    pixels, targets = pictures(NETWORKS[arch])
    groups = strategy.prepare(model)
    with torch.no_grad():
        inputs = model.backbone.prefix(pixels, cut)
    before = {name: tensor.clone() for name, tensor in _tensors(model).items()}

    def batches(_: int, start: int) -> Iterator[Batch]:
        yield from [Batch(inputs, targets, torch.arange(NUM_PICTURES))][start:]

    with tempfile.TemporaryDirectory(prefix="warmstart-check-") as folder:
        result = fit.fit(
            model,
            groups,
            forward=lambda module, batch: fit.Step(
                nn.functional.cross_entropy(module(batch.inputs, cut), batch.targets)
            ),
            batches=batches,
            steps_per_epoch=1,
            config=fit.FitConfig(
                epochs,
                OptimConfig("adam", lr=LR, weight_decay=0.0),
                ScheduleConfig("constant", warmup_fraction=0.0),
                precision="fp32",
                check_frozen=False,  # this is what is checked here, with other words
            ),
            folder=Path(folder),
            penalty=strategy.penalty(model),
            head=model.head,
        )
    return result, model, before, groups


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _statistics(model: nn.Module, groups: Sequence[Group]) -> set[str]:
    """Name the running statistics that may follow the batches."""
    moving = {id(m) for g in groups if g.statistics == "adapt" for top in g.modules for m in top.modules()}
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if id(module) in moving and isinstance(module, nn.modules.batchnorm._NormBase)
        for name, _ in module.named_buffers(recurse=False)
    }
