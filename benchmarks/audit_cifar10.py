"""Near-copies in CIFAR-10: how many are found among planted ones, how many are there, how many alarms are false.

planted   per seed and kind 1,000 pictures of all 60,000 are changed and added: re-encoded as JPEG (quality 50 to 90),
          resized (0.5 to 2 times), cropped by 5 % of each side, brightened by ±20 %, mirrored. Recall is the part whose
          pair (source, copy) is found in the search over all 65,000. Exact copies are planted as well.
own       test pictures that have a near-copy in train, as published and as found. With `--published FILE`
          (meta/duplicates_cifar10.csv of github.com/cvjena/cifair, arXiv 1902.00423) the recall of that list.
judged    found pairs that the list does not have go to a contact sheet (`--sheet FILE`); a person writes the numbers of
          those that are no copies into results/audit_cifar10_judged.json, and the false alarms are counted from there.

Each with thumbnails alone and with features (EfficientNet-Lite0 at 96 px). Takes 15 to 30 minutes on two cores.

usage: python benchmarks/audit_cifar10.py [--seeds 5] [--planted 1000] [--published FILE] [--sheet FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from PIL.Image import Resampling, Transpose
from scipy.stats import beta

import common
from warmstart import runtime, sources
from warmstart.cache import Cache
from warmstart.data import Dataset, duplicates, scan, transforms
from warmstart.extract import extract

TRAIN, TEST = 50_000, 10_000
SIZE = 96
JUDGED = common.RESULTS / "audit_cifar10_judged.json"
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def jpeg(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Encode again, quality 50 to 90."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=int(rng.integers(50, 91)))
    return Image.open(data).convert("RGB")


def resize(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Scale by 0.5 to 2."""
    side = round(picture.width * rng.uniform(0.5, 2.0))
    return picture.resize((side, side), Resampling.BICUBIC if rng.random() < 0.5 else Resampling.BILINEAR)


def crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Keep 95 % of each side, rounded down (30 of 32 pixels), anywhere."""
    side = int(picture.width * 0.95)
    left, top = rng.integers(0, picture.width - side + 1, 2).tolist()
    return picture.crop((left, top, left + side, top + side))


def brightness(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Multiply by 0.8 or 1.2, clipping at white."""
    return ImageEnhance.Brightness(picture).enhance(float(rng.choice([0.8, 1.2])))


