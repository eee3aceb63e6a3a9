"""What stops a run, what is only reported, and what `drop_test` removes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from warmstart.data import Dataset, Splits, audit, scan
from warmstart.data.audit_report import AuditReport
from warmstart.errors import DataError

CLASSES = ("cat", "dog")


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Smooth made-up pictures, no two alike."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(40)[:, None], np.fft.fftfreq(40)) + 1 / 40
    waves = np.fft.ifft2(np.fft.fft2(rng.normal(size=(count, 40, 40))) / frequency**1.3).real
    waves -= waves.min((1, 2), keepdims=True)
    grey = (250 * waves / waves.max((1, 2), keepdims=True)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 3)


def dataset(pixels: np.ndarray, **columns: object) -> Dataset:
    """Ids such as `cat/03.png`; labels alternate."""
    labels = np.arange(len(pixels)) % 2
    ids = [f"{CLASSES[label]}/{row:02d}.png" for row, label in enumerate(labels)]
    return replace(Dataset(ids, list(pixels), "single", labels, CLASSES), **columns)


def thirds(count: int = 60) -> Splits:
    """First half train, then val, then test."""
    rows = np.arange(count)
    return Splits(rows[: count // 2], rows[count // 2 : 3 * count // 4], rows[3 * count // 4 :], "f", "given")


def audited(data: Dataset, splits: Splits | None, **how: object) -> AuditReport:
    return audit.audit(data, splits, scan.scan(data), **how)


def copied(*pairs: tuple[int, int], count: int = 60) -> np.ndarray:
    pixels = pictures(count)
    for source, target in pairs:
        pixels[target] = pixels[source]
    return pixels


def finding(report: AuditReport, name: str) -> dict[str, object]:
    return next(item for item in report.to_json()["findings"] if item["name"] == name)


def test_clean_data_has_nothing_to_say() -> None:
    report = audited(dataset(pictures(60)), thirds())
    assert report.blocking() is None
    assert (report.exact, report.conflicts, len(report.near), len(report.near_test_rows)) == ((), (), 0, 0)
    assert {item["status"] for item in report.to_json()["findings"]} == {"ok"}


def test_copies_across_splits_stop_the_run_with_two_ways_on() -> None:
    report = audited(dataset(copied((4, 46), (3, 45), (4, 50))), thirds())
    error = report.blocking()
    assert isinstance(error, DataError)
    assert str(error) == (
        "3 of 15 test images are also in train (first: dog/45.png = dog/03.png)\n"
        "  fix: --duplicates drop-test, or --duplicates allow"
    )
    assert finding(report, "exact duplicates")["across"] == 2


def test_every_pair_of_splits_is_told_and_every_image_counts_once() -> None:
    report = audited(dataset(copied((0, 30), (0, 46), (31, 47), (2, 4))), thirds())
    assert report.blocking().problem == (
        "1 of 15 test images is also in train (first: cat/46.png = cat/00.png); "
        "1 of 15 test images is also in val (first: dog/47.png = dog/31.png); "
        "1 of 15 val images is also in train (first: cat/30.png = cat/00.png)"
    )


def test_copies_within_a_split_do_not_stop() -> None:
    report = audited(dataset(copied((0, 2), (46, 48))), thirds())
    assert report.blocking() is None
    assert report.exact == ((0, 2), (46, 48))
    assert finding(report, "exact duplicates") == {
        "name": "exact duplicates",
        "status": "note",
        "count": 2,
        "text": "2 images with the pixels of another",
        "across": 0,
        "examples": [["cat/00.png", "cat/02.png"], ["cat/46.png", "cat/48.png"]],
    }


def test_shared_groups_stop_the_run() -> None:
    groups = np.array([f"patient {row // 4}" for row in range(60)])
    report = audited(dataset(pictures(60), groups=groups), thirds())
    assert report.blocking().problem == (
        "2 of 15 groups stand in more than one split (first: 'patient 11' in val and test)"
    )
    assert dict(report.leaked_groups) == {"patient 11": ("val", "test"), "patient 7": ("train", "val")}


def test_without_splits_nothing_blocks() -> None:
    report = audited(dataset(copied((4, 46)), groups=np.array(["a"] * 60)), None)
    assert report.blocking() is None
    assert report.exact == ((4, 46),)


def test_drop_test_leaves_nothing_that_blocks() -> None:
    groups = np.array([f"g{row // 4}" for row in range(60)])
    data = dataset(copied((0, 30), (0, 46), (35, 50), (52, 53)), groups=groups)
    splits = replace(thirds(), folds=((np.arange(0, 15), np.arange(15, 30)), (np.arange(15, 30), np.arange(0, 15))))
    report = audited(data, splits)
    dropped = audit.drop_test(splits, report)
    assert dropped.train.tolist() == splits.train.tolist()
    assert set(splits.val.tolist()) - set(dropped.val.tolist()) == {30, 31}
    assert set(splits.test.tolist()) - set(dropped.test.tolist()) == {45, 46, 47, 50}
    assert [held.tolist() for _, held in dropped.folds] == [[*range(16, 30)], [*range(12)]]
    assert audited(data, dropped).blocking() is None
    assert dropped.origin == "given; 4 test and 2 val images that also stand in another split were dropped"
    assert dropped.fingerprint != splits.fingerprint
    assert audit.drop_test(splits, report).fingerprint == dropped.fingerprint


def near_copy(pixels: np.ndarray) -> np.ndarray:
    return (pixels * 0.85 + 3).astype(np.uint8)


def test_near_copies_do_not_stop_but_mark_the_test_rows() -> None:
    pixels = pictures(60)
    pixels[46], pixels[47], pixels[49] = near_copy(pixels[2]), pixels[46][:, ::-1], near_copy(pixels[48])
    pixels[47] = near_copy(pixels[5])[:, ::-1]
    pixels[50] = pixels[46]
    report = audited(dataset(pixels), thirds())
    assert report.blocking() is None
    assert report.near_test_rows.tolist() == [46, 47, 50], "an exact copy of a near-copy is one as well"
    pairs = set(zip(report.near.left.tolist(), report.near.right.tolist(), strict=True))
    assert pairs == {(2, 46), (5, 47), (48, 49)}
    told = finding(report, "near-duplicates")
    assert (told["status"], told["count"], told["across"]) == ("warning", 3, 2)
    assert told["text"] == (
        "6 images in 3 pairs of near-copies; 3 test images with a copy or near-copy in train or val:"
        " test metrics are given with and without"
    )


def test_allowed_exact_copies_count_as_near_test_rows() -> None:
    report = audited(dataset(copied((4, 46), (31, 47))), thirds())
    assert report.near_test_rows.tolist() == [46, 47]


def test_overlaps_finds_what_blocks_and_looks_for_no_near_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(copied((4, 46)))
    found = scan.scan(data)
    monkeypatch.setattr(audit.duplicates, "near_pairs", lambda *a, **k: pytest.fail("searched"))
    report = audit.overlaps(data, thirds(), found)
    assert "1 of 15 test images is also in train" in str(report.blocking())
    assert len(audit.drop_test(thirds(), report).test) == 14
    assert "near-duplicates" not in {item["name"] for item in report.to_json()["findings"]}


TARGETS = {
    "single": (np.array([0, 1]), 2),
    "multi": (np.array([[True, False], [True, True]]), 2),
    "scalar": (np.array([0.0, 1.0]), 0),
    "vector": (np.array([[0.0, 0.0], [0.0, 1.0]]), 2),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_copies_whose_targets_differ_are_conflicts(kind: str) -> None:
    values, names = TARGETS[kind]
    pixels = copied((0, 1), (2, 3))
    pixels[5] = near_copy(pixels[4])
    targets = values[[0, 1, 0, 0, 0, 1] + [0, 1] * 27]
    data = Dataset([str(i) for i in range(60)], list(pixels), kind, targets, CLASSES[:names])  # type: ignore[arg-type]
    assert audited(data, None).conflicts == ((0, 1), (4, 5))


def test_small_differences_of_numbers_are_no_conflict() -> None:
    targets = np.linspace(0, 10, 60)
    targets[1] = targets[0] + 0.1
    data = Dataset([str(i) for i in range(60)], list(copied((0, 1))), "scalar", targets)
    assert audited(data, None).conflicts == ()
    assert audited(replace(data, kind="none", targets=None), None).conflicts == ()


def test_classes_are_counted_in_train_only() -> None:
    labels = np.array([0] * 26 + [1] * 4 + [1] * 30)
    report = audited(dataset(pictures(60), targets=labels, class_names=("cat", "dog", "owl")), thirds())
    assert report.tiny_classes == (("owl", 0), ("dog", 4))
    assert report.imbalance == 6.5
    assert finding(report, "tiny classes")["text"] == "2 classes with fewer than 10 train examples"
    skewed = audited(dataset(pictures(60), targets=np.array([0] * 55 + [1] * 5)), None)
    assert finding(skewed, "imbalance")["status"] == "warning"
    assert finding(skewed, "imbalance")["text"] == "the largest class has 11 times the train examples of the smallest"


def test_label_errors_are_suspected_in_train_and_val_but_never_in_test() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    features = (np.eye(2)[labels] * 6 + rng.normal(size=(120, 2))).astype(np.float32)
    wrong = labels.copy()
    wrong[[10, 11, 12, 13, 70, 71, 100, 101]] ^= 1
    data = dataset(pictures(120), targets=wrong)
    report = audited(data, thirds(120), features=features)
    assert {issue.row for issue in report.label_issues} == {10, 11, 12, 13, 70, 71}
    assert audited(data, None).label_issues is None
    everywhere = {issue.row for issue in audited(data, None, features=features).label_issues}
    assert everywhere == {10, 11, 12, 13, 70, 71, 100, 101}


def test_unreadable_pictures_are_set_aside_by_name(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(pictures(1)[0]).save(good)
    bad.write_bytes(b"")
    data = Dataset(["good.png", "bad.png"], [good, bad], "single", np.array([0, 1]), CLASSES)
    found = scan.scan(data)
    kept = audit.quarantine(data, found)
    assert list(kept.ids) == ["good.png"]
    (item,) = kept.quarantined
    assert (item.id, item.path, item.reason) == ("bad.png", str(bad), "zero bytes")
    report = audit.audit(kept, None, found.take(found.readable))
    assert report.quarantined == kept.quarantined
    told = finding(report, "unreadable files")
    assert (told["text"], told["examples"]) == ("1 file set aside: unreadable", [f"{bad}: zero bytes"])
    assert audit.audit(data, None, found).quarantined == kept.quarantined
    assert audit.quarantine(kept, found.take(found.readable)) is kept


def test_sizes_modes_and_notes_are_told(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.jpg")]
    Image.fromarray(pictures(1)[0]).save(paths[0])
    Image.fromarray(pictures(1)[0, :20, :, 0]).save(paths[1])
    Image.fromarray(pictures(1)[0]).save(paths[2], "PNG")
    data = Dataset([path.name for path in paths], paths, notes=("2 other files ignored",))
    report = audited(data, None)
    assert report.sizes == (("40 × 40", 2), ("40 × 20", 1))
    assert report.modes == (("RGB", 2), ("L", 1))
    assert report.notes == ("2 other files ignored", "c.jpg is a PNG named .jpg")
    assert finding(report, "mixed sizes and modes")["text"] == "2 sizes, 2 colour modes"


def test_the_json_is_json_and_lists_few_examples_with_all_counts() -> None:
    pixels = np.repeat(pictures(130), 2, axis=0)
    report = audited(dataset(pixels), thirds(260))
    told = json.loads(json.dumps(report.to_json()))
    exact = next(item for item in told["findings"] if item["name"] == "exact duplicates")
    assert exact["count"] == 130
    assert len(exact["examples"]) == 50


def test_the_same_question_has_the_same_answer_whatever_the_threads() -> None:
    pixels = pictures(200)
    pixels[150:] = near_copy(pixels[:50])
    features = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    one = audited(dataset(pixels), thirds(200), features=features, workers=1)
    two = audited(dataset(pixels), thirds(200), features=features, workers=4)
    assert one.to_json() == two.to_json()
    assert one.label_issues == two.label_issues
    assert one.near_test_rows.tolist() == [*range(150, 200)]


def test_an_empty_dataset_is_audited() -> None:
    report = audited(Dataset([], []), None)
    assert report.blocking() is None
    assert report.to_json()["examples"] == 0
