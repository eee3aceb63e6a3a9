"""Chains: pixels are normalised as the weights want, groups follow replaced modules, wrong names have a way on."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from warmstart import runtime
from warmstart.errors import SourceError
from warmstart.models import InputSpec, specs
from warmstart.models.build import as_backbone, backbone, network
from warmstart.models.chain import ChainBackbone, Group, chain_groups


class First(nn.Module):
    """Returns the normalised pixels themselves, so that tests see them."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()


def seen_by_network(pixels: Tensor, spec: InputSpec) -> Tensor:
    subject = ChainBackbone(First(), [Group("all", ("flatten",))], spec=spec, dim=12)
    return subject.features(pixels).pooled.reshape(pixels.shape)


def test_pixels_are_normalised_as_torchvision_does() -> None:
    from torchvision.transforms import Compose, Normalize, ToTensor

    picture = runtime.rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = Compose([ToTensor(), Normalize(mean, std)])(picture)
    actual = seen_by_network(torch.from_numpy(picture).permute(2, 0, 1)[None], InputSpec(mean=mean, std=std))
    assert torch.equal(actual[0], expected)


def test_blue_first_pixels_keep_their_scale() -> None:
    spec = InputSpec(mean=(103.939, 116.779, 123.68), std=(1, 1, 1), scale=1.0, channels="BGR")
    red = torch.tensor([200, 20, 2], dtype=torch.uint8).reshape(1, 3, 1, 1)
    actual = seen_by_network(red, spec).flatten()
    torch.testing.assert_close(actual, torch.tensor([2 - 103.939, 20 - 116.779, 200 - 123.68]))


def test_a_transform_input_network_sees_what_torchvision_shows_it() -> None:
    """GoogLeNet and Inception re-normalise what ImageNet's mean and std made of the pixels; the spec says so."""
    from torchvision.models import get_model_weights, inception_v3

    spec = specs.of_torchvision("inception_v3", get_model_weights("inception_v3")["IMAGENET1K_V1"])
    theirs = inception_v3(weights=None, transform_input=True, aux_logits=True, init_weights=False)
    pixels = torch.from_numpy(runtime.rng(0).integers(0, 256, (1, 3, 8, 8), dtype=np.uint8))
    imagenet = seen_by_network(pixels, InputSpec())
    expected = theirs._transform_input(imagenet)
    torch.testing.assert_close(seen_by_network(pixels, spec), expected, rtol=1e-5, atol=1e-5)
    assert (spec.image_size, spec.interpolation) == (299, "bilinear")


def test_the_classifier_is_kept_aside() -> None:
    built = network("timm:resnet18", InputSpec(), seed=0)
    original = built.get_classifier()  # type: ignore[operator]
    subject = as_backbone(built, InputSpec())
    assert subject.classifier is original
    assert not any(name.startswith("_classifier") or "fc" in name for name in subject.state_dict())
    assert backbone("timm:resnet18", InputSpec(), seed=0).classifier is None


def test_state_is_the_networks_own() -> None:
    subject = backbone("timm:resnet18", InputSpec(), seed=0)
    own = timm.create_model("resnet18", num_classes=0).state_dict()
    assert [name.removeprefix("network.") for name in subject.state_dict()] == list(own)


def test_groups_find_modules_that_were_replaced() -> None:
    subject = backbone("timm:resnet18", InputSpec(image_size=32), seed=0)
    subject.network.layer4 = nn.Conv2d(256, 512, 1)  # type: ignore[assignment]
    last = subject.layer_groups()[-1]
    assert last.modules[0] is subject.network.layer4
    assert sum(p.numel() for p in last.parameters) == 256 * 512 + 512


def test_equal_seeds_build_equal_weights_and_leave_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    one, two, other = (backbone("timm:mobilenetv3_small_050", InputSpec(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    pairs = list(zip(one.parameters(), two.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_a_vit_takes_other_sizes_and_equals_itself_at_its_own() -> None:
    built = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    subject = backbone("timm:vit_tiny_patch16_224", InputSpec()).eval()
    subject.network.load_state_dict(built.state_dict())
    pixels = torch.from_numpy(runtime.rng(0).integers(0, 256, (1, 3, 224, 224), dtype=np.uint8))
    with torch.inference_mode():
        assert torch.equal(subject.features(pixels).pooled, built(seen_by_network(pixels, InputSpec())))
        assert subject.features(pixels[..., :96, :128]).tokens.shape == (1, 1 + 6 * 8, 192)  # type: ignore[union-attr]


def test_a_network_with_other_parts_is_not_forced_into_a_chain() -> None:
    built = timm.create_model("resnet18", num_classes=0)
    chain = {"stem": "conv1 bn1", "rest": "layer1 layer2 layer3"}
    assert chain_groups(built, chain) is None
    assert chain_groups(built, {"stem": "conv1 bn1 nothing"}) is None


def test_cuts_that_are_not_offered_are_refused() -> None:
    subject = backbone("timm:mobilevit_xxs", InputSpec(image_size=64)).eval()
    assert list(subject.cuts()) == [0, len(subject.layer_groups())]
    with pytest.raises(ValueError, match="cut 1 is not on offer, only"):
        subject.prefix(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 1)


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("timm:resnet1", "timm has no architecture 'resnet1'\n  fix: did you mean 'resnet18'?"),
        ("torchvision:resnet5", "torchvision has no architecture 'resnet5'\n  fix: did you mean 'resnet50'?"),
        ("tim:resnet18", "architecture 'tim:resnet18' names no known library\n  fix: did you mean 'timm'?"),
    ],
)
def test_unknown_architectures_have_a_closest_name(arch: str, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        network(arch, InputSpec())
    assert str(caught.value) == said


def test_a_network_that_never_classified_is_refused() -> None:
    with torch.device("meta"):
        encoder = timm.create_model("qwen3_vit_88m_enc")
    with pytest.raises(SourceError) as caught:
        as_backbone(encoder, InputSpec())
    assert str(caught.value) == ("timm's Qwen3VitEncoder is no classification network\n  fix: warmstart list backbones")


def test_specs_come_from_the_libraries() -> None:
    lite = specs.of_arch("timm:tf_efficientnet_lite0")
    assert (lite.mean, lite.std, lite.image_size, lite.fixed_size) == ((0.5,) * 3, (0.5,) * 3, 224, False)
    assert specs.of_arch("torchvision:vit_b_16").fixed_size
    assert not specs.of_arch("timm:vit_base_patch16_224").fixed_size
    assert specs.of_arch("torchvision:resnet50").interpolation == "bilinear"
    assert specs.of_arch("torchvision:resnet50").crop_fraction == pytest.approx(224 / 232)
