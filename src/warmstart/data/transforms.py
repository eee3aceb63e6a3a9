"""From picture to pixels: the geometry of evaluation, and augmentation that a seed fixes completely.

Transforms stop at uint8: normalising belongs to the backbone, which knows the facts of its weights.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from warmstart.errors import RecipeError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from warmstart.models import InputSpec

Fit = Literal["crop", "squash", "pad"]
Augment = Literal["none", "flip", "standard", "strong"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
VERSION = 1
"""Part of every key; a change of pixels raises it, so that no cached feature survives the change."""
AREA = (0.35, 1.0)
"""Fraction of the picture that `standard` keeps; ImageNet training from nothing uses 0.08 to 1."""
ASPECT = (3 / 4, 4 / 3)
MAX_TRIES = 10
OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "saturation"),
    *("contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
"""What `strong` chooses from."""


class Transform(Protocol):
    """Turns a picture into pixels."""

    @property
    def key(self) -> str:
        """Complete description, for cache keys: equal keys, equal pixels."""
        ...

    @property
    def random(self) -> bool:
        """True when the pixels depend on the generator, so that one has to be given."""
        ...

    def __call__(self, picture: Image, rng: np.random.Generator | None = None) -> Tensor:
        """Return the pixels.

        Shape:
            uint8 (3, H, W), RGB, contiguous.
        """
        ...


@dataclass(frozen=True)
class Geometry:
    """How a picture of any shape becomes a square.

    `crop` resizes the shorter side to `resize` and keeps the centre, `squash` ignores the aspect ratio, `pad` keeps
    everything and fills up with the mean colour of the weights (zero after normalisation).
    """

    image_size: int
    resize: int
    fit: Fit
    interpolation: Interpolation
    fill: tuple[int, int, int]

    @property
    def key(self) -> str:
        """Complete description, for cache keys."""
        fill = f" fill={self.fill}" if self.fit == "pad" else ""
        resize = f" resize={self.resize}" if self.fit == "crop" else ""
        return f"v{VERSION} size={self.image_size} fit={self.fit}{resize} by={self.interpolation}{fill}"

    def __call__(self, picture: Image) -> Image:
        """Return the square picture."""
        import PIL.Image

        size = (self.image_size, self.image_size)
        sampling = PIL.Image.Resampling[self.interpolation.upper()]
        if self.fit == "squash":
            return _resized(picture, size, sampling)
        if self.fit == "pad":
            inner = _resized(picture, _longer_side(picture.size, self.image_size), sampling)
            square = PIL.Image.new("RGB", size, self.fill)
            square.paste(inner, ((size[0] - inner.width) // 2, (size[1] - inner.height) // 2))
            return square
        return _centre(_resized(picture, _shorter_side(picture.size, self.resize), sampling), self.image_size)


@dataclass(frozen=True)
class EvalTransform:
    """Geometry only: the same pixels every time."""

    geometry: Geometry

    @property
    def key(self) -> str:
        """Complete description, for cache keys."""
        return f"eval {self.geometry.key}"

    @property
    def random(self) -> bool:
        """False: no generator is asked for anything."""
        return False

    def __call__(self, picture: Image, rng: np.random.Generator | None = None) -> Tensor:
        """Return the pixels; `rng` has no effect."""
        return to_tensor(self.geometry(picture))


@dataclass(frozen=True)
class TrainTransform:
    """Geometry and augmentation, drawn from the generator that is given and from nothing else."""

    geometry: Geometry
    augment: Augment

    @property
    def key(self) -> str:
        """Complete description, for cache keys."""
        area = "" if self.augment == "flip" else f" area={AREA} aspect={ASPECT[0]:.3f}-{ASPECT[1]:.3f}"
        return f"train {self.augment}{area} {self.geometry.key}"

    @property
    def random(self) -> bool:
        """True: a generator has to be given."""
        return True

    def __call__(self, picture: Image, rng: np.random.Generator | None = None) -> Tensor:
        """Return the augmented pixels; equal generators give equal pixels."""
        assert rng is not None, "an augmenting transform draws from an explicit generator"
        square = self.geometry(picture) if self.augment == "flip" else self._crop(picture, rng)
        if rng.random() < 0.5:
            from torchvision.transforms.v2 import functional

            square = functional.horizontal_flip(square)
        if self.augment == "strong":
            square = _trivial_augment(square, rng, self.geometry.fill)
        return to_tensor(square)

    def _crop(self, picture: Image, rng: np.random.Generator) -> Image:
        from torchvision.transforms.v2 import InterpolationMode, functional

        left, top, width, height = random_box(picture.size, rng)
        size = [self.geometry.image_size, self.geometry.image_size]
        mode = InterpolationMode(self.geometry.interpolation)
        return functional.resized_crop(picture, top, left, height, width, size, mode)


@dataclass(frozen=True)
class SideBySide:
    """The squares of several transforms on one sheet, left to right, each at the top; what is below is black.

    A random one of them draws what it would draw alone.
    """

    parts: tuple[Transform, ...]

    @property
    def key(self) -> str:
        """Complete description, for cache keys."""
        return " beside ".join(part.key for part in self.parts)

    @property
    def random(self) -> bool:
        """True when any of them is."""
        return any(part.random for part in self.parts)

    def __call__(self, picture: Image, rng: np.random.Generator | None = None) -> Tensor:
        """Return the sheet: as high as the highest square, as wide as all together."""
        import torch

        squares = [part(picture, copy.deepcopy(rng)) for part in self.parts]
        height, width = max(one.shape[1] for one in squares), sum(one.shape[2] for one in squares)
        sheet, left = torch.zeros((3, height, width), dtype=torch.uint8), 0
        for one in squares:
            sheet[:, : one.shape[1], left : left + one.shape[2]] = one
            left += one.shape[2]
        return sheet


def for_eval(
    spec: InputSpec, *, image_size: int | None = None, resize: int | None = None, fit: Fit = "crop"
) -> EvalTransform:
    """Build the transform of validation, test, prediction and cached features.

    Args:
        spec: The facts of the weights; interpolation and fill come from here.
        image_size: Side in pixels; None takes the weights' own.
        resize: Shorter side in pixels before the centre crop; None takes `image_size`, so that the crop loses only
            what exceeds a square. Has no effect unless `fit` is `crop`.
        fit: What happens to pictures that are not square.

    Raises:
        RecipeError: Sizes that contradict each other or the weights.
    """
    return EvalTransform(_geometry(spec, image_size, resize, fit))


def for_train(
    spec: InputSpec,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    fit: Fit = "crop",
    augment: Augment = "standard",
) -> Transform:
    """Build the transform of training.

    Args:
        spec: The facts of the weights; interpolation and fill come from here.
        image_size: See `for_eval`.
        resize: See `for_eval`; has no effect with `standard` and `strong`, which crop at random.
        fit: See `for_eval`; has no effect with `standard` and `strong`.
        augment: `none` equals `for_eval`; `flip` mirrors every other picture; `standard` crops at random
            (35 to 100 % of the area) and mirrors; `strong` adds TrivialAugment (Müller and Hutter 2021, arXiv
            2103.10158).

    Raises:
        RecipeError: See `for_eval`.
    """
    geometry = _geometry(spec, image_size, resize, fit)
    return EvalTransform(geometry) if augment == "none" else TrainTransform(geometry, augment)


def to_tensor(picture: Image) -> Tensor:
    """Copy the pixels of an RGB picture.

    Shape:
        uint8 (3, H, W), contiguous.
    """
    import torch

    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())  # (H, W, 3) → (3, H, W)


def random_box(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a box of `AREA` and `ASPECT` inside a picture, as Inception's training does.

    Returns:
        left, top, width, height; the largest centred box of allowed aspect when no draw fits.
    """
    width, height = size
    for _ in range(MAX_TRIES):
        area = width * height * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h
    aspect = min(max(width / height, ASPECT[0]), ASPECT[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return (width - w) // 2, (height - h) // 2, w, h


def _geometry(spec: InputSpec, image_size: int | None, resize: int | None, fit: Fit) -> Geometry:
    size = image_size or spec.image_size
    if spec.fixed_size and size != spec.image_size:
        raise RecipeError(
            f"data.image_size={size}, but these weights take {spec.image_size} pixels only",
            f"data.image_size={spec.image_size}",
        )
    if resize is not None and fit == "crop" and resize < size:
        raise RecipeError(
            f"data.resize={resize} is smaller than data.image_size={size}, so the centre crop would reach outside",
            f"data.resize={size} or more, or data.image_size={resize}",
        )
    mean = spec.mean if spec.channels == "RGB" else spec.mean[::-1]
    red, green, blue = (min(255, max(0, round(value * spec.scale))) for value in mean)
    return Geometry(size, resize or size, fit, spec.interpolation, (red, green, blue))


def _resized(picture: Image, size: tuple[int, int], sampling: int) -> Image:
    return picture if picture.size == size else picture.resize(size, sampling)


def _shorter_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Scale as torchvision's Resize(side) does, its rounding down included."""
    width, height = size
    return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)


def _longer_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    width, height = size
    longest = max(size)
    return max(1, round(width * side / longest)), max(1, round(height * side / longest))


def _centre(picture: Image, side: int) -> Image:
    """Crop as torchvision's CenterCrop(side) does, its rounding to even included."""
    if picture.size == (side, side):
        return picture
    left, top = round((picture.width - side) / 2.0), round((picture.height - side) / 2.0)
    return picture.crop((left, top, left + side, top + side))


def _trivial_augment(picture: Image, rng: np.random.Generator, fill: tuple[int, int, int]) -> Image:
    """Apply one operation at one strength, all uniform, over TrivialAugment's wide ranges."""
    name = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
    strength, sign = float(rng.random()), 1.0 if rng.random() < 0.5 else -1.0
    if name in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate"):
        return _move(name, picture, sign * strength, fill)
    return _tone(name, picture, strength, sign)


def _move(name: str, picture: Image, amount: float, fill: tuple[int, int, int]) -> Image:
    from torchvision.transforms.v2 import InterpolationMode, functional

    slant = math.degrees(math.atan(0.99 * amount))
    angle = 135.0 * amount if name == "rotate" else 0.0
    shear = {"shear_x": [slant, 0.0], "shear_y": [0.0, slant]}.get(name, [0.0, 0.0])
    shift = {"translate_x": [amount, 0.0], "translate_y": [0.0, amount]}.get(name, [0.0, 0.0])
    return functional.affine(
        picture,
        angle=angle,
        translate=[round(part * side / 3) for part, side in zip(shift, picture.size, strict=True)],
        scale=1.0,
        shear=shear,
        interpolation=InterpolationMode.BILINEAR,
        fill=[float(value) for value in fill],
    )


def _tone(name: str, picture: Image, strength: float, sign: float) -> Image:
    from torchvision.transforms.v2 import functional

    factor = 1.0 + 0.99 * sign * strength
    match name:
        case "brightness":
            return functional.adjust_brightness(picture, factor)
        case "saturation":
            return functional.adjust_saturation(picture, factor)
        case "contrast":
            return functional.adjust_contrast(picture, factor)
        case "sharpness":
            return functional.adjust_sharpness(picture, factor)
        case "posterize":
            return functional.posterize(picture, 8 - round(6 * strength))
        case "solarize":
            return functional.solarize(picture, 255.0 * (1.0 - strength))
        case "autocontrast":
            return functional.autocontrast(picture)
        case "equalize":
            return functional.equalize(picture)
        case _:
            return picture
