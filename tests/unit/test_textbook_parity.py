"""The textbook recipes against plain PyTorch loops: same data order and same initial head give the same losses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from torch import Tensor, nn
from torchvision import transforms

import textbook
from warmstart import plugins, runtime, workflow
from warmstart.data import loading, read

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TRAIN, VAL, SIZE, RESIZE, SEED = 42, 12, 32, 40, 5
"""Train is no multiple of any batch size here, so that each epoch ends with a smaller batch."""
TOLERANCE = 1e-5
HEADS = {"test_resnet": "fc", "test_vit": "head", "test_efficientnet": "classifier"}
"""Small networks of timm → where their classifier is."""


@dataclass(frozen=True)
class Case:
    """One recipe against its listing."""

    recipe: str
    listing: Callable[..., textbook.Trained]
    epochs: int
    batch_size: int
    num_classes: int = 3
    arch: str = "test_resnet"
    drift: bool = False
    channels_last: bool = False
    """Give the listing the memory layout of the recipe's loop: where steps of Adam amplify rounding by thousands, equal
    arithmetic is the only fair comparison."""


CASES = {
    "1": Case("textbook_1_full", textbook.listing1, 2, 8),
    "1 on a transformer": Case("textbook_1_full", textbook.listing1, 2, 8, arch="test_vit"),
    "1 on mobile blocks": Case(
        "textbook_1_full", textbook.listing1, 2, 16, arch="test_efficientnet", channels_last=True
    ),
    "2": Case("textbook_2_cifar100", textbook.listing2, 10, 16),
    "2 with drifting statistics": Case("textbook_2_cifar100", textbook.listing2, 3, 16, drift=True),
    "2 on a transformer": Case("textbook_2_cifar100", textbook.listing2, 3, 16, arch="test_vit"),
    "3": Case("textbook_3_cifar10", textbook.listing3, 2, 4),
    "3 on mobile blocks": Case("textbook_3_cifar10", textbook.listing3, 2, 4, arch="test_efficientnet"),
    "4": Case("textbook_4_binary", textbook.listing4, 4, 32, num_classes=2),
    "4 with drifting statistics": Case("textbook_4_binary", textbook.listing4, 4, 32, num_classes=2, drift=True),
}


@pytest.mark.parametrize("name", CASES)
def test_recipe_has_the_losses_of_the_listing(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    data, weights = pictures(tmp_path / "photos", case.num_classes), tmp_path / "weights"
    network = saved_network(case, weights)
    ours = losses_of_recipe(case, data, weights, tmp_path / "run")
    theirs = losses_of_listing(case, network, data)
    assert len(ours) == len(theirs) == case.epochs * -(-TRAIN // case.batch_size)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_every_textbook_recipe_is_compared() -> None:
    assert {case.recipe for case in CASES.values()} == {path.stem for path in RECIPES.glob("textbook_*.toml")}


def pictures(folder: Path, num_classes: int) -> Path:
    """Write pictures of noise, brighter for higher classes, larger than the networks see and not square."""
    for split, count in (("train", TRAIN), ("val", VAL)):
        for number in range(count):
            label = number % num_classes
            noise = runtime.rng(number, split).integers(0, 160, (44, 56, 3)) + 40 * label
            path = folder / split / f"class{label}" / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.astype(np.uint8)).save(path)
    return folder


def saved_network(case: Case, folder: Path) -> nn.Module:
    """Build a network with random weights and a classifier, and save it as timm does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(case.arch, num_classes=case.num_classes)
    network.pretrained_cfg = {**network.pretrained_cfg, "interpolation": "bilinear"}
    save_for_hf(network, str(folder), model_config={"num_classes": case.num_classes}, safe_serialization=True)
    return network


def losses_of_recipe(case: Case, data: Path, weights: Path, out: Path) -> list[float]:
    overrides = [f"data.image_size={SIZE}", f"data.resize={RESIZE}"]
    overrides += ["strategy.batch_norm=adapt"] if case.drift else []
    workflow.finetune(
        data,
        recipe=RECIPES / f"{case.recipe}.toml",
        backbone=str(weights),
        epochs=case.epochs,
        batch_size=case.batch_size,
        seed=SEED,
        overrides=overrides,
        out=out,
    )
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def losses_of_listing(case: Case, network: nn.Module, data: Path) -> list[float]:
    options = {"num_classes": case.num_classes, "head": HEADS[case.arch], "drift": case.drift}
    if case.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if case.listing is textbook.listing1:
        options = {}
    else:
        same_head(network, case, data)
    return case.listing(network, Loader(case, network, data), num_epochs=case.epochs, **options).losses


def same_head(network: nn.Module, case: Case, data: Path) -> None:
    """Start the listing's head where the recipe's starts."""
    theirs = textbook.replace_head(network, case.num_classes, head=HEADS[case.arch])
    ours = plugins.load("task", "classification")().bind(read.read(data)).head(theirs.in_features, seed=SEED)
    theirs.load_state_dict(ours.linear.state_dict())


class Loader:
    """Pictures through torchvision's transforms, as the listings prepare them, in the order of the recipe's epochs."""

    def __init__(self, case: Case, network: nn.Module, data: Path) -> None:
        cfg = network.pretrained_cfg
        steps = [transforms.Resize(RESIZE), transforms.CenterCrop(SIZE), transforms.ToTensor()]
        prepare = transforms.Compose([*steps, transforms.Normalize(cfg["mean"], cfg["std"])])
        files = sorted((data / "train").rglob("*.png"))
        self.inputs = torch.stack([prepare(Image.open(file).convert("RGB")) for file in files])
        self.labels = torch.tensor([int(file.parent.name.removeprefix("class")) for file in files])
        self.batch_size, self.epoch = case.batch_size, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.from_numpy(loading.epoch_order(TRAIN, seed=SEED, epoch=self.epoch))
        self.epoch += 1
        for rows in order.split(self.batch_size):
            yield self.inputs[rows], self.labels[rows]
