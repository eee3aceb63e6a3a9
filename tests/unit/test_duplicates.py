"""Copies are found however they were changed, and pictures that only look alike are not."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from PIL.Image import Resampling, Transpose

import assets
from warmstart.data import Dataset, duplicates, scan
from warmstart.data.alignment import Detail

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def jpeg(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=int(rng.integers(50, 91)))
    return Image.open(data).convert("RGB")


def resized(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = round(picture.width * rng.uniform(0.5, 2.0))
    return picture.resize((side, side), Resampling.BICUBIC)


def cropped(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = int(picture.width * 0.95)
    left, top = rng.integers(0, picture.width - side + 1, 2).tolist()
    return picture.crop((left, top, left + side, top + side))


def brightened(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(float(rng.choice([0.8, 1.2])))


def mirrored(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.transpose(Transpose.FLIP_LEFT_RIGHT)


CHANGES: dict[str, Change] = {
    "re-encoded": jpeg,
    "resized": resized,
    "cropped": cropped,
    "brightened": brightened,
    "mirrored": mirrored,
}


def blobs(count: int, seed: int = 0, side: int = 48) -> np.ndarray:
    """Smooth made-up pictures, each unlike the others: spectra fall like those of photos."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)) + 1 / side
    waves = np.fft.fft2(rng.normal(size=(count, side, side))) / frequency**1.3
    pictures = np.fft.ifft2(waves).real
    pictures -= pictures.min((1, 2), keepdims=True)
    grey = 255 * pictures / pictures.max((1, 2), keepdims=True)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=3)


def thumbnails(pictures: list[Image.Image] | np.ndarray) -> np.ndarray:
    inputs = [picture if isinstance(picture, Image.Image) else Image.fromarray(picture) for picture in pictures]
    return scan.scan(Dataset([str(i) for i in range(len(inputs))], inputs)).thumbnails


def planted(pixels: np.ndarray, change: Change, every: int) -> tuple[list[Image.Image], set[tuple[int, int]]]:
    rng = np.random.default_rng(1)
    pictures = [Image.fromarray(one) for one in pixels]
    sources = range(0, len(pixels), every)
    pairs = {(source, len(pixels) + place) for place, source in enumerate(sources)}
    return pictures + [change(pictures[source], rng) for source in sources], pairs


def as_set(pairs: duplicates.NearPairs) -> set[tuple[int, int]]:
    return set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(name: str) -> None:
    pictures, pairs = planted(blobs(400), CHANGES[name], 8)
    found = duplicates.near_pairs(thumbnails(pictures))
    assert len(pairs & as_set(found)) >= 0.95 * len(pairs)
    assert as_set(found) <= pairs
    assert (found.flipped == (name == "mirrored")).all()


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_copies_of_real_photos_are_found(name: str) -> None:
    """CIFAR-10 has near-copies of its own, so false alarms are counted in benchmarks/audit_cifar10.py."""
    pixels, _ = assets.cifar10("train", 4000)
    pictures, pairs = planted(pixels, CHANGES[name], 20)
    assert len(pairs & as_set(duplicates.near_pairs(thumbnails(pictures)))) >= 0.95 * len(pairs)


def test_exact_copies_are_found_without_exception() -> None:
    pixels = np.concatenate([blobs(50), blobs(50)[::2]])
    found = scan.scan(Dataset([str(i) for i in range(75)], list(pixels)))
    first = duplicates.first_copies(found.pixel_hash, found.readable)
    assert first.tolist() == [*range(50), *range(0, 50, 2)]


def test_rows_that_are_not_valid_are_copies_of_nothing() -> None:
    hashes = np.zeros((4, 16), np.uint8)
    assert duplicates.first_copies(hashes, np.array([False, True, False, True])).tolist() == [0, 1, 2, 1]
    pixels = np.concatenate([blobs(5), blobs(5)])
    valid = np.arange(10) != 7
    assert as_set(duplicates.near_pairs(thumbnails(pixels), valid=valid)) == {(0, 5), (1, 6), (3, 8), (4, 9)}