def flip(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirror left and right."""
    del rng
    return picture.transpose(Transpose.FLIP_LEFT_RIGHT)


CHANGES: dict[str, Change] = {"jpeg": jpeg, "resize": resize, "crop": crop, "brightness": brightness, "flip": flip}


def interval(hits: int, n: int) -> list[float]:
    """Clopper-Pearson, 95 %."""
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(0.975, hits + 1, n - hits))
    return [round(low, 5), round(high, 5)]


def share(hits: int, n: int) -> dict[str, object]:
    """Return a share with its count and interval."""
    return {"value": round(hits / n, 5), "interval": interval(hits, n), "hits": hits, "n": n}


class Features:
    """Pooled features of Lite0, cached, so that a second run of the benchmark computes none."""

    def __init__(self) -> None:
        self.backbone, self.card = sources.load("package/efficientnet_lite0")
        self.transform = transforms.for_eval(self.card.spec, image_size=SIZE)
        self.cache = Cache(common.SCRATCH / "audit-cache")

    def of(self, inputs: list[np.ndarray | Image.Image]) -> np.ndarray:
        """Compute the features of pictures, float32 (N, 1280)."""
        dataset = Dataset([str(row) for row in range(len(inputs))], inputs)
        values = extract(
            dataset,
            np.arange(len(inputs)),
            backbone=self.backbone,
            card=self.card,
            cut=len(self.backbone.layer_groups()),
            transform=self.transform,
            cache=self.cache,
        ).values
        return np.asarray(values[:], np.float32)


def look(inputs: list[np.ndarray | Image.Image]) -> scan.Scan:
    """Scan pictures in memory."""
    return scan.scan(Dataset([str(row) for row in range(len(inputs))], inputs))


def planted(
    pixels: np.ndarray, own: scan.Scan, features: np.ndarray, engine: Features, options: argparse.Namespace
) -> dict[str, object]:
    """Measure the recall of planted copies over all seeds."""
    hits = {way: dict.fromkeys(CHANGES, 0) for way in ("thumbnails", "features")}
    exact = 0
    for seed in range(options.seeds):
        rng = runtime.rng(seed, "planted")
        copies, pairs = [], {}
        for kind, change in CHANGES.items():
            for row in rng.choice(len(pixels), options.planted, replace=False).tolist():
                pairs[(row, len(pixels) + len(copies))] = kind
                copies.append(change(Image.fromarray(pixels[row]), rng))
        small = np.concatenate([own.thumbnails, look(copies).thumbnails])
        both = np.concatenate([features, engine.of(copies)])
        for way, given in (("thumbnails", None), ("features", both)):
            found = duplicates.near_pairs(small, features=given, seed=seed, workers=2)
            for pair in zip(found.left.tolist(), found.right.tolist(), strict=True):
                if pair in pairs:
                    hits[way][pairs[pair]] += 1
            print(f"seed {seed} {way}: {hits[way]}", flush=True)
        exact += exact_copies(pixels, own, rng, options.planted)
    n = options.seeds * options.planted
    recall = {way: {kind: share(count, n) for kind, count in found.items()} for way, found in hits.items()}
    return {"exact": share(exact, n), **recall}


def exact_copies(pixels: np.ndarray, own: scan.Scan, rng: np.random.Generator, count: int) -> int:
    """Plant exact copies in another file format and count those that are found."""
    rows = rng.choice(len(pixels), count, replace=False)
    encoded = []
    for row in rows:
        data = io.BytesIO()
        Image.fromarray(pixels[row]).save(data, "BMP")
        encoded.append(data.getvalue())
    hashes = np.concatenate([own.pixel_hash, look(encoded).pixel_hash])
    first = duplicates.first_copies(hashes, np.ones(len(hashes), bool))
    return int((first[len(pixels) :] == first[rows]).sum())


def own_copies(
    own: scan.Scan, labels: np.ndarray, features: np.ndarray | None, published: dict[int, int]
) -> dict[str, object]:
    """Count test pictures with a near-copy in train; return the pairs as well."""
    parts = np.arange(TRAIN + TEST) >= TRAIN
    start = time.process_time()
    found = duplicates.near_pairs(own.thumbnails, features=features, parts=parts.astype(int), workers=2)
    seconds = time.process_time() - start
    across = ~parts[found.left] & parts[found.right]
    best: dict[int, tuple[float, int]] = {}
    for train, test, agreement in zip(
        found.left[across].tolist(), found.right[across].tolist(), found.agreement[across].tolist(), strict=True
    ):
        best[test] = max(best.get(test, (-1.0, -1)), (agreement, train))
    pairs = {test - TRAIN: train for test, (_, train) in sorted(best.items())}
    listed = [test for test in published if test in pairs]
    near = [test for test, judgment in published.items() if judgment <= 1]
    facts: dict[str, object] = {
        "pairs_in_all": len(found),
        "pictures_in_all": len(np.unique(np.concatenate([found.left, found.right]))),
        "test_in_train": share(len(pairs), TEST),
        "of_them_with_another_label": sum(int(labels[TRAIN + test] != labels[train]) for test, train in pairs.items()),
        "processor_seconds_of_the_search": round(seconds, 1),
        "pairs": [[test, train] for test, train in pairs.items()],
    }
    if published:
        facts["of_the_published_list"] = share(len(listed), len(published))
        facts["of_those_judged_near_copies_there"] = share(sum(test in pairs for test in near), len(near))
        facts["not_in_the_published_list"] = len(pairs) - len(listed)
    return facts


def sheet(pixels: np.ndarray, pairs: list[tuple[int, int]], path: Path, side: int = 64, columns: int = 12) -> None:
    """Draw numbered pairs, test left, train right."""
    from PIL import ImageDraw

    high, wide = side + 14, 2 * side + 8
    page = Image.new("RGB", (columns * wide, -(-len(pairs) // columns) * high), "white")
    draw = ImageDraw.Draw(page)
    for place, (test, train) in enumerate(pairs):
        x, y = place % columns * wide, place // columns * high
        for offset, row in ((0, TRAIN + test), (side, train)):
            page.paste(Image.fromarray(pixels[row]).resize((side, side)), (x + offset, y + 12))
        draw.text((x, y), str(test), fill="black")
    page.save(path)


def main() -> None:
    """Run all three parts and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--planted", type=int, default=1000)
    parser.add_argument("--published", type=Path)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    import assets  # stands with the tests; `common` puts them on the path

    pixels, labels = (
        np.concatenate(pair) for pair in zip(assets.cifar10("train"), assets.cifar10("test"), strict=True)
    )
    published = {}
    if options.published:
        rows = [line.split(",") for line in options.published.read_text().split()[1:]]
        published = {int(row[0]): int(row[3]) for row in rows}
    engine = Features()
    own, features = look(list(pixels)), engine.of(list(pixels))
    counts = {
        way: own_copies(own, labels, given, published) for way, given in (("thumbnails", None), ("features", features))
    }
    extra = [(test, train) for test, train in counts["features"]["pairs"] if test not in published]
    if options.sheet and published:
        sheet(pixels, extra, options.sheet)
    judged = json.loads(JUDGED.read_text()) if JUDGED.exists() else {"no_copies": []}
    false = sorted({test for test, _ in extra} & set(judged["no_copies"]))
    content = {
        "benchmark": "audit_cifar10",
        "finished": time.strftime("%Y-%m-%d", time.gmtime()),
        "parameters": {
            "seeds": options.seeds,
            "planted_per_kind_and_seed": options.planted,
            "features": f"lite0, {SIZE} px",
        },
        "machine": common.machine(),
        "environment": runtime.environment(),
        "own": counts,
        "false_alarms": {"of_test_pictures": share(len(false), TEST), "judged_by_eye": len(extra)}
        if published
        else None,
        "planted": planted(pixels, own, features, engine, options) if options.seeds else None,
    }
    common.RESULTS.mkdir(parents=True, exist_ok=True)
    path = common.RESULTS / "audit_cifar10.json"
    text = re.sub(r"\[\n\s+(\d+),\n\s+(\d+)\n\s+\]", r"[\1, \2]", json.dumps(content, indent=1))  # a pair a line
    path.write_text(text + "\n")
    print(path)


if __name__ == "__main__":
    main()
