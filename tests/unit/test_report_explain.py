"""Explanations point at what decides, and leave the model as they found it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from warmstart.models import Features, InputSpec, LayerGroup
from warmstart.models.build import as_backbone
from warmstart.models.model import LinearHead, Model
from warmstart.reporting import explain

SIDE, SQUARE = 32, 8


def planted(num: int, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Grey noise; every second picture has a bright square, and that is its class."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 140, (num, 3, SIDE, SIDE)).astype(np.uint8)
    targets, corners = np.arange(num) % 2, rng.integers(0, SIDE // SQUARE, (num, 2)) * SQUARE
    for row in np.flatnonzero(targets):
        top, left = corners[row]
        pixels[row, :, top : top + SQUARE, left : left + SQUARE] = rng.integers(200, 255, (3, SQUARE, SQUARE))
    return torch.from_numpy(pixels), torch.from_numpy(targets), corners


class Bright(nn.Module):
    """A backbone whose first channel is brightness above 170, and whose other channels are random filters."""

    dim = 4
    spec = InputSpec(image_size=SIDE)

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(3, self.dim, 4, stride=4)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.filters.weight.copy_(torch.randn(self.filters.weight.shape, generator=generator) * 0.1)
            self.filters.weight[0] = 1 / 48
            self.filters.bias.copy_(torch.tensor([-170 / 255, 0.0, 0.0, 0.0]))

    def features(self, inputs: Tensor) -> Features:
        grid = self.filters(inputs.float() / 255).relu()  # (B, 4, 8, 8)
        return Features(grid.mean(dim=(2, 3)), grid=grid)

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        return (LayerGroup("all", (self.filters,), tuple(self.filters.parameters())),)

    def cuts(self) -> tuple[int, ...]:
        return (0, 1)

    def prefix(self, inputs: Tensor, cut: int) -> Tensor:
        return inputs if cut == 0 else self.features(inputs).pooled

    def suffix(self, hidden: Tensor, cut: int) -> Features:
        return self.features(hidden) if cut == 0 else Features(hidden)


@pytest.fixture
def bright() -> Model:
    model = Model(Bright(), LinearHead(4, 2))
    with torch.no_grad():
        model.head.linear.weight.copy_(torch.tensor([[-5.0, 0.1, 0.0, 0.0], [5.0, 0.0, 0.05, 0.0]]))
        model.head.linear.bias.zero_()
    return model


def pointing(maps: Tensor, corners: np.ndarray) -> tuple[float, float]:
    """Return how often the peak lies in the square, and the share of all heat in it."""
    hits, inside = [], []
    for heat, (top, left) in zip(maps, corners, strict=True):
        row, column = divmod(int(heat.argmax()), SIDE)
        hits.append(top - 4 <= row < top + SQUARE + 4 and left - 4 <= column < left + SQUARE + 4)
        inside.append(float(heat[top : top + SQUARE, left : left + SQUARE].sum() / heat.sum()))
    return float(np.mean(hits)), float(np.mean(inside))


def test_grad_cam_points_at_the_evidence(bright: Model) -> None:
    pixels, targets, corners = planted(32, 0)
    has = targets == 1
    maps = explain.explain(bright, pixels[has], torch.ones(16, dtype=torch.long))
    assert maps is not None and maps.shape == (16, SIDE, SIDE) and maps.dtype == torch.float32
    assert float(maps.min()) == 0 and float(maps.max()) == pytest.approx(1)
    hits, inside = pointing(maps, corners[has.numpy()])
    assert hits == 1.0
    assert inside > 0.6  # of all heat, on 6 % of the area


def test_grad_cam_of_average_pooling_is_cam(bright: Model) -> None:
    """With a linear head on average-pooled features the paper's map is the head's weights times the grid."""
    pixels, targets, _ = planted(4, 1)
    with torch.no_grad():
        grid = bright.backbone.features(pixels).grid
        assert grid is not None
        cam = torch.einsum("bc,bchw->bhw", bright.head.linear.weight[targets], grid).clamp_min(0)
    large = nn.functional.interpolate(cam[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    expected = large / large.amax(dim=(1, 2), keepdim=True).clamp_min(1e-30)
    found = explain.explain(bright, pixels, targets, link="identity")
    assert found is not None
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_no_evidence_gives_a_map_of_zeros(bright: Model) -> None:
    with torch.no_grad():
        bright.head.linear.weight.copy_(-bright.head.linear.weight.abs())
    maps = explain.explain(bright, planted(2, 0)[0], torch.tensor([0, 1]), link="sigmoid")
    assert maps is not None and float(maps.abs().sum()) == 0


def test_another_model_gives_another_map(bright: Model) -> None:
    """The randomisation check of Adebayo et al., arXiv 1810.03292: a map that ignores the weights explains nothing."""
    pixels, targets, corners = planted(32, 2)
    has = targets == 1
    ones = torch.ones(int(has.sum()), dtype=torch.long)
    before = explain.explain(bright, pixels[has], ones)
    with torch.no_grad():
        weight = torch.randn(bright.backbone.filters.weight.shape, generator=torch.Generator().manual_seed(3))
        bright.backbone.filters.weight.copy_(weight - weight.mean(dim=(1, 2, 3), keepdim=True))
        bright.backbone.filters.bias.zero_()
    after = explain.explain(bright, pixels[has], ones)
    assert before is not None and after is not None
    correlation = np.corrcoef(before.flatten().numpy(), after.flatten().numpy())[0, 1]
    assert abs(correlation) < 0.5
    assert pointing(after, corners[has.numpy()])[1] < 0.3


@pytest.mark.parametrize("frozen", [False, True])
def test_the_model_comes_back_as_it_was(bright: Model, *, frozen: bool) -> None:
    bright.train()
    bright.head.eval()
    bright.requires_grad_(not frozen)
    before = {name: value.clone() for name, value in bright.state_dict().items()}
    modes = [module.training for module in bright.modules()]
    with torch.inference_mode():
        maps = explain.explain(bright, *planted(11, 0)[:2])
    assert maps is not None and len(maps) == 11 and not maps.requires_grad
    assert [module.training for module in bright.modules()] == modes
    assert all(parameter.grad is None for parameter in bright.parameters())
    assert all(torch.equal(value, before[name]) for name, value in bright.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in bright.modules())
    alone = explain.explain(bright, *(part[9:10] for part in planted(11, 0)[:2]))
    assert alone is not None
    torch.testing.assert_close(alone[0], maps[9])


def test_classes_that_compete_are_explained_by_their_odds(bright: Model) -> None:
    """Adding the same to every output changes no softmax, so it must not change an explanation."""
    pixels, targets, _ = planted(4, 0)
    before = explain.explain(bright, pixels, targets)
    with torch.no_grad():
        bright.head.linear.weight.add_(torch.tensor([0.0, 30.0, -20.0, 10.0]))
    after = explain.explain(bright, pixels, targets)
    assert before is not None and after is not None
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def small_vit(pool: str) -> Model:
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng():
        torch.manual_seed(0)  # timm takes no generator
        network = VisionTransformer(
            img_size=SIDE, patch_size=SQUARE, embed_dim=32, depth=3, num_heads=2, num_classes=0, global_pool=pool
        )
        backbone = as_backbone(network, InputSpec(image_size=SIDE))
        return Model(backbone, LinearHead(backbone.dim, 2))


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_token_relevance_points_at_the_evidence(pool: str) -> None:
    model = small_vit(pool)
    pixels, targets, _ = planted(128, 0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(120):
        rows = torch.arange(step * 32, step * 32 + 32) % len(pixels)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels[rows]), targets[rows]).backward()
        optimizer.step()
    pixels, targets, corners = planted(64, 1)
    has = targets == 1
    ones = torch.ones(int(has.sum()), dtype=torch.long)
    maps = explain.explain(model, pixels[has], ones)
    assert maps is not None
    hits, inside = pointing(maps, corners[has.numpy()])
    assert hits > 0.9
    assert inside > 0.55  # of all heat, on 6 % of the area; a 4 × 4 map enlarged to 32 × 32 cannot reach 1
    fresh = explain.explain(small_vit(pool), pixels[has], ones)
    assert fresh is not None
    assert pointing(fresh, corners[has.numpy()])[1] < 0.3


@pytest.mark.parametrize(("arch", "said"), [("resnet18", "Grad-CAM"), ("vit_tiny_patch16_224", "patch token")])
def test_library_networks_are_explained(arch: str, said: str) -> None:
    import timm

    options = {"img_size": 64} if arch.startswith("vit") else {}
    backbone = as_backbone(timm.create_model(arch, pretrained=False, **options), InputSpec(image_size=64))
    model = Model(backbone, LinearHead(backbone.dim, 3))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 3, 64, 64), dtype=np.uint8))
    maps = explain.explain(model, pixels, torch.tensor([0, 2]))
    assert maps is not None and maps.shape == (2, 64, 64)
    assert float(maps.max()) == pytest.approx(1)
    assert said in explain.method(model, pixels)


class Flat(Bright):
    """A backbone that hands out pooled features only."""

    def features(self, inputs: Tensor) -> Features:
        return Features(super().features(inputs).pooled)


def test_a_backbone_without_places_is_not_explained() -> None:
    model = Model(Flat(), LinearHead(4, 2))
    pixels, targets, _ = planted(2, 0)
    assert explain.explain(model, pixels, targets) is None
    assert explain.method(model, pixels) == ""


@pytest.mark.parametrize(
    ("num_tokens", "size", "layout"),
    [
        (197, (224, 224), (1, 14, 14)),
        (261, (224, 224), (5, 16, 16)),
        (196, (224, 224), (0, 14, 14)),
        (1 + 6 * 12, (96, 192), (1, 6, 12)),
        (1 + 12 * 6, (192, 96), (1, 12, 6)),
        (1, (32, 32), (0, 1, 1)),
        (110, (224, 224), None),
    ],
)
def test_patch_layout(num_tokens: int, size: tuple[int, int], layout: tuple[int, int, int] | None) -> None:
    assert explain.patch_layout(num_tokens, size) == layout
