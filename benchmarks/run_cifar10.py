"""The whole command on CIFAR-10 under a budget, beside the textbook loop given the same minutes.

`warmstart run` gets 5,000 training pictures and all 10,000 test pictures as folders of PNG files, and a budget for
everything: audit, input size, features, probe, LP-FT, one test, report. The textbook loop (listing 2 with the same
network at 128 px) trains for as long, start-up and test not counted, and sees test once.

usage: python benchmarks/run_cifar10.py [--minutes 10] [--n 1] [--test 10000]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import common
import head_only

TRAIN, SIZE = 5_000, 128


def main() -> None:
    """Run both in turn, n times, and write what they came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--n", type=int, default=1)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--no-textbook", action="store_true")
    options = parser.parse_args()
    data = prepare(options.test)
    ours, theirs = [], []
    for seed in range(options.n):
        ours.append(command(data, options.minutes, seed))
        print(json.dumps(ours[-1]), flush=True)
        if not options.no_textbook:
            theirs.append(textbook(data, options.minutes, seed))
            print(json.dumps(theirs[-1]), flush=True)
    print(write(options, ours, theirs))


def prepare(num_test: int) -> Path:
    """Write train/ and test/ with a folder for each class, once."""
    import assets

    folder = common.SCRATCH / f"cifar10-run-{TRAIN}-{num_test}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=_made(folder.parent)) as work:
            place = Path(work) / "cifar10"
            for split, count in (("train", TRAIN), ("test", num_test)):
                pixels, labels = assets.cifar10(split, count)
                assets.write_folder(place / split, pixels, labels, assets.CIFAR10_CLASSES)
            place.rename(folder)
    return folder


def command(data: Path, minutes: float, seed: int) -> dict[str, object]:
    """Run what a user types, on a cold cache, with the weights at hand."""
    import sys

    import assets

    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "run"
        words = ["run", data, "--backbone", "package/efficientnet_lite0", "--budget", f"{minutes}m"]
        words += [f"seed={seed}", "--duplicates", "drop-test", "--out", out, "--json"]
        measured = common.run(
            [Path(sys.executable).with_name("warmstart"), *words],
            env={"WARMSTART_CACHE": f"{work}/cache", "WARMSTART_PACKAGES": str(assets.ROOT / "pip")},
        )
    kept = [m for m in _list(measured.facts["metrics"]) if m["name"] == "accuracy"]
    decisions = {d["key"]: d["value"] for d in _list(measured.facts["decisions"])}
    planned = measured.facts["planned_seconds"]
    return {"seconds": measured.seconds, "planned_seconds": planned, "accuracy": kept, "decisions": decisions}


def textbook(data: Path, minutes: float, seed: int) -> dict[str, object]:
    """Train listing 2 epoch by epoch until the minutes are over, then test once."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    import textbook as listings

    torch.manual_seed(seed)
    network, head = head_only.lite0()
    steps = [transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    loaders = {
        split: DataLoader(
            ImageFolder(str(data / split), transform), batch_size=64, shuffle=split == "train", num_workers=2
        )
        for split in ("train", "test")
    }
    start, epochs = time.perf_counter(), 0
    while time.perf_counter() - start < 60 * minutes:
        listings.listing2(network, loaders["train"], num_classes=10, num_epochs=1, head=head)
        epochs += 1
    seconds = time.perf_counter() - start
    network.eval()
    with torch.no_grad():
        hits = sum(int((network(pixels).argmax(1) == labels).sum()) for pixels, labels in loaders["test"])
    total = len(loaders["test"].dataset)  # type: ignore[arg-type]
    low, high = _wilson(hits, total)
    accuracy = {"name": "accuracy", "value": hits / total, "low": low, "high": high, "n": total, "split": "test"}
    return {"seconds": seconds, "epochs": epochs, "accuracy": [accuracy]}


def write(options: argparse.Namespace, ours: list[dict[str, object]], theirs: list[dict[str, object]]) -> Path:
    """Write the JSON with a row for the README."""
    from warmstart import durable

    mine = _list(ours[0]["accuracy"])[0]
    peer = f"{_list(theirs[0]['accuracy'])[0]['value']:.3f} (textbook loop)" if theirs else None
    row = {
        "what": f"`run` on CIFAR-10, 5,000 train pictures, EfficientNet-Lite0, {options.minutes:g} minutes: accuracy",
        "what_zh": f"`run` 在 CIFAR-10 上（5,000 张训练图，EfficientNet-Lite0，{options.minutes:g} 分钟）：准确率",
        "value": f"{mine['value']:.3f}",
        "low": f"{mine['low']:.3f}",
        "high": f"{mine['high']:.3f}",
        "n": f"{mine['n']:,} pictures, {options.n} seed{'s' if options.n > 1 else ''}",
        "peer": peer,
    }
    path = common.RESULTS / "run_cifar10.json"
    parameters = {"minutes": options.minutes, "train": TRAIN, "test": options.test, "textbook_size": SIZE}
    facts = {"benchmark": "run_cifar10", "parameters": parameters, "seeds": list(range(options.n))}
    durable.write_json(
        path, {**facts, "machine": common.machine(), "readme": [row], "command": ours, "textbook": theirs}
    )
    return path


def _wilson(hits: int, total: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    interval = binomtest(hits, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _list(value: object) -> list[dict[str, object]]:
    assert isinstance(value, list)
    return value


if __name__ == "__main__":
    main()
