"""One door for pictures: whatever a reader found becomes an upright 8-bit RGB picture, or a reason why not.

Formats are recognised by their first bytes, never by the file's name, and opened by Pillow's own class for that format:
so a harmless suffix cannot start an interpreter (PostScript), and Pillow's process-wide limits stay as they are.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from warmstart.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from warmstart.data import Input

MAX_PIXELS = 178_956_970
"""Two times Pillow's own warning level: half a gigabyte once decoded."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"})
"""Lower-case suffixes that readers take for pictures."""
FORMATS = "JPEG, PNG, WebP, BMP, TIFF or GIF"
ORIENTATION_TAG = 0x0112
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG", "JpegImagePlugin", "JpegImageFile"),
    (b"\x89PNG\r\n\x1a\n", "PNG", "PngImagePlugin", "PngImageFile"),
    (b"GIF87a", "GIF", "GifImagePlugin", "GifImageFile"),
    (b"GIF89a", "GIF", "GifImagePlugin", "GifImageFile"),
    (b"II*\x00", "TIFF", "TiffImagePlugin", "TiffImageFile"),
    (b"MM\x00*", "TIFF", "TiffImagePlugin", "TiffImageFile"),
    (b"II+\x00", "TIFF", "TiffImagePlugin", "TiffImageFile"),
    (b"MM\x00+", "TIFF", "TiffImagePlugin", "TiffImageFile"),
    (b"BM", "BMP", "BmpImagePlugin", "BmpImageFile"),
)
_LOAD = threading.Lock()


class Unreadable(Exception):  # noqa: N818 it says what the picture is
    """A picture that cannot be decoded as it is.

    Args:
        reason: Why, in a phrase that can stand after the file's name.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def open_picture(item: Input, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode any input as a person would see it: upright, 8 bits, RGB, on a white ground.

    Sixteen bits are divided by 257 and rounded (Pillow itself keeps the high byte of 16-bit colour, at most one level
    away), alpha is composed on white, a GIF gives its first frame, CMYK is converted without its colour profile.

    Args:
        item: A file, its bytes, an array of pixels or a picture.
        max_pixels: Larger pictures are refused before they are decoded.

    Raises:
        Unreadable: Zero bytes, truncated, not a picture, too large, or numbers whose range is unknown (floats).
        DataError: Pillow was told to accept truncated files, so that none could be told from whole ones.
    """
    if isinstance(item, np.ndarray):
        return from_array(item, max_pixels=max_pixels)
    _refuse_truncated_mode()
    with _quiet():
        if not isinstance(item, (Path, bytes)):
            return _from_picture(item, max_pixels)
        data = read_bytes(item)
        try:
            picture = _open(data)
            _check_size(*picture.size, max_pixels)
            picture.load()
            return _to_rgb(_upright(picture))
        except Unreadable:
            raise
        except Exception as error:  # hostile bytes make decoders raise anything; whatever it is, the file is unreadable
            raise Unreadable(_reason(error)) from error


