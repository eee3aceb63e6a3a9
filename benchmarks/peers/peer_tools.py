"""What the scripts of the peers share. It runs in their venvs, so it needs the standard library only at import.

A script is called as `peer_NAME.py DATA SECONDS OUT --weights FILE --seed N --started T`. Everything from the start of
the process to the last prediction has to fit SECONDS, as it has to for `warmstart run --budget`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

_IMPORTED = time.time()
SIZES = (224, 160, 128, 96)
EPOCHS = 3
"""A peer that fine-tunes gets the largest picture size at which it can do this many epochs."""
MARGIN = 0.85
"""Share of the time left that is planned for; the rest is for what no measurement sees."""
MEASURED_AT = 128
END_SECONDS = 2.0
"""Writing the answers and ending the process."""


@dataclass(frozen=True)
class Job:
    """What a peer has to do."""

    data: Path
    seconds: float
    out: Path
    weights: Path
    seed: int
    started: float
    variant: str

    @property
    def classes(self) -> list[str]:
        """Names of the classes, sorted."""
        return sorted(path.name for path in (self.data / "train").iterdir())

    @property
    def train(self) -> list[tuple[Path, int]]:
        """Training files, each with the number of its class."""
        classes = self.classes
        return [(path, classes.index(path.parent.name)) for path in sorted((self.data / "train").glob("*/*"))]

    @property
    def test(self) -> list[Path]:
        """Test files, without labels."""
        return sorted((self.data / "test").iterdir())

    def left(self) -> float:
        """Return the seconds left for everything."""
        return self.seconds - END_SECONDS - (time.time() - self.started)

    def answer(self, classes: Sequence[str], facts: Mapping[str, object]) -> None:
        """Write the class of each test file, in the order of `test`."""
        names = [path.name for path in self.test]
        predictions = dict(zip(names, classes, strict=True))
        self.out.write_text(json.dumps({"predictions": predictions, "facts": dict(facts)}))


def job() -> Job:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--started", type=float, default=_IMPORTED)
    parser.add_argument("--variant", default="")
    return Job(**vars(parser.parse_args()))


def lite0(job: Job, *, num_classes: int) -> nn.Module:
    """Build EfficientNet-Lite0 with its weights; its head is new, or left out with 0 classes."""
    import timm
    from safetensors.torch import load_file

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=num_classes)
    tensors = {name: value for name, value in load_file(job.weights).items() if not name.startswith("classifier.")}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith("classifier.") for name in missing), missing
    return network


def transform(size: int) -> Callable[[Image], Tensor]:
    """Return what the listings do to a picture, with the network's own mean and deviation."""
    from torchvision import transforms

    steps = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize((0.5,) * 3, (0.5,) * 3)])


class Pictures:
    """Files as a torch dataset of pixels and class numbers; -1 for a test file."""

    def __init__(self, files: Sequence[tuple[Path, int]], transform: Callable[[Image], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        from PIL import Image

        path, label = self.files[row]
        return self.transform(Image.open(path).convert("RGB")), label


@dataclass(frozen=True)
class Pace:
    """Seconds per picture at the size that was measured; other sizes go by their area."""

    forward: float
    train: float

    def seconds(self, num: int, size: int, *, training: bool) -> float:
        """Return the seconds of one pass over pictures."""
        return num * (self.train if training else self.forward) * (size / MEASURED_AT) ** 2


def pace(network: nn.Module, batch_size: int = 32) -> Pace:
    """Time a forward pass and a training step on noise; the network is left as it was."""
    import copy

    import torch

    twin = copy.deepcopy(network)
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    pixels = torch.randn(batch_size, 3, MEASURED_AT, MEASURED_AT, generator=torch.Generator().manual_seed(0))

    def forward() -> None:
        with torch.no_grad():
            twin.eval()(pixels)

    return Pace(_seconds(forward) / batch_size, _seconds(lambda: twin.train()(pixels).mean().backward()) / batch_size)


def largest(cost: Callable[[int], float], allowed: float, sizes: Sequence[int] = SIZES) -> int:
    """Return the largest size whose cost in seconds is allowed, or the smallest."""
    return next((size for size in sizes if cost(size) <= allowed), sizes[-1])


def planned(job: Job, paces: Pace, *, fixed_epochs: float = 0.0, share: float = 1.0) -> tuple[int, int, float]:
    """Decide the picture size and the epochs of fine-tuning everything.

    Args:
        job: Says how much time and how many pictures there are.
        paces: Of the network.
        fixed_epochs: Epochs' worth of forward passes on top, such as those of a frozen start.
        share: Part of the training pictures that is trained on; the others are validated on after each epoch.

    Returns:
        The size, the epochs, at least 1, and the seconds to keep for test.
    """
    num = len(job.train)

    def epoch(size: int) -> float:
        trained, validated = paces.seconds(round(num * share), size, training=True), round(num * (1 - share))
        return trained + paces.seconds(validated, size, training=False)

    def fixed(size: int) -> float:
        test = paces.seconds(len(job.test), size, training=False)
        return test + fixed_epochs * paces.seconds(num, size, training=False)

    allowed = MARGIN * job.left()
    size = largest(lambda size: EPOCHS * epoch(size) + fixed(size), allowed)
    epochs = max(1, int((allowed - fixed(size)) / epoch(size)))
    return size, epochs, 1.2 * paces.seconds(len(job.test), size, training=False)


def _seconds(step: Callable[[], None]) -> float:
    """Return the faster of two timings after one that is thrown away."""
    step()
    found = []
    for _ in range(2):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return min(found)
