"""The contract of backbones, over at least one network of every family, with random weights on small pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from warmstart import runtime
from warmstart.check import check_backbone
from warmstart.models import Features, InputSpec, LayerGroup
from warmstart.models.build import as_backbone, backbone, network, seeded, timm_network
from warmstart.models.chain import ChainBackbone
from warmstart.models.families import TABLES

FAMILIES = {
    "timm:resnet18": 48,
    "timm:resnext50_32x4d": 48,
    "timm:resnetv2_50": 48,
    "timm:inception_v3": 80,
    "timm:inception_v4": 80,
    "timm:densenet121": 48,
    "timm:tf_efficientnet_lite0": 48,
    "timm:mobilenetv2_050": 48,
    "timm:mnasnet_small": 48,
    "timm:mobilenetv3_small_050": 48,
    "timm:convnext_atto": 64,
    "timm:regnetx_002": 48,
    "timm:vit_tiny_patch16_224": 48,
    "timm:deit_tiny_distilled_patch16_224": 48,
    "timm:vit_small_patch14_dinov2": 42,
    "timm:swin_tiny_patch4_window7_224": 64,
    "timm:swinv2_tiny_window8_256": 64,
    "torchvision:resnet18": 48,
    "torchvision:vgg11.features": 32,
    "torchvision:squeezenet1_1": 64,
    "torchvision:googlenet": 64,
    "torchvision:inception_v3": 80,
    "torchvision:densenet121": 48,
    "torchvision:mobilenet_v2": 48,
    "torchvision:mobilenet_v3_small": 48,
    "torchvision:mnasnet0_5": 48,
    "torchvision:efficientnet_b0": 48,
    "torchvision:shufflenet_v2_x0_5": 64,
    "torchvision:convnext_tiny": 48,
    "torchvision:regnet_x_400mf": 48,
    "torchvision:swin_t": 64,
}
"""Architecture → input size."""
WHOLE = {"timm:mobilevit_xxs": 64, "timm:hrnet_w18_small": 64, "timm:cspresnet50": 64, "timm:coat_lite_tiny": 224}
"""Without a chain: only cut at their ends. CoaT shares parameters between modules."""
SLOW = ("coat", "densenet", "inception", "swin", "resnext", "resnetv2", "hrnet", "convnext_tiny", "dinov2")


def tiny_vgg() -> nn.Module:
    return timm.create_model("vgg11", mlp_ratio=0.01, num_classes=10)


def tiny_torchvision_vgg() -> nn.Module:
    layers = make_layers(cfgs["A"], batch_norm=True)
    return narrowed(torchvision.models.VGG(layers, num_classes=10, init_weights=False), {0: 512 * 49, 3: 32, 6: 32})


def tiny_alexnet() -> nn.Module:
    return narrowed(torchvision.models.AlexNet(num_classes=10), {1: 256 * 36, 4: 32, 6: 32})


def narrowed(wide: nn.Module, layers: dict[int, int]) -> nn.Module:
    """Replace wide fully connected layers: index in the classifier → inputs."""
    for index, inputs in layers.items():
        wide.classifier[index] = nn.Linear(inputs, 32)  # type: ignore[index, operator]
    return wide


def tiny_torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(64, 16, 3, 2, 32, 64, num_classes=10)


def tiny_maxvit() -> nn.Module:
    return torchvision.models.MaxVit((64, 64), 8, 2, [8, 8, 16, 16], [1, 2, 1, 1], 8, 0.0, num_classes=10)


def average_pooled_vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=3, global_pool="avg", dynamic_img_size=True)


def attention_pooled_vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=3, global_pool="map", dynamic_img_size=True)


def register_vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=3, reg_tokens=4, dynamic_img_size=True)


TINY: dict[Callable[[], nn.Module], int] = {
    tiny_vgg: 32,
    tiny_torchvision_vgg: 32,
    tiny_alexnet: 64,
    tiny_torchvision_vit: 64,
    tiny_maxvit: 64,
    average_pooled_vit: 48,
    attention_pooled_vit: 48,
    register_vit: 48,
}
"""Small members of families whose published members are all big, and variants of a family."""


def cases(families: dict[str, int]) -> list[object]:
    """Mark what takes long, so that the rest gives its answer first."""
    slow = [pytest.mark.slow]
    return [pytest.param(a, s, marks=slow if any(w in a for w in SLOW) else [], id=a) for a, s in families.items()]


def pictures(size: int, count: int = 2) -> Tensor:
    """Make pictures that differ from each other."""
    return torch.from_numpy(runtime.rng(0, "pictures").integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def settled(built: nn.Module) -> nn.Module:
    """Give normalisation layers statistics and every parameter a value that is not its special start.

    At the start residual branches multiply by zero and hidden values hardly depend on the input.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim <= 1:
                parameter.add_(torch.rand(parameter.shape, generator=generator) * 0.2)
        for name, buffer in built.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(torch.rand(buffer.shape, generator=generator) * 0.1)
    return built.eval()


