"""How time and memory grow with the number of pictures: a cold probe on 1,000, 5,000, 20,000 pictures, and 100 more.

Whole processes of `warmstart finetune --strategy probe` on CIFAR-10 as folders of PNG files, EfficientNet-Lite0 at 64
px unless told, a cold cache for each size. The last row adds 100 pictures to the second size, on its warm cache.

usage: python benchmarks/growth.py [--sizes 1000 5000 20000] [--image-size 64] [--more 100]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import common


def main() -> None:
    """Run every size once, then the second size with more pictures, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 5_000, 20_000])
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--more", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rows = [row(Path(work), size, options.image_size, f"cache-{size}") for size in options.sizes]
        base = options.sizes[min(1, len(options.sizes) - 1)]
        grown = row(Path(work), base + options.more, options.image_size, f"cache-{base}")
    print(write(options, rows, grown))


def row(work: Path, size: int, image_size: int, cache: str) -> dict[str, object]:
    """Run the command on the first `size` pictures."""
    import assets

    data = work / f"data-{size}"
    pixels, labels = assets.cifar10("train", size)
    assets.write_folder(data, pixels, labels, assets.CIFAR10_CLASSES)
    words = ["finetune", data, "--backbone", "package/efficientnet_lite0", "--strategy", "probe"]
    words += [f"data.image_size={image_size}", "--duplicates", "allow", "--out", work / f"run-{size}", "--json"]
    measured = common.run(
        [Path(sys.executable).with_name("warmstart"), *words],
        env={"WARMSTART_CACHE": str(work / cache), "WARMSTART_PACKAGES": str(assets.ROOT / "pip")},
    )
    print(size, f"{measured.seconds:.1f} s", f"{measured.peak_bytes / 2**20:.0f} MiB", flush=True)
    return {"pictures": size, "seconds": measured.seconds, "peak_bytes": measured.peak_bytes}


def write(options: argparse.Namespace, rows: list[dict[str, object]], grown: dict[str, object]) -> Path:
    """Write the JSON with rows for the README."""
    from warmstart import durable

    seconds = [float(str(entry["seconds"])) for entry in rows]
    told = ", ".join(f"{entry['pictures']:,}: {float(str(entry['seconds'])):.1f} s" for entry in rows)
    peaks = [float(str(entry["peak_bytes"])) / 2**20 for entry in rows]
    readme = [
        {
            "what": f"a cold probe at {options.image_size} px on {told}: seconds per 1,000 more pictures",
            "what_zh": f"冷缓存探针，{options.image_size} px，{told}：每多 1,000 张图片的秒数",
            "value": f"{1000 * (seconds[-1] - seconds[0]) / (options.sizes[-1] - options.sizes[0]):.2f} s",
            "low": f"{peaks[0]:,.0f} MiB",
            "high": f"{peaks[-1]:,.0f} MiB at the peak",
            "n": "1 each",
        }
    ]
    path = common.RESULTS / "growth.json"
    parameters = {"sizes": options.sizes, "image_size": options.image_size, "more": options.more}
    facts = {"benchmark": "growth", "parameters": parameters, "seeds": [0], "machine": common.machine()}
    durable.write_json(path, {**facts, "readme": readme, "sizes": rows, "grown": grown})
    return path


if __name__ == "__main__":
    main()