def from_array(pixels: np.ndarray, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Make a picture of an array of pixels.

    Raises:
        Unreadable: Another shape or dtype. Floats are refused because 0 to 1 and 0 to 255 look alike to a program.

    Shape:
        pixels: uint8, uint16 or bool, (H, W) or (H, W, 1|2|3|4): grey, grey + alpha, RGB, RGBA.
    """
    import PIL.Image

    if pixels.dtype not in (np.uint8, np.uint16, np.bool_):
        raise Unreadable(f"an array of {pixels.dtype}, expected uint8 or uint16: (x * 255).astype('uint8') if 0 to 1")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 2, 3, 4)) or 0 in pixels.shape:
        raise Unreadable(f"an array of shape {pixels.shape}, expected (H, W) or (H, W, 1 to 4)")
    _check_size(pixels.shape[1], pixels.shape[0], max_pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return _to_rgb(PIL.Image.fromarray(np.ascontiguousarray(_to_8_bit(pixels))))


def read_bytes(item: Input) -> bytes:
    """Return the bytes behind an input: the file, the bytes themselves, or the pixels in row order.

    Raises:
        Unreadable: The file is missing, forbidden or has zero bytes.
    """
    if isinstance(item, np.ndarray):
        return item.tobytes()
    if not isinstance(item, (Path, bytes)):
        with _LOAD:
            return item.tobytes()
    try:
        data = item if isinstance(item, bytes) else item.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    if not data:
        raise Unreadable("zero bytes")
    return data


def content_hash(item: Input) -> bytes:
    """Hash what is there, not what it is called: 16 bytes, equal for equal files or equal arrays.

    Raises:
        Unreadable: See `read_bytes`.
    """
    state = hashlib.blake2b(read_bytes(item), digest_size=16)
    if isinstance(item, np.ndarray):
        state.update(f"array {item.shape} {item.dtype.str}".encode())
    elif not isinstance(item, (Path, bytes)):
        palette = item.getpalette("RGBA") if item.mode in ("P", "PA") else None
        facts = (item.size, item.mode, palette, item.info.get("transparency"), _orientation(item))
        state.update(f"picture {facts}".encode())
    return state.digest()


def sniff(data: bytes) -> str | None:
    """Name the format that the first bytes announce, or None."""
    found = _signature(data)
    return found[0] if found else None


def _signature(data: bytes) -> tuple[str, str, str] | None:
    for magic, name, module, cls in _SIGNATURES:
        if data.startswith(magic):
            return name, module, cls
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP", "WebPImagePlugin", "WebPImageFile"
    return None


def _open(data: bytes) -> Image:
    found = _signature(data)
    if found is None:
        raise Unreadable(f"not a {FORMATS} picture")
    opened: Image = getattr(importlib.import_module(f"PIL.{found[1]}"), found[2])(BytesIO(data))
    return opened


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Unreadable(f"{width} × {height} pixels are more than max_pixels={max_pixels} (a decompression bomb?)")


def _from_picture(picture: Image, max_pixels: int) -> Image:
    _check_size(*picture.size, max_pixels)
    try:
        with _LOAD:  # a lazily opened picture may be asked for by two threads at once
            picture.load()
        return _to_rgb(_upright(picture))
    except Exception as error:  # as above: lazily opened pictures decode hostile bytes here
        raise error if isinstance(error, Unreadable) else Unreadable(_reason(error)) from error


def _orientation(picture: Image) -> int:
    try:
        return int(picture.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 damaged EXIF says nothing about the pixels, which are there
        return 1


def _upright(picture: Image) -> Image:
    """Turn a picture as its EXIF orientation says; Pillow has already turned TIFFs and removed their tag."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image) -> Image:
    import PIL.Image

    if picture.mode == "F":
        raise Unreadable("32-bit float pixels, whose range is unknown: convert it to 8 or 16 bits")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return PIL.Image.fromarray(_to_8_bit(_integers(picture))).convert("RGB")
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        alpha = picture.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", alpha.size, "white"), alpha).convert("RGB")
    return picture if type(picture) is PIL.Image.Image and picture.mode == "RGB" else picture.convert("RGB")


def _integers(picture: Image) -> np.ndarray:
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 65535:
        raise Unreadable(f"integer pixels from {values.min()} to {values.max()}, expected 8 or 16 bits")
    return values.astype(np.uint16)


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _reason(error: Exception) -> str:
    text = str(error).replace("\n", " ").strip()
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"truncated ({text})" if text else "truncated"
    return f"damaged ({text or type(error).__name__})"


def _refuse_truncated_mode() -> None:
    from PIL import ImageFile

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, so half a picture would pass for a whole one",
            "set PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False before reading pictures",
        )


class _Silence:
    """How many threads are decoding, and the one filter that hides Pillow's warnings meanwhile.

    `warnings.catch_warnings` restores a snapshot, so two threads that overlap would leave each other's filters behind.
    Remove when Python 3.14 (context-local filters) is the floor.
    """

    lock = threading.Lock()
    depth = 0
    entry: object = None


@contextmanager
def _quiet() -> Iterator[None]:
    with _Silence.lock:
        _Silence.depth += 1
        if _Silence.depth == 1:
            warnings.filterwarnings("ignore", module=r"PIL\b")
            _Silence.entry = warnings.filters[0]
    try:
        yield
    finally:
        with _Silence.lock:
            _Silence.depth -= 1
            if _Silence.depth == 0 and _Silence.entry in warnings.filters:
                warnings.filters.remove(_Silence.entry)  # type: ignore[attr-defined]