@pytest.mark.parametrize(("arch", "size"), cases(FAMILIES | WHOLE))
def test_contract(arch: str, size: int) -> None:
    spec = InputSpec(image_size=size)
    subject = check_network(settled(network(arch, spec)), spec)
    assert subject.divisible == (arch in FAMILIES)


@pytest.mark.parametrize(("build", "size"), TINY.items())
def test_contract_of_tiny_members(build: Callable[[], nn.Module], size: int) -> None:
    with seeded(0):
        built = build()
    assert check_network(settled(built), InputSpec(image_size=size)).divisible


def check_network(built: nn.Module, spec: InputSpec) -> ChainBackbone:
    """Check the contract, and that the classifier on `pooled` says what the library's own forward says."""
    pixels = pictures(spec.image_size)
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    with torch.inference_mode():
        expected = built(((pixels.permute(0, 2, 3, 1) / 255 - mean) / std).permute(0, 3, 1, 2))
    subject = as_backbone(built, spec).eval()
    check_backbone(subject, pixels)
    assert len(subject.layer_groups()) >= 3
    if subject.classifier is not None:
        with torch.inference_mode():
            actual = subject.classifier(subject.features(pixels).pooled)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    return subject


@pytest.mark.slow
def test_every_chain_of_the_tables_is_tried() -> None:
    with torch.device("meta"):
        tried = [timm_network(arch[5:]) for arch in FAMILIES if arch.startswith("timm:")]
    tried += [network(arch, InputSpec(image_size=64)) for arch in FAMILIES if arch.startswith("torchvision:")]
    tried += [build() for build in TINY]
    names = {(type(each).__module__.partition(".")[0], type(each).__name__) for each in tried}
    assert names == {(library, name) for library, table in TABLES.items() for name in table}
    assert (len(FAMILIES), len(TINY), len(names)) == (31, 8, 31)


class Broken(nn.Module):
    """A backbone with a fault of choice: the checks must see each of them."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.inner = backbone("timm:resnet18", InputSpec(image_size=32)).eval()
        self.fault, self.dim, self.spec = fault, 512, self.inner.spec
        self.calls = 0

    def features(self, inputs: Tensor) -> Features:
        self.calls += 1
        features = self.inner.features(inputs)
        if self.fault == "random":
            return Features(pooled=features.pooled + self.calls)
        return Features(pooled=features.pooled[:, :99]) if self.fault == "dim" else features

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        groups = tuple(self.inner.layer_groups())
        return {"missing": groups[1:], "twice": (*groups, groups[0]), "order": groups[::-1]}.get(self.fault, groups)

    def cuts(self) -> tuple[int, ...]:
        return (0, 2) if self.fault == "cuts" else tuple(range(len(self.layer_groups()) + 1))

    def prefix(self, inputs: Tensor, cut: int) -> Tensor:
        return self.inner.prefix(inputs, cut)

    def suffix(self, hidden: Tensor, cut: int) -> Features:
        if self.fault == "overwrites" and cut == 2:
            hidden.mul_(1.5)
        return self.inner.suffix(hidden * 1.001 if self.fault == "suffix" and cut else hidden, cut)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("random", "differ from call to call"),
        ("dim", "pooled is"),
        ("missing", "cuts|not pooled|not on offer"),
        ("twice", "not on offer|cuts"),
        ("order", "gradient"),
        ("cuts", "cuts"),
        ("overwrites", "overwrites its input|is not features"),
        ("suffix", "is not features"),
    ],
)
def test_the_checks_see_faults(fault: str, said: str) -> None:
    with pytest.raises((AssertionError, ValueError), match=said):
        check_backbone(Broken(fault), pictures(32))
