"""Every form of picture against pixels that were computed without the code under test."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart.data import images
from warmstart.errors import DataError

RNG = np.random.default_rng(7)
GREY = RNG.integers(0, 256, (9, 14), dtype=np.uint8)
RGB = RNG.integers(0, 256, (9, 14, 3), dtype=np.uint8)
WIDE = RNG.integers(0, 65536, (9, 14), dtype=np.uint16)


def pixels(item: object, **options: int) -> np.ndarray:
    picture = images.open_picture(item, **options)  # type: ignore[arg-type]
    assert picture.mode == "RGB"
    return np.asarray(picture)


def encoded(picture: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=2)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by the standard, without Pillow."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_rgb_files_without_loss(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels(encoded(PIL.Image.fromarray(RGB), kind, **options)), RGB)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
def test_tiff_compressions(compression: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    PIL.Image.fromarray(RGB).save(path, compression=compression)
    np.testing.assert_array_equal(pixels(path), RGB)


def test_jpeg_is_close_and_jpeg_grey_has_equal_channels() -> None:
    ramp = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    found = pixels(encoded(PIL.Image.fromarray(ramp), "JPEG", quality=95)).astype(int)
    assert abs(found - grey_to_rgb(ramp)).max() <= 4
    assert (found[..., 0] == found[..., 2]).all()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_greyscale(kind: str) -> None:
    np.testing.assert_array_equal(pixels(encoded(PIL.Image.fromarray(GREY), kind)), grey_to_rgb(GREY))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_one_bit(kind: str) -> None:
    bits = GREY > 127
    expected = grey_to_rgb(np.where(bits, 255, 0))
    np.testing.assert_array_equal(pixels(encoded(PIL.Image.fromarray(bits), kind)), expected)


def test_palette_and_palette_with_transparency() -> None:
    colours = RNG.integers(0, 256, (8, 3), dtype=np.uint8)
    index = RNG.integers(0, 8, (9, 14), dtype=np.uint8)
    picture = PIL.Image.fromarray(index, "L").convert("L")
    picture = PIL.Image.frombytes("P", (14, 9), index.tobytes())
    picture.putpalette(colours.tobytes())
    np.testing.assert_array_equal(pixels(encoded(picture, "PNG")), colours[index])
    alpha = np.array([0, 255, 100, 255, 255, 255, 255, 255], np.uint8)
    found = pixels(encoded(picture, "PNG", transparency=alpha.tobytes()))
    assert abs(found - on_white(colours[index], alpha[index])).max() <= 1
    one = pixels(encoded(picture, "PNG", transparency=3))
    np.testing.assert_array_equal(one, np.where((index == 3)[..., None], 255, colours[index]))


def test_alpha_is_composed_on_white() -> None:
    alpha = RNG.integers(0, 256, (9, 14), dtype=np.uint8)
    alpha[0], alpha[1] = 0, 255
    rgba = np.dstack([RGB, alpha])
    for item in (encoded(PIL.Image.fromarray(rgba), "PNG"), encoded(PIL.Image.fromarray(rgba), "TIFF"), rgba):
        found = pixels(item).astype(int)
        assert abs(found - on_white(RGB, alpha)).max() <= 1
        assert (found[0] == 255).all()
        np.testing.assert_array_equal(found[1], RGB[1])
    la = PIL.Image.merge("LA", [PIL.Image.fromarray(GREY), PIL.Image.fromarray(alpha)])
    for item in (encoded(la, "PNG"), np.dstack([GREY, alpha])):
        assert abs(pixels(item) - on_white(grey_to_rgb(GREY), alpha)).max() <= 1


def test_one_transparent_colour_of_grey_and_rgb_png() -> None:
    grey = encoded(PIL.Image.fromarray(GREY), "PNG", transparency=int(GREY[2, 3]))
    np.testing.assert_array_equal(pixels(grey), grey_to_rgb(np.where(GREY[2, 3] == GREY, 255, GREY)))
    rgb = encoded(PIL.Image.fromarray(RGB), "PNG", transparency=tuple(int(v) for v in RGB[2, 3]))
    expected = RGB.copy()
    expected[(RGB[2, 3] == RGB).all(axis=2)] = 255
    np.testing.assert_array_equal(pixels(rgb), expected)


def test_webp_with_alpha() -> None:
    rgba = np.dstack([RGB, np.where(GREY > 127, 255, 0).astype(np.uint8)])
    data = encoded(PIL.Image.fromarray(rgba), "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(pixels(data), on_white(RGB, rgba[..., 3]).astype(np.uint8))


def cmyk_to_rgb(ink: np.ndarray) -> np.ndarray:
    ink = ink.astype(float) / 255
    return 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])


def test_cmyk_tiff_and_adobe_jpeg() -> None:
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[:8, :, 0], ink[8:, :, 1], ink[:, 8:, 3] = 200, 90, 60  # blocks of 8 survive JPEG
    picture = PIL.Image.frombytes("CMYK", (16, 16), ink.tobytes())
    assert abs(pixels(encoded(picture, "TIFF")) - cmyk_to_rgb(ink)).max() <= 2
    jpeg = encoded(picture, "JPEG", quality=100)
    assert b"Adobe" in jpeg[:64], "libjpeg marks CMYK as Adobe's, which stores it inverted"
    assert abs(pixels(jpeg) - cmyk_to_rgb(ink)).max() <= 4


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiff(order: str, tmp_path: Path) -> None:
    """An uncompressed 16-bit grey TIFF in both byte orders, written by hand."""
    data = WIDE.astype(f"{order}u2").tobytes()
    tags = [(256, 3, 14), (257, 3, 9), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 9)]
    tags.append((279, 4, len(data)))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    body = magic + struct.pack(f"{order}I", 8 + len(data)) + data + struct.pack(f"{order}H", len(tags))
    for tag, kind, value in tags:
        body += struct.pack(f"{order}HHI", tag, kind, 1)
        body += struct.pack(f"{order}I", value) if kind == 4 else struct.pack(f"{order}HH", value, 0)
    (tmp_path / "a.tif").write_bytes(body + b"\0\0\0\0")
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif"), grey_to_rgb(np.rint(WIDE / 257)))


def test_sixteen_bit_png_grey_and_rgb() -> None:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in WIDE)
    np.testing.assert_array_equal(pixels(png(14, 9, 16, 0, rows)), grey_to_rgb(np.rint(WIDE / 257)))
    colour = RNG.integers(0, 65536, (9, 14, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in colour)
    assert abs(pixels(png(14, 9, 16, 2, rows)) - colour / 257).max() <= 1, "Pillow keeps the high byte"


def test_thirty_two_bit_integers_are_sixteen_bits_or_refused() -> None:
    picture = PIL.Image.fromarray(WIDE.astype(np.int32))
    assert picture.mode == "I"
    np.testing.assert_array_equal(pixels(encoded(picture, "TIFF")), grey_to_rgb(np.rint(WIDE / 257)))
    beyond = PIL.Image.fromarray(WIDE.astype(np.int32) + 70_000)
    with pytest.raises(images.Unreadable, match=r"integer pixels from \d+ to \d+, expected 8 or 16 bits"):
        images.open_picture(encoded(beyond, "TIFF"))


def test_floats_are_refused_because_their_range_is_unknown() -> None:
    with pytest.raises(images.Unreadable, match="32-bit float pixels, whose range is unknown"):
        images.open_picture(encoded(PIL.Image.fromarray(GREY.astype(np.float32)), "TIFF"))
    with pytest.raises(images.Unreadable, match=r"an array of float64, expected uint8 or uint16: \(x \* 255\)"):
        images.open_picture(GREY / 255)


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "lazy"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    blocks = np.kron(RNG.integers(0, 256, (3, 5)), np.ones((16, 16))).astype(np.uint8)
    stored = grey_to_rgb(blocks)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(kind, {})
    data = encoded(PIL.Image.fromarray(stored), "PNG" if kind == "lazy" else kind, exif=exif, **options)
    found = pixels(PIL.Image.open(io.BytesIO(data)) if kind == "lazy" else data).astype(int)
    expected = TURNS[orientation](stored)
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= (2 if kind == "JPEG" else 0)


def test_gif_gives_its_first_frame() -> None:
    frames = [PIL.Image.fromarray(np.full((6, 6), value, np.uint8)) for value in (10, 200, 90)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(data) == 10).all()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, grey_to_rgb(GREY)),
        (GREY[..., None], grey_to_rgb(GREY)),
        (RGB, RGB),
        (RGB[:, ::-1], RGB[:, ::-1]),
        (WIDE, grey_to_rgb(np.rint(WIDE / 257))),
        (GREY > 9, grey_to_rgb((GREY > 9) * 255)),
        (RGB.astype(np.uint16) * 257, RGB),
    ],
)
def test_arrays(array: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(pixels(array), expected)


@pytest.mark.parametrize("shape", [(3,), (4, 5, 6), (1, 2, 3, 3), (0, 4), (0, 4, 3)])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(images.Unreadable, match=r"an array of shape .* expected \(H, W\) or \(H, W, 1 to 4\)"):
        images.open_picture(np.zeros(shape, np.uint8))


SAMPLES = {
    kind: encoded(PIL.Image.fromarray(np.kron(RGB, np.ones((4, 4, 1), np.uint8))), kind)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
}
SAMPLES["LZW"] = encoded(PIL.Image.fromarray(RGB), "TIFF", compression="tiff_lzw")
SAMPLES["progressive"] = encoded(PIL.Image.fromarray(RGB), "JPEG", progressive=True)


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_a_cut_file_is_unreadable_and_never_half_a_picture(kind: str) -> None:
    """Cut anywhere: either all pixels are there (only a trailer is missing) or the file is refused."""
    data = SAMPLES[kind]
    whole, refused = pixels(data), 0
    for end in {*range(0, len(data), max(1, len(data) // 150)), *range(len(data) - 12, len(data))}:
        try:
            found = pixels(data[:end])
        except images.Unreadable as error:
            refused += 1
            assert error.reason
        else:
            np.testing.assert_array_equal(found, whole, err_msg=f"{kind} cut at {end} of {len(data)}")
    assert refused > 100


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1))
def test_hostile_bytes_give_a_picture_or_a_reason(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(SAMPLES[kind])
    for at, value in changes:
        data[at % len(data)] = value
    try:
        pixels(bytes(data), max_pixels=1_000_000)
    except images.Unreadable as error:
        assert "\n" not in error.reason


def test_reasons(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.jpg").write_bytes(SAMPLES["JPEG"][:-200])
    (tmp_path / "code.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    reasons = {}
    for name in ("empty.jpg", "text.jpg", "cut.jpg", "code.png", "none.jpg"):
        with pytest.raises(images.Unreadable) as caught:
            images.open_picture(tmp_path / name)
        reasons[name] = caught.value.reason
    assert reasons["empty.jpg"] == "zero bytes"
    assert reasons["text.jpg"] == "not a JPEG, PNG, WebP, BMP, TIFF or GIF picture"
    assert reasons["cut.jpg"].startswith("truncated (")
    assert reasons["code.png"] == reasons["text.jpg"], "PostScript must never reach its interpreter"
    assert reasons["none.jpg"] == "cannot be read: no such file or directory"


def test_bombs_are_refused_before_they_are_decoded_and_without_warnings() -> None:
    bomb = png(60_000, 60_000, 1, 0, b"")
    before = PIL.Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(images.Unreadable, match="60000 × 60000 pixels are more than max_pixels=178956970"):
            images.open_picture(bomb)
        with pytest.raises(images.Unreadable, match="truncated"):
            images.open_picture(png(10_000, 10_000, 1, 0, b""))  # between Pillow's warning and its error
        with pytest.raises(images.Unreadable, match="14 × 9 pixels"):
            images.open_picture(RGB, max_pixels=100)
    assert caught == []
    assert before == PIL.Image.MAX_IMAGE_PIXELS


def test_warnings_of_pillow_do_not_leak_from_threads_and_filters_are_restored() -> None:
    index = PIL.Image.frombytes("P", (14, 9), (GREY % 8).tobytes())
    index.putpalette(RGB[0].tobytes())
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9
    data = encoded(PIL.Image.fromarray(RGB), "JPEG", exif=exif)
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=lambda: [pixels(data) for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert caught == []
    assert list(warnings.filters) == before


def test_accepting_truncated_files_globally_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError) as caught:
        images.open_picture(SAMPLES["PNG"])
    assert str(caught.value) == (
        "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, so half a picture would pass for a whole one\n"
        "  fix: set PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False before reading pictures"
    )


def test_content_hash_is_of_content(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(SAMPLES["PNG"])
    (tmp_path / "b.jpg").write_bytes(SAMPLES["PNG"])
    hashes = {images.content_hash(item) for item in (tmp_path / "a.png", tmp_path / "b.jpg", SAMPLES["PNG"])}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 16
    assert images.content_hash(GREY) != images.content_hash(GREY.T.copy())
    assert images.content_hash(GREY.reshape(14, 9)) != images.content_hash(GREY)
    assert images.content_hash(np.ascontiguousarray(RGB[:, ::-1])) == images.content_hash(RGB[:, ::-1])
    picture = PIL.Image.fromarray(RGB)
    assert images.content_hash(picture) == images.content_hash(picture.copy())
    assert images.content_hash(picture) != images.content_hash(picture.transpose(PIL.Image.Transpose.ROTATE_180))


def test_sniff_names_the_format_by_its_bytes() -> None:
    names = {kind: images.sniff(data) for kind, data in SAMPLES.items()}
    assert names["PNG"] == "PNG"
    assert names["WEBP"] == "WebP"
    assert names["LZW"] == names["TIFF"] == "TIFF"
    assert images.sniff(b"hello") is None
