"""A folder with everything wrong that people's folders have: found, named, and never silently used or dropped."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import assets
from story.command import Done, refused, warmstart

pytestmark = [pytest.mark.slow, pytest.mark.assets]

SMALL = ("--backbone", "random/test_resnet", "data.image_size=32")
PROBE = (*SMALL, "--strategy", "probe")


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 train and 60 test photos; 3 exact copies and 1 near-copy across, 1 conflict, 2 unreadable, 1 misnamed."""
    cwd = tmp_path_factory.mktemp("dirty")
    pixels, _labels = assets.cifar10("train", 180)
    for split, part in {"train": slice(120), "test": slice(120, 180)}.items():
        assets.write_folder(cwd / "p" / split, pixels[part], np.zeros(len(pixels[part]), int), ["a"])
        for number, photo in enumerate(sorted((cwd / "p" / split / "a").iterdir())):
            target = cwd / "p" / split / "abc"[number % 3] / photo.name
            target.parent.mkdir(exist_ok=True)
            photo.rename(target)
    train = sorted((cwd / "p/train/a").iterdir())
    for number in range(3):
        shutil.copy(train[number], cwd / f"p/test/a/copy{number}.png")
    Image.open(train[3]).save(cwd / "p/test/a/near.jpg", quality=92)
    shutil.copy(train[4], cwd / "p/train/b/conflict.png")
    (cwd / "p/train/a/zero.png").write_bytes(b"")
    (cwd / "p/train/a/torn.png").write_bytes(train[0].read_bytes()[:300])
    Image.open(train[5]).transpose(Image.Transpose.ROTATE_90).save(cwd / "p/train/a/misnamed.png", format="JPEG")
    return cwd


def test_the_audit_names_all_of_it_and_stops_at_nothing(cwd: Path) -> None:
    done = warmstart(cwd, "audit", "p", *SMALL)
    assert done.code == 0, done.err
    for line in (
        "warning  unreadable files: 2 files set aside: unreadable",
        "         p/train/a/torn.png: truncated (image file is truncated)",
        "         p/train/a/zero.png: zero bytes",
        "blocking exact duplicates: 4 images with the pixels of another; 3 groups of copies across splits",
        "         test/a/copy0.png = train/a/00000.png",
        "warning  conflicting labels: 1 group of copies with different labels",
        "         train/a/00012.png = train/b/conflict.png",
        "         test/a/near.jpg = train/a/00009.png",
        "note     train/a/misnamed.png is a JPEG named .png",
    ):
        assert line in done.out.splitlines(), f"{line}\n\n{done.out}"
    near = next(line for line in done.out.splitlines() if "near-duplicates" in line)
    assert "1 pair of near-copies; 4 test images with a copy or near-copy in train or val" in near
    found = {f["name"]: f for f in warmstart(cwd, "audit", "p", *SMALL, "--json").json["findings"]}
    assert found["exact duplicates"]["across"] == 3
    assert found["unreadable files"]["count"] == 2


def test_a_run_stops_at_copies_and_the_same_folder_takes_the_decision(cwd: Path) -> None:
    refused(
        warmstart(cwd, "run", "p", *PROBE, "--out", "R"),
        "DataError: 3 of 64 test images are also in train (first: test/a/copy0.png = train/a/00000.png)",
        "--duplicates drop-test, or --duplicates allow",
    )
    assert not (cwd / "R").exists(), "a run that never began leaves nothing"
    dropped = warmstart(cwd, "run", "p", *PROBE, "--out", "R", "--duplicates", "drop-test", "--json")
    assert counts(dropped) == {"test": 61, "test without near-duplicates": 60}
    allowed = warmstart(cwd, "run", "p", *PROBE, "--out", "S", "--duplicates", "allow", "--json")
    assert counts(allowed) == {"test": 64, "test without near-duplicates": 60}
    page = (cwd / "S/report.html").read_text()
    for shown in ("torn.png", "zero.png", "without near-duplicates"):
        assert shown in page


def counts(done: Done) -> dict[str, int]:
    """Return how many examples stand behind the metrics of each split."""
    assert done.code == 0, done.err
    return {metric["split"]: metric["n"] for metric in done.json["metrics"]}
