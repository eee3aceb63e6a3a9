"""Transforms against torchvision's own, and batches that no worker count can change."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from warmstart import runtime
from warmstart.data import Dataset, loading, read, transforms
from warmstart.errors import DataError, RecipeError
from warmstart.models import InputSpec

RNG = np.random.default_rng(11)
SPEC = InputSpec(image_size=24)
MODES = {
    "nearest": v2.InterpolationMode.NEAREST,
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
}


def picture(width: int, height: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(
        np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    )


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.integers(0, 20),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_eval_equals_torchvisions_resize_and_centre_crop_bit_for_bit(
    width: int, height: int, size: int, more: int, mode: str
) -> None:
    spec = InputSpec(interpolation=mode)  # type: ignore[arg-type]
    source = picture(width, height)
    ours = transforms.for_eval(spec, image_size=size, resize=size + more)(source)
    theirs = v2.Compose([v2.Resize(size + more, MODES[mode]), v2.CenterCrop(size), v2.PILToTensor()])(source)
    assert ours.dtype == torch.uint8
    assert ours.shape == (3, size, size)
    assert ours.is_contiguous()
    assert torch.equal(ours, theirs)


def test_nearest_too_and_resize_defaults_to_the_image_size() -> None:
    source = picture(50, 37)
    ours = transforms.for_eval(replace(SPEC, interpolation="nearest"))(source)
    theirs = v2.Compose([v2.Resize(24, MODES["nearest"]), v2.CenterCrop(24), v2.PILToTensor()])(source)
    assert torch.equal(ours, theirs)


def test_squash_and_pad() -> None:
    source = picture(40, 20)
    squashed = transforms.for_eval(SPEC, fit="squash")(source)
    assert torch.equal(squashed, v2.functional.pil_to_tensor(source.resize((24, 24), PIL.Image.Resampling.BICUBIC)))
    padded = transforms.for_eval(SPEC, fit="pad")(source)
    assert torch.equal(
        padded[:, 6:18], v2.functional.pil_to_tensor(source.resize((24, 12), PIL.Image.Resampling.BICUBIC))
    )
    assert padded[:, 0, 0].tolist() == [124, 116, 104], "ImageNet's mean: zero after normalisation"
    assert transforms.for_eval(replace(SPEC, channels="BGR"), fit="pad")(source)[:, 0, 0].tolist() == [104, 116, 124]


def test_keys_tell_transforms_apart() -> None:
    made = [
        transforms.for_eval(SPEC),
        transforms.for_eval(SPEC, image_size=32),
        transforms.for_eval(SPEC, resize=32),
        transforms.for_eval(SPEC, fit="squash"),
        transforms.for_eval(SPEC, fit="pad"),
        transforms.for_eval(replace(SPEC, mean=(0.5, 0.5, 0.5)), fit="pad"),
        transforms.for_eval(replace(SPEC, interpolation="bilinear")),
        *(transforms.for_train(SPEC, augment=augment) for augment in ("flip", "standard", "strong")),  # type: ignore[arg-type]
    ]
    assert len({transform.key for transform in made}) == len(made)
    assert transforms.for_train(SPEC, augment="none").key == transforms.for_eval(SPEC).key
    assert transforms.for_eval(SPEC, image_size=24, resize=24).key == transforms.for_eval(SPEC).key


def test_sizes_that_contradict() -> None:
    with pytest.raises(RecipeError) as caught:
        transforms.for_eval(SPEC, image_size=32, resize=30)
    assert str(caught.value) == (
        "data.resize=30 is smaller than data.image_size=32, so the centre crop would reach outside\n"
        "  fix: data.resize=32 or more, or data.image_size=30"
    )
    with pytest.raises(RecipeError) as caught:
        transforms.for_train(replace(SPEC, fixed_size=True), image_size=32)
    assert str(caught.value) == ("data.image_size=32, but these weights take 24 pixels only\n  fix: data.image_size=24")


@pytest.mark.parametrize("augment", ["flip", "standard", "strong"])
def test_augmentation_is_fixed_by_its_generator_and_by_nothing_else(augment: transforms.Augment) -> None:
    transform, source = transforms.for_train(SPEC, augment=augment), picture(60, 45)
    assert transform.random
    torch.manual_seed(0)
    state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002 it must not be used
    draws = [[transform(source, np.random.default_rng(seed)) for seed in range(60)] for _ in range(2)]
    for first, second in zip(*draws, strict=True):
        assert torch.equal(first, second)
        assert first.shape == (3, 24, 24)
        assert first.dtype == torch.uint8
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]  # noqa: NPY002
    different = {draw.numpy().tobytes() for draw in draws[0]}
    assert len(different) == 2 if augment == "flip" else len(different) > 55


def test_flip_mirrors_half_of_the_pictures() -> None:
    transform, source = transforms.for_train(SPEC, augment="flip"), picture(24, 24)
    plain = v2.functional.pil_to_tensor(source)
    flipped = [torch.equal(transform(source, np.random.default_rng(seed)), plain.flip(2)) for seed in range(300)]
    assert 115 < sum(flipped) < 185


def test_every_strong_operation_runs_and_all_are_drawn() -> None:
    source = picture(24, 24)
    spoiled = {
        name: transforms._move(name, source, 0.7, (1, 2, 3))
        if name[-2:] in ("_x", "_y") or name == "rotate"
        else transforms._tone(name, source, 0.7, 1.0)
        for name in transforms.OPERATIONS
    }
    same = {name for name, changed in spoiled.items() if changed.tobytes() == source.tobytes()}
    assert same <= {"identity", "autocontrast"}, "a full-range picture has no contrast to gain"
    assert len(spoiled) == 14


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32))
def test_random_boxes_are_inside_and_of_allowed_shape(width: int, height: int, seed: int) -> None:
    left, top, w, h = transforms.random_box((width, height), np.random.default_rng(seed))
    assert w > 0
    assert h > 0
    assert left >= 0
    assert top >= 0
    assert left + w <= width
    assert top + h <= height


def test_random_boxes_are_distributed_as_torchvisions() -> None:
    ours = np.array([transforms.random_box((400, 300), np.random.default_rng(seed)) for seed in range(3000)])
    torch.manual_seed(0)
    crop, source = v2.RandomResizedCrop(24, scale=transforms.AREA, ratio=transforms.ASPECT), torch.zeros(3, 300, 400)
    drawn = [crop.make_params([source]) for _ in range(3000)]
    theirs = np.array([[box[key] for key in ("left", "top", "width", "height")] for box in drawn])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for row in range(40):
        path = tmp_path / "data" / "ab"[row % 2] / f"{row:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(RNG.integers(0, 256, (30 + row % 5, 33, 3), np.uint8)).save(path)
    return tmp_path / "data"


def loaded(
    data: Dataset, transform: transforms.Transform, *, workers: int, size: int = 7, epoch: int = 0
) -> tuple[torch.Tensor, np.ndarray]:
    order = loading.epoch_order(len(data), seed=3, epoch=epoch)
    row_batches = [order[at : at + size] for at in range(0, len(order), size)]
    found = list(loading.batches(data, row_batches, transform, seed=3, epoch=epoch, workers=workers))
    assert (
        [len(rows) for _, rows in found] == [len(pixels) for pixels, _ in found] == [len(rows) for rows in row_batches]
    )
    return torch.cat([pixels for pixels, _ in found]), np.concatenate([rows for _, rows in found])


@pytest.mark.parametrize("augment", ["none", "standard", "strong"])
def test_pixels_depend_on_seed_epoch_and_id_only(folder: Path, augment: transforms.Augment) -> None:
    data = read.read(folder)
    transform = transforms.for_train(SPEC, augment=augment)
    pixels, rows = loaded(data, transform, workers=0)
    np.testing.assert_array_equal(rows, loading.epoch_order(40, seed=3, epoch=0))
    for workers, size in ((1, 7), (3, 7), (2, 40), (4, 1)):
        again, same_rows = loaded(data, transform, workers=workers, size=size)
        assert torch.equal(again, pixels)
        np.testing.assert_array_equal(same_rows, rows)
    reordered = data.take(np.arange(40)[::-1])
    found, places = loaded(reordered, transform, workers=2)
    by_id = {reordered.ids[row]: found[at] for at, row in enumerate(places)}
    assert all(torch.equal(by_id[data.ids[row]], pixels[at]) for at, row in enumerate(rows))
    later, later_rows = loaded(data, transform, workers=2, epoch=1)
    assert not np.array_equal(later_rows, rows)
    changed = sum(not torch.equal(later[list(later_rows).index(row)], pixels[at]) for at, row in enumerate(rows))
    assert changed == 0 if augment == "none" else changed > 35


def test_the_generator_of_an_example_is_the_promised_one(folder: Path) -> None:
    data = read.read(folder)
    transform = transforms.for_train(SPEC, augment="standard")
    (pixels, _), *_ = loading.batches(data, [np.array([5])], transform, seed=9, epoch=4, workers=1)
    with PIL.Image.open(folder / data.ids[5]) as source:
        expected = transform(source.convert("RGB"), runtime.rng(9, "augment", 4, data.ids[5]))
    assert torch.equal(pixels[0], expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_undecodable_picture_is_named(folder: Path, workers: int) -> None:
    data = read.read(folder)
    (folder / "a" / "04.png").write_bytes((folder / "a" / "04.png").read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        list(loading.batches(data, [np.arange(40)], transforms.for_eval(SPEC), seed=0, epoch=0, workers=workers))
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{folder}/a/04.png cannot be decoded: truncated (")
    assert second == "  fix: repair or remove the file; `warmstart audit` lists all such files"


def test_prefetch_is_bounded_and_threads_end_with_the_iterator(folder: Path) -> None:
    data = read.read(folder)
    taken = []

    def endless() -> object:
        while True:
            taken.append(1)
            yield np.arange(16)

    before = threading.active_count()
    batches = loading.batches(data, endless(), transforms.for_eval(SPEC), seed=0, epoch=0, workers=2)  # type: ignore[arg-type]
    for _ in range(5):
        next(batches)
    assert len(taken) <= 5 + 2 * loading.AHEAD + 1
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_epoch_order_is_a_permutation_that_changes_with_seed_and_epoch() -> None:
    orders = [loading.epoch_order(50, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    np.testing.assert_array_equal(orders[0], loading.epoch_order(50, seed=0, epoch=0))


def test_an_empty_batch_is_a_batch() -> None:
    data = read.from_arrays(np.zeros((2, 5, 5), np.uint8))
    found = list(loading.batches(data, [np.zeros(0, np.int64)], transforms.for_eval(SPEC), seed=0, epoch=0, workers=1))
    assert [tuple(pixels.shape)[:2] for pixels, _ in found] == [(0, 3)]
