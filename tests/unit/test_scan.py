"""The one pass over the files: what is found, what is set aside, and what is remembered."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from warmstart import runtime
from warmstart.data import Dataset, images, scan
from warmstart.data.scan import Scan

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def of(*paths: Path) -> Dataset:
    return Dataset([path.name for path in paths], list(paths))


def save(path: Path, pixels: np.ndarray = PIXELS, *, aged: bool = True, **how: object) -> Path:
    Image.fromarray(pixels).save(path, **how)
    if aged:
        os.utime(path, (1_000_000, 1_000_000))
    return path


def encoded(kind: str) -> bytes:
    data = io.BytesIO()
    Image.fromarray(PIXELS).save(data, kind)
    return data.getvalue()


def test_columns_say_what_a_picture_is(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    found = scan.scan(of(path))
    assert found.sizes.tolist() == [[30, 20]]
    assert found.rows["mode"].tolist() == [b"RGB"]
    assert found.rows["file_bytes"].tolist() == [path.stat().st_size]
    assert found.content_hash[0].tobytes() == images.content_hash(path)
    assert found.thumbnails.shape == (1, 32, 32)
    assert found.readable.all()
    assert not found.notes


def test_equal_pixels_have_equal_hashes_whatever_the_file(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a.png"), save(tmp_path / "b.bmp"), save(tmp_path / "c.tiff")]
    found = scan.scan(Dataset(list("abcde"), [*paths, PIXELS, Image.fromarray(PIXELS)]))
    assert len(np.unique(found.pixel_hash, axis=0)) == 1
    assert len(np.unique(found.content_hash[:3], axis=0)) == 3


def test_the_same_bytes_in_another_shape_are_another_picture() -> None:
    found = scan.scan(Dataset(["a", "b"], [PIXELS, PIXELS.reshape(30, 20, 3)]))
    assert (found.pixel_hash[0] != found.pixel_hash[1]).any()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero": (lambda path: path.write_bytes(b""), "zero bytes"),
    "cut": (lambda path: path.write_bytes(encoded("PNG")[:400]), "truncated"),
    "text": (lambda path: path.write_text("hello"), "not a JPEG, PNG, WebP, BMP, TIFF or GIF picture"),
    "bomb": (lambda path: save(path, np.zeros((200, 200), np.uint8)), "are more than max_pixels=10000"),
    "missing": (lambda path: None, "cannot be read: no such file or directory"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_named_with_its_reason(tmp_path: Path, kind: str) -> None:
    make, reason = BROKEN[kind]
    path = tmp_path / "bad.png"
    make(path)
    found = scan.scan(of(save(tmp_path / "good.png"), path), max_pixels=10_000)
    assert list(found.errors) == [1]
    assert reason in found.errors[1]
    assert found.readable.tolist() == [True, False]
    assert not found.rows[1]["pixels"].any()


def test_a_wrong_extension_is_a_note_and_no_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded("PNG"))
    bare = tmp_path / "b"
    bare.write_bytes(encoded("GIF"))
    found = scan.scan(of(path, bare, save(tmp_path / "c.JPEG")))
    assert found.notes == {0: "is a PNG named .jpg", 1: "is a GIF named b"}
    assert not found.errors


def test_a_second_scan_decodes_nothing_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(tmp_path / f"{i}.png", PIXELS[i:]) for i in range(5)]
    first = scan.scan(of(*paths))
    monkeypatch.setattr(images, "open_picture", lambda *a, **k: pytest.fail("decoded again"))
    second = scan.scan(of(*paths[::-1]))
    assert (first.decoded, second.decoded) == (5, 0)
    assert (second.rows[::-1] == first.rows).all()


def test_what_changed_or_is_new_is_decoded_again(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.png", PIXELS[i:]) for i in range(3)]
    scan.scan(of(*paths))
    save(paths[1], PIXELS[10:])
    new = save(tmp_path / "new.png")
    found = scan.scan(of(*paths, new))
    assert found.decoded == 2
    assert found.sizes[1].tolist() == [30, 10]
    assert scan.scan(of(*paths, new)).decoded == 0


def test_a_file_that_may_still_change_and_one_that_failed_are_not_remembered(tmp_path: Path) -> None:
    fresh = save(tmp_path / "fresh.png", aged=False)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no")
    os.utime(bad, (1_000_000, 1_000_000))
    assert [scan.scan(of(fresh, bad)).decoded for _ in range(2)] == [2, 2]


def test_a_remembered_picture_still_obeys_max_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    assert not scan.scan(of(path)).errors
    assert "more than max_pixels=100 " in scan.scan(of(path), max_pixels=100).errors[0]


def test_every_flipped_byte_of_the_memory_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    first = scan.scan(of(path))
    (shard,) = (runtime.cache_root() / "scan").rglob("*.rows")
    whole = shard.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(whole), 60).tolist():
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        assert (scan.scan(of(path)).rows == first.rows).all()
        shard.write_bytes(whole[:at])
        assert (scan.scan(of(path)).rows == first.rows).all()


def test_a_memory_that_cannot_be_written_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "file"))
    assert scan.scan(of(save(tmp_path / "a.png"))).decoded == 1


def shards() -> list[Path]:
    return list((runtime.cache_root() / "scan").rglob("*.rows"))


def test_many_small_scans_are_merged_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "MAX_SHARDS", 4)
    paths = [save(tmp_path / f"{i}.png", PIXELS[i:]) for i in range(10)]
    for path in paths:
        scan.scan(of(path))
    assert len(shards()) <= 4
    assert scan.scan(of(*paths)).decoded == 0


def test_a_long_scan_is_remembered_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "SHARD_ROWS", 2)
    monkeypatch.setattr(scan, "CHUNK", 2)
    paths = [save(tmp_path / f"{i}.png", PIXELS[i:]) for i in range(6)]

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan.scan(of(*paths), progress=stop)
    assert scan.scan(of(*paths)).decoded == 2


def test_the_oldest_memory_leaves_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / name for name in "abc"]
    monkeypatch.setattr(scan, "LIMIT_BYTES", 2 * (scan.STORED.itemsize + scan.CHECKSUM_BYTES))
    paths = []
    for age, folder in enumerate(folders):
        folder.mkdir()
        paths.append(save(folder / "x.png"))
        before = set(shards())
        scan.scan(of(paths[-1]))
        for shard in set(shards()) - before:
            os.utime(shard, (age + 1, age + 1))
    assert [scan.scan(of(path)).decoded for path in paths[1:]] == [0, 0]
    assert scan.scan(of(paths[0])).decoded == 1


def test_threads_and_order_change_nothing(tmp_path: Path) -> None:
    inputs = [*RNG.integers(0, 256, (150, 8, 8, 3), dtype=np.uint8), np.zeros((4, 4), np.float32)]
    dataset = Dataset([str(i) for i in range(151)], inputs)
    seen: list[tuple[int, int]] = []
    one = scan.scan(dataset, workers=1, progress=lambda done, total: seen.append((done, total)))
    two = scan.scan(dataset, workers=4)
    assert (one.rows == two.rows).all()
    assert one.errors == two.errors
    assert "float32" in one.errors[150]
    assert seen == [(64, 151), (128, 151), (151, 151)]


def test_take_keeps_rows_errors_and_notes_together() -> None:
    whole = Scan(np.zeros(5, scan.ROW), {3: "cut"}, {1: "odd"})
    part = whole.take(np.array([3, 1]))
    assert (len(part), part.errors, part.notes) == (2, {0: "cut"}, {1: "odd"})
    assert len(whole.take(whole.readable)) == 4


def test_an_empty_dataset_is_scanned() -> None:
    assert len(scan.scan(Dataset([], []))) == 0
