"""A closer look at two thumbnails: lay one on the other, then compare the detail that coarse shapes leave out.

Two silhouettes, two solar cells or two shirts may agree in every low frequency and still be different pictures. So the
pair is registered by Gauss-Newton on low frequencies (Lucas and Kanade 1981, "An Iterative Image Registration
Technique", with independent shifts and stretches of both axes, which is what cropping and resizing do), and judged by
the correlation of the middle frequencies, each in units of its spread in this data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

SIDE = 32
"""Side of a thumbnail in pixels."""
BORDER = 2
"""Pixels at each edge that are not compared: a picture cropped by 5 % has lost them."""
INNER = SIDE - 2 * BORDER
NUM_LOW, NUM_DETAIL = 64, 300
"""Frequencies by radius: the first 64 register, number 65 to 300 decide."""
STEPS = 3
MAX_SHIFT, MAX_STRETCH = 3.0, 0.2
"""Limits of the registration in pixels and per pixel."""
CHUNK = 512


@dataclass(frozen=True)
class Detail:
    """What pictures of this data set usually look like, in frequencies of the inner thumbnail.

    Shape:
        usual, scale: float32 (300,).
    """

    usual: np.ndarray
    scale: np.ndarray

    @staticmethod
    def over(thumbnails: np.ndarray) -> Detail:
        """Measure on a sample of thumbnails, uint8 (N, 32, 32)."""
        values = np.concatenate(
            [_inner(normal(thumbnails[at : at + CHUNK])) @ _basis() for at in range(0, len(thumbnails), CHUNK)]
        )
        symmetric = _mirror_signs() > 0
        usual = np.where(symmetric, np.median(values, 0), 0.0).astype(np.float32)
        spread = np.sqrt(((values - usual) ** 2).mean(0))
        return Detail(usual, (1 / np.maximum(spread, 0.02 * spread.max() + 1e-6)).astype(np.float32))

    def agreement(self, one: np.ndarray, two: np.ndarray) -> np.ndarray:
        """Correlate the detail of pictures after laying the second on the first.

        Shape:
            one, two: uint8 (P, 32, 32). Returns float32 (P,), 1 for copies.
        """
        parts = [
            self._agreement(normal(one[at : at + CHUNK]), normal(two[at : at + CHUNK]))
            for at in range(0, len(one), CHUNK)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _agreement(self, one: np.ndarray, two: np.ndarray) -> np.ndarray:
        motion = np.zeros((len(one), 4), np.float32)
        for _ in range(STEPS):
            moved = _warped(two, motion)
            motion += self._step(one, moved)
            motion[:, :2] = motion[:, :2].clip(-MAX_SHIFT, MAX_SHIFT)
            motion[:, 2:] = motion[:, 2:].clip(-MAX_STRETCH, MAX_STRETCH)
        first, second = self._detail(one), self._detail(_warped(two, motion))
        size = np.sqrt((first**2).sum(1) * (second**2).sum(1)).clip(min=1e-9)
        return np.asarray((first * second).sum(1) / size, np.float32)

    def _step(self, one: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Return one Gauss-Newton step, float32 (P, 4): shifts right and down, stretches across and upright."""
        scale = self.scale[:NUM_LOW]
        difference = (_inner(one - moved) @ _basis()[:, :NUM_LOW]) * scale  # (P, 64)
        middle = (one + moved) / 2
        across, down = np.gradient(middle, axis=2), np.gradient(middle, axis=1)
        place = (np.arange(SIDE) - (SIDE - 1) / 2).astype(np.float32)
        changes = np.stack([across, down, across * place, down * place[:, None]], 1)  # (P, 4, 32, 32)
        moves = (_inner(changes.reshape(-1, SIDE, SIDE)) @ _basis()[:, :NUM_LOW]).reshape(-1, 4, NUM_LOW) * scale
        system = moves @ moves.transpose(0, 2, 1)  # (P, 4, 4)
        system += np.eye(4, dtype=np.float32) * (1e-3 * np.trace(system, axis1=1, axis2=2) + 1e-6)[:, None, None]
        step = np.linalg.solve(system, moves @ difference[:, :, None])[:, :, 0]
        return np.asarray(step, np.float32)

    def _detail(self, pictures: np.ndarray) -> np.ndarray:
        values = _inner(pictures) @ _basis()
        values /= np.linalg.norm(values, axis=1, keepdims=True).clip(min=1e-9)
        return np.asarray(((values - self.usual) * self.scale)[:, NUM_LOW:])


def normal(thumbnails: np.ndarray) -> np.ndarray:
    """Free thumbnails (P, S, S) of brightness and contrast: float32, mean 0, length 1."""
    pixels = thumbnails.reshape(len(thumbnails), int(np.prod(thumbnails.shape[1:]))).astype(np.float32)
    pixels -= pixels.mean(1, keepdims=True)
    size = np.sqrt(np.einsum("ps,ps->p", pixels, pixels))[:, None]
    return np.asarray((pixels / size.clip(min=1e-3)).reshape(thumbnails.shape))


def cosines(side: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest frequencies of the cosine transform of a flattened picture, the constant one left out.

    Returns:
        The basis, float64 (side², count), orthonormal, ordered by radius; and +1 or -1 (count,) for frequencies that
        mirroring leaves or negates.
    """
    step = np.arange(side)
    one = np.sqrt(2 / side) * np.cos(np.pi * (step[None] + 0.5) * step[:, None] / side)
    one[0] /= np.sqrt(2)
    vertical, horizontal = np.divmod(np.arange(side * side), side)
    lowest = np.argsort(vertical**2 + horizontal**2, kind="stable")[1 : count + 1]
    return np.kron(one, one)[lowest].T, np.where(horizontal[lowest] % 2 == 0, 1.0, -1.0)


@cache
def _basis() -> np.ndarray:
    return np.ascontiguousarray(cosines(INNER, NUM_DETAIL)[0], np.float32)


@cache
def _mirror_signs() -> np.ndarray:
    return cosines(INNER, NUM_DETAIL)[1]


def _inner(pictures: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pictures[:, BORDER:-BORDER, BORDER:-BORDER]).reshape(len(pictures), INNER * INNER)


def _warped(pictures: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Sample pictures at shifted and stretched places; both axes are independent, so it is two small products."""
    across = _samplers(motion[:, 0], motion[:, 2])  # (P, 32, 32)
    upright = _samplers(motion[:, 1], motion[:, 3])
    return np.asarray(upright @ pictures @ across.transpose(0, 2, 1))


def _samplers(shift: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """Cubic interpolation (Catmull-Rom) along one axis as matrices, float32 (P, 32, 32)."""
    centre = (SIDE - 1) / 2
    place = (np.arange(SIDE) - centre)[None] * (1 + stretch[:, None]) + shift[:, None] + centre  # (P, 32)
    place = place.clip(0, SIDE - 1).astype(np.float32)
    away = np.abs(place[:, :, None] - np.arange(SIDE, dtype=np.float32))  # (P, 32, 32)
    near = (1.5 * away - 2.5) * away**2 + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    weights = np.where(away < 1, near, np.where(away < 2, far, 0.0))
    return np.asarray(weights / weights.sum(2, keepdims=True), np.float32)
