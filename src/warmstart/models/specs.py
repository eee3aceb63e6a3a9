"""Input specs as timm and torchvision record them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from warmstart.models import InputSpec

if TYPE_CHECKING:
    from timm.models import PretrainedCfg
    from torchvision.models import WeightsEnum

# timm resamples the position embeddings of these for any input size.
ANY_SIZE = ("deit", "swin_transformer", "swin_transformer_v2", "vision_transformer")
FIXED_SIZE = ("maxvit", "vit_")
# torchvision's weights of these come with `transform_input`: what ImageNet's mean and std made of the pixels is turned
# back and centred on a half. The spec says so directly.
HALVES = ("googlenet", "inception_v3")


def takes_any_size(name: str) -> bool:
    """Say whether timm can build this network for any input size."""
    import timm

    return bool(timm.models.is_model_in_modules(name.partition(".")[0], ANY_SIZE))


def of_timm(cfg: PretrainedCfg) -> InputSpec:
    """Read the input spec off timm's record of the weights."""
    return InputSpec(
        image_size=cfg.input_size[-1],
        mean=_three(cfg.mean),
        std=_three(cfg.std),
        interpolation="bilinear" if cfg.interpolation == "bilinear" else "bicubic",
        crop_fraction=min(cfg.crop_pct, 1.0),  # a few say 1.15: they pad, and see the whole picture
        fixed_size=cfg.fixed_input_size and not takes_any_size(cfg.architecture or ""),
    )


def of_torchvision(network: str, weights: WeightsEnum) -> InputSpec:
    """Read the input spec off the transforms that torchvision publishes with the weights."""
    transforms = weights.transforms()
    halves = (0.5, 0.5, 0.5)
    return InputSpec(
        image_size=transforms.crop_size[0],
        mean=halves if network in HALVES else _three(transforms.mean),
        std=halves if network in HALVES else _three(transforms.std),
        interpolation=transforms.interpolation.value,
        crop_fraction=transforms.crop_size[0] / transforms.resize_size[0],
        fixed_size=network.startswith(FIXED_SIZE),
    )


def of_arch(arch: str) -> InputSpec:
    """Return the spec of an architecture's default weights; the usual one where there are none."""
    library, _, name = arch.partition(":")
    if library == "timm":
        import timm

        cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        return of_timm(cfg) if cfg else InputSpec()
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        return InputSpec(fixed_size=name.startswith(FIXED_SIZE))
    return of_torchvision(name, torchvision.models.get_model_weights(name)["DEFAULT"])


def _three(values: tuple[float, ...] | list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
