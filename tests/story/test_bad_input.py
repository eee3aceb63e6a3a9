"""Every kind of wrong input gives two lines that say what is wrong and what to type next; never a traceback."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import kills

import assets
from story.command import Done, refused, warmstart

pytestmark = pytest.mark.slow

SMALL = ("--backbone", "random/test_resnet", "data.image_size=32", "--strategy", "probe")
PICTURES = [f"good/{label}/{number:05d}.png" for label in ("red", "blue") for number in range(20)]


def table(cwd: Path, rows: list[str], header: str = "file,label", encoding: str = "utf-8") -> None:
    (cwd / "t.csv").write_text("\n".join([header, *rows]) + "\n", encoding=encoding)


def good(cwd: Path) -> None:
    assets.noise_folder(cwd / "good", {"red": 20, "blue": 20})


def label(picture: str) -> str:
    return picture.split("/")[1]


def empty_folder(cwd: Path) -> None:
    (cwd / "good").mkdir()


def one_class(cwd: Path) -> None:
    assets.noise_folder(cwd / "good", {"red": 20})


def lonely_class(cwd: Path) -> None:
    assets.noise_folder(cwd / "good", {"red": 20, "blue": 20, "green": 1})


def plain_table(cwd: Path) -> None:
    good(cwd)
    table(cwd, [f"{picture},{label(picture)}" for picture in PICTURES])


def missing_targets(cwd: Path) -> None:
    good(cwd)
    table(cwd, [f"{picture},{'NaN' if row in (3, 7) else row / 10}" for row, picture in enumerate(PICTURES)])


def latin(cwd: Path) -> None:
    good(cwd)
    table(cwd, [f"{picture},{'größe' if row % 2 else 'x'}" for row, picture in enumerate(PICTURES)], encoding="cp1252")


def repeated_ids(cwd: Path) -> None:
    good(cwd)
    table(cwd, [f"{p},{label(p)},{max(row, 1)}" for row, p in enumerate(PICTURES)], "file,label,name")


def overlapping(cwd: Path) -> None:
    good(cwd)
    rows = [f"{p},{label(p)},{'train' if row % 2 else 'test'}" for row, p in enumerate(PICTURES)]
    table(cwd, [*rows, f"{PICTURES[0]},red,train"], "file,label,split")


def climbing_zip(cwd: Path) -> None:
    with zipfile.ZipFile(cwd / "good.zip", "w") as archive:
        archive.writestr("a/red/1.png", b"x")
        archive.writestr("../../evil.txt", b"x")


def climbing_tar(cwd: Path) -> None:
    with tarfile.open(cwd / "good.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("../evil.png")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))


def pickled_weights(cwd: Path) -> None:
    good(cwd)
    (cwd / "w").mkdir()
    (cwd / "w/model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    (cwd / "w/card.json").write_text('{"name": "x", "arch": "timm:test_resnet"}')


LEAVE = "add examples, or leave these classes out of the data"
UNPACK = "unpack it yourself after looking at it, and give the folder"
CLIMBS = "would leave its folder or are no files"
CASES = {
    "empty folder": (
        empty_folder, ("good",), 1,
        ("DataError: no pictures for classes in good (found nothing), "
        "expected CLASS/picture.jpg or train|val|test/CLASS/picture.jpg"),
        "put the pictures of each class into a folder of its own: good/CLASS/",
    ),
    "no folder": (good, ("goood",), 1, "DataError: goood does not exist", "did you mean 'good'?"),
    "one class": (
        one_class, ("good",), 1,
        "DataError: good has only one class ('red') in 20 examples, expected at least 2", LEAVE,
    ),
    "class with one example": (
        lonely_class, ("good",), 1,
        "DataError: class 'green' has 1 example (green/00000.png), expected at least 2", LEAVE,
    ),
    "unknown column": (
        plain_table, ("t.csv", "--target-column", "lable"), 1,
        "DataError: no column 'lable' in t.csv (--target-column lable), which has file, label", "did you mean 'label'?",
    ),
    "target with NaN": (
        missing_targets, ("t.csv",), 1,
        "DataError: 2 targets in column 'label' are missing or NaN (line 5, line 9)",
        "fill them in, or remove those rows",
    ),
    "unreadable encoding": (
        latin, ("t.csv",), 1, "DataError: t.csv is not UTF-8: byte 0xf6 at position 53 (line 3)",
        "iconv -f WINDOWS-1252 -t UTF-8 t.csv > t.utf8.csv",
    ),
    "duplicate ids": (
        repeated_ids, ("t.csv", "--id-column", "name"), 1,
        "DataError: duplicate ids: 1 ids occur more than once (1 in line 2, line 3)",
        "remove the repeated rows, or name a column of unique values with --id-column",
    ),
    "splits that overlap": (
        overlapping, ("t.csv",), 1,
        ("DataError: splits overlap: 1 ids are in more than one split "
        "(good/red/00000.png in test line 2 and train line 42)"),
        "keep each id in one split",
    ),
    "unknown backbone": (
        good, ("good", "--backbone", "package/eficientnet_lite0"), 1,
        "SourceError: no package with weights 'eficientnet_lite0'", "did you mean 'package/efficientnet_lite0'?",
    ),
    "unknown source": (
        good, ("good", "--backbone", "tim/resnet18"), 1,
        "SourceError: backbone 'tim/resnet18' names no source and is no folder (expected source/name)",
        "did you mean 'timm/resnet18'?",
    ),
    "unknown strategy": (
        good, ("good", "--strategy", "prob"), 2, "RecipeError: unknown strategy 'prob'", "did you mean 'probe'?",
    ),
    "unknown key": (
        good, ("good", "optim.lrr=1"), 2, "RecipeError: unknown key 'optim.lrr'", "did you mean 'optim.lr'?",
    ),
    "unknown option of a strategy": (
        good, ("good", "--strategy", "last_k", "strategy.kk=1"), 2,
        "RecipeError: unknown key 'strategy.kk'", "did you mean 'strategy.k'?",
    ),
    "wrong type of a key": (
        good, ("good", "epochs=many"), 2,
        "RecipeError: epochs='many' does not fit (expected int | none)", "epochs=10",
    ),
    "wrong type of a flag": (
        good, ("good", "--epochs", "many"), 2,
        "RecipeError: epochs='many' does not fit (expected int | none)", "epochs=10",
    ),
    "no key=value": (
        good, ("good", "lr"), 2, "RecipeError: 'lr' is no override (expected key=value)", "optim.lr=1e-3",
    ),
    "no duration": (
        good, ("good", "--budget", "soon"), 2,
        "RecipeError: budget='soon' is no duration", "--budget 10m (or 90s, 1h30m, 2h)",
    ),
    "no recipe": (
        good, ("nope.toml",), 2,
        "RecipeError: no recipe at nope.toml", "ls recipes/, or warmstart show to print the defaults",
    ),
    "zip that climbs out": (
        climbing_zip, ("good.zip",), 1,
        f"DataError: good.zip is refused: 1 entries {CLIMBS} (../../evil.txt: a path that climbs out of its folder)",
        UNPACK,
    ),
    "tar that climbs out": (
        climbing_tar, ("good.tar.gz",), 1,
        f"DataError: good.tar.gz is refused: 1 entries {CLIMBS} (../evil.png: a path that climbs out of its folder)",
        UNPACK,
    ),
    "a pickle for weights": (
        pickled_weights, ("good", "--backbone", "w"), 1,
        "CheckpointError: w/model.safetensors is a pickle, which can run code when it is read; expected safetensors",
        ('where you trust it: python -c "import torch, safetensors.torch as s; '
        "s.save_file(torch.load('w/model.safetensors', weights_only=True), 'w/model.safetensors')\""),
    ),
    "no size": (
        good, ("good", *SMALL, "--cache-limit", "lots"), 2,
        "RecipeError: --cache-limit='lots' is no size", "--cache-limit=20GiB",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def nursery() -> Iterator[kills.Nursery]:
    """A process that has imported what two dozen commands would each import for seconds."""
    with kills.nursery() as place:
        yield place


@pytest.mark.parametrize("name", CASES)
def test_two_lines_say_what_is_wrong_and_what_to_type(name: str, nursery: kills.Nursery, tmp_path: Path) -> None:
    prepare, words, code, problem, fix = CASES[name]
    prepare(tmp_path)
    ended = nursery.run(["run", *words, "--out", "R"], tmp_path)
    refused(Done(ended.code, ended.out, ended.err), problem, fix, code=code)
    assert not (tmp_path / "R").exists(), "a refused command claims no folder"
    assert not list(tmp_path.parent.rglob("evil*"))


def test_all_problems_of_a_recipe_are_listed_together(tmp_path: Path) -> None:
    good(tmp_path)
    done = warmstart(tmp_path, "run", "good", "epochs=many", "optim.name=sdg", "dta.image_size=3")
    assert done.code == 2
    assert done.err == (
        "RecipeError: 3 problems in the recipe\n"
        "  - epochs='many' does not fit (expected int | none) (epochs=10)\n"
        "  - optim.name='sdg' does not fit (expected 'adamw', 'adam' or 'sgd') (optim.name=sgd)\n"
        "  - unknown key 'dta.image_size' (did you mean 'data.image_size'?)\n"
        "  fix: warmstart show RECIPE\n"
    )


def test_a_cache_that_is_too_small_says_how_much_it_needs_and_then_goes_on(tmp_path: Path) -> None:
    good(tmp_path)
    done = warmstart(tmp_path, "run", "good", *SMALL, "--cache-limit", "1KB", "--out", "R")
    refused(
        done,
        f"CacheError: 12.6 KiB must be cached and 0 B are in use, but the cache in {tmp_path}/.cache may hold 1000 B",
        "--cache-limit 1GiB",
    )
    assert warmstart(tmp_path, "run", "good", *SMALL, "--cache-limit", "1GiB", "--out", "R").code == 0


def test_a_run_folder_of_another_recipe_or_other_data_is_kept(tmp_path: Path) -> None:
    good(tmp_path)
    words = ("run", "good", *SMALL, "--out", "R")
    assert warmstart(tmp_path, *words).code == 0
    before = (tmp_path / "R/report.html").read_bytes()
    refused(
        warmstart(tmp_path, *words, "--seed", "1"),
        "RunError: R belongs to another recipe (seed: there 0, here 1)",
        "--out NEW, or --overwrite",
    )
    (tmp_path / "good/red/00000.png").unlink()
    done = warmstart(tmp_path, *words)
    assert done.code == 1
    assert done.err.startswith("RunError: R was begun on other data (splits ")
    assert done.err.endswith("\n  fix: --out NEW for another run, or --overwrite to begin again\n")
    assert (tmp_path / "R/report.html").read_bytes() == before
    assert warmstart(tmp_path, "evaluate", "R", "--split", "val").code == 1, "its val is no longer there"
    assert warmstart(tmp_path, *words, "--overwrite").code == 0


@pytest.mark.parametrize("kind", ["corrupt", "foreign"])
def test_damaged_and_foreign_checkpoints_are_never_loaded_silently(kind: str, tmp_path: Path) -> None:
    good(tmp_path)
    words = ("finetune", "good", *SMALL[:3], "--strategy", "last_k", "epochs=2", "--out")
    assert warmstart(tmp_path, *words, "R").code == 0
    manifest = tmp_path / "R/manifest.json"
    manifest.write_text(manifest.read_text().replace('"status": "done", "created"', '"status": "running", "created"'))
    manifest.write_text(
        manifest.read_text().replace('"status": "done",\n "created"', '"status": "running",\n "created"')
    )
    checkpoints = sorted((tmp_path / "R/checkpoints/fit").glob("0*"))
    assert checkpoints
    for path in checkpoints:
        if kind == "corrupt":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    if kind == "foreign":
        assert warmstart(tmp_path, *words, "S", "--seed", "9", "optim.lr=0.1").code == 0
        for path in checkpoints:
            path.write_bytes((tmp_path / "S/checkpoints/fit" / path.name).read_bytes())
    done = warmstart(tmp_path, *words, "R")
    assert done.code == 1, done.out
    assert "Traceback" not in done.err
    lines = done.err.rstrip().splitlines()
    assert lines[-2].startswith("CheckpointError: "), done.err
    assert lines[-1].startswith("  fix: ")
    assert "--overwrite" in lines[-1]