def test_blank_pictures_are_not_compared() -> None:
    assert (
        len(duplicates.near_pairs(np.full((5, 32, 32), 90, np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None]))
        == 0
    )
    assert len(duplicates.near_pairs(np.zeros((0, 32, 32), np.uint8))) == 0
    assert len(duplicates.near_pairs(thumbnails(blobs(1)))) == 0


def test_pictures_that_share_most_of_their_look_are_not_copies() -> None:
    """One bright frame around different detail, as with cells, slides or products on white."""
    rng = np.random.default_rng(0)
    frame = np.zeros((300, 48, 48), np.float64)
    frame[:, 8:40, 8:40] = 150
    detail = blobs(300, seed=3)[..., 0] * 0.25
    pictures = (frame + detail + rng.normal(size=(300, 48, 48))).clip(0, 255).astype(np.uint8)
    assert len(duplicates.near_pairs(thumbnails(np.repeat(pictures[..., None], 3, 3)))) <= 1


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", 16)
    pictures, _ = planted(blobs(200), cropped, 4)
    small = thumbnails(pictures)
    one, two = duplicates.near_pairs(small, workers=1), duplicates.near_pairs(small, workers=4)
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", 100)
    monkeypatch.setattr(duplicates, "CHUNK_PAIRS", 50)
    three = duplicates.near_pairs(small)
    for other in (two, three):
        assert as_set(one) == as_set(other)
        np.testing.assert_allclose(one.agreement, other.agreement, atol=1e-4)


def test_a_film_of_equal_frames_gives_few_pairs_and_touches_every_frame() -> None:
    rng = np.random.default_rng(0)
    film = np.repeat(blobs(1), 300, axis=0)
    film = (film.astype(int) + rng.integers(-3, 4, film.shape)).clip(0, 255).astype(np.uint8)
    parts = np.arange(300) % 2
    found = duplicates.near_pairs(thumbnails(film), parts=parts)
    assert len(found) <= 300 * 2 * duplicates.MAX_PARTNERS
    assert set(found.left) | set(found.right) == set(range(300))
    across = parts[found.left] != parts[found.right]
    assert set(found.left[across]) | set(found.right[across]) == set(range(300))


def test_a_mirrored_hash_is_the_hash_of_the_mirror_image() -> None:
    small = thumbnails(blobs(100))
    both = np.concatenate([small, small[:, :, ::-1]])
    hashes = duplicates.perceptual_hashes(both)
    assert (np.bitwise_count(hashes[:100] ^ hashes[100:] ^ duplicates._mirror_mask()) <= 2).all()
    distance = np.bitwise_count(hashes[:50, None] ^ hashes[None, 50:100])
    assert 28 < distance.mean() < 36


def test_registration_undoes_shifts_and_stretches() -> None:
    pictures = [Image.fromarray(one) for one in blobs(60, side=128)]
    detail = Detail.over(thumbnails(pictures))
    moved = [picture.crop((3, 1, 125, 124)) for picture in pictures]
    assert detail.agreement(thumbnails(pictures), thumbnails(moved)).min() > 0.9
    assert abs(detail.agreement(thumbnails(pictures), thumbnails(pictures[1:] + pictures[:1])).mean()) < 0.2


def features_case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs whose agreement is in the grey zone, and features that call half of them equal."""
    rng = np.random.default_rng(0)
    base, other = blobs(300, seed=1)[..., 0].astype(float), blobs(300, seed=2)[..., 0].astype(float)
    mixed = base[:40] + 0.42 * (other[:40] - 128)
    pixels = np.concatenate([base, mixed]).clip(0, 255).astype(np.uint8)
    features = rng.normal(size=(340, 32)).astype(np.float32)
    features[300:320] = features[:20] + 0.05 * rng.normal(size=(20, 32))
    return thumbnails(np.repeat(pixels[..., None], 3, 3)), features, np.arange(340) < 320


def test_features_settle_what_thumbnails_leave_open() -> None:
    small, features, _ = features_case()
    plain, helped = as_set(duplicates.near_pairs(small)), as_set(duplicates.near_pairs(small, features=features))
    alike = {(i, 300 + i) for i in range(20)}
    unlike = {(i, 300 + i) for i in range(20, 40)}
    assert len(helped & alike) > len(plain & alike), "close features accept what is below the bar"
    assert len(helped & unlike) <= len(plain & unlike)
