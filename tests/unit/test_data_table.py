"""Tables in every format, what is guessed and said, and each way in which a table can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from warmstart.data import Dataset, read, targets
from warmstart.errors import DataError

ROWS = [
    {"file": "img/a.png", "label": "cat", "patient": "p1", "split": "train"},
    {"file": "img/b.png", "label": "dog", "patient": "p1", "split": "train"},
    {"file": "img/c.png", "label": "cat", "patient": "p2", "split": "valid"},
    {"file": "img/ü, d.png", "label": "dog", "patient": "p3", "split": "Test"},
]


def write(folder: Path, name: str, rows: list[dict[str, object]], *, encoding: str = "utf-8") -> Path:
    path = folder / name
    suffix = path.suffix
    if suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif suffix in (".jsonl", ".ndjson"):
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding)
    else:
        mark = "\t" if suffix == ".tsv" else ","

        def quoted(cell: object) -> str:
            text = "" if cell is None else str(cell)
            return f'"{text}"' if mark in text else text

        lines = [mark.join(rows[0]), *(mark.join(quoted(cell) for cell in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    for row in ROWS:
        (tmp_path / str(row["file"])).write_bytes(b"x")
    return tmp_path


def fails(path: Path, **options: str) -> str:
    with pytest.raises(DataError) as caught:
        read.read(path, **options)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.ndjson", "t.parquet"])
def test_every_format_with_columns_named(folder: Path, name: str) -> None:
    data = read.read(
        write(folder, name, ROWS),
        image_column="file",
        target_column="label",
        group_column="patient",
        split_column="split",
    )
    assert list(data.ids) == [row["file"] for row in ROWS]
    assert [data[row].target for row in range(4)] == ["cat", "dog", "cat", "dog"]
    assert data.given_split is not None
    assert data.given_split.tolist() == ["train", "train", "val", "test"]
    assert [data[row].group for row in range(4)] == ["p1", "p1", "p2", "p3"]
    assert data.inputs[3] == folder / "img/ü, d.png"


def test_what_is_guessed_is_said(folder: Path) -> None:
    data = read.read(write(folder, "t.csv", ROWS))
    assert (data.class_names, data.groups, data.name) == (("cat", "dog"), None, "t")
    assert data.notes == (
        "pictures are in column 'file'",
        "column 'label' holds 2 classes",
        "splits are in column 'split'",
        "columns that are not used: patient",
    )


def test_other_separators_of_cells_and_encodings(folder: Path) -> None:
    path = folder / "t.csv"
    text = "file;label\nimg/a.png;Kä\n\nimg/b.png;B\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(text.replace("\n", "\r\n"), encoding, newline="")
        data = read.read(path)
        assert data.class_names == ("B", "Kä")
        assert data.notes[0] == "cells are separated by ';'"


def with_targets(folder: Path, values: list[object], **options: str) -> Dataset:
    names = [row["file"] for row in ROWS] * (1 + len(values) // 4)
    rows = [
        {"file": name, "id": str(at), "y": value} for at, (name, value) in enumerate(zip(names, values, strict=False))
    ]
    return read.read(write(folder, "t.jsonl", rows), id_column="id", target_column="y", **options)  # type: ignore[arg-type]


def test_several_labels(folder: Path) -> None:
    data = with_targets(folder, ["a|b", "b", "", " c | a "], separator="|")
    assert [data[row].target for row in range(4)] == [("a", "b"), ("b",), (), ("a", "c")]
    data = with_targets(folder, [["a", "b"], [], ["b"], ["c"]])
    assert (data.kind, data[0].target, data.class_names) == ("multi", ("a", "b"), ("a", "b", "c"))
    data = with_targets(folder, [[1, 2], [2], [10], [1]])
    assert data.class_names == ("1", "2", "10")


def test_several_target_columns(folder: Path) -> None:
    rows = [
        {"file": row["file"], "x": at / 2, "y": -at, "on": at % 2, "off": 1 - at % 2} for at, row in enumerate(ROWS)
    ]
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        path = write(folder, name, rows)
        data = read.read(path, target_column="x,y")
        assert (data.kind, data.class_names, data[3].target) == ("vector", ("x", "y"), (1.5, -3.0))
        data = read.read(path, target_column="on, off")
        assert (data.kind, data[3].target) == ("multi", ("on",))
        assert "columns on, off hold 0 and 1 only: one label each" in data.notes
        assert read.read(path, target_column="on,off", target_type="numbers").kind == "vector"


def test_lists_of_numbers_are_a_vector(folder: Path) -> None:
    data = with_targets(folder, [[0.5, 1], [1.5, 2], [2.5, 3], [3.5, 4]])
    assert (data.kind, data[1].target) == ("vector", (1.5, 2.0))
    with pytest.raises(DataError) as caught:
        with_targets(folder, [[0.5, 1.0], [1.5], [2.5, 3.0], [3.5, 4.0]])
    assert str(caught.value) == (
        "column 'y' holds lists of 2 numbers, but line 2 has 1\n  fix: give every row as many numbers"
    )


INTS = list(range(30)) * 2
RULE = [
    (["cat", "dog"] * 10, "single"),
    ([0, 1] * 10, "single"),
    (["0", "1"] * 10, "single"),
    ([0.0, 1 / 3, 2 / 3, 1.0] * 10, "scalar"),
    (["0.5", "1", "2.5"] * 10, "scalar"),
    (INTS, "scalar"),
    (list(range(30)) * 5, "single"),
    (list(range(1, 31)) * 5, "scalar"),
    ([1, 5, 9, 100, 200], "scalar"),
    ([True, False] * 5, "single"),
    (["1e3", "2e3", "-4"], "scalar"),
    ([3, 1, 4, 1, 5, 9, 2, 6] * 2, "single"),
    (["12a"] * 3 + ["7"] * 3, "single"),
]


@pytest.mark.parametrize(("values", "kind"), RULE)
def test_rule_for_classes_and_numbers(values: list[object], kind: str) -> None:
    found = targets.infer(values, name="y")
    assert found.kind == kind
    assert found.note == (
        f"column 'y' holds {len(set(values))} classes" if kind == "single" else "column 'y' is numbers: regression"
    )


def test_the_rule_can_be_overruled() -> None:
    assert targets.infer(INTS, name="y", target_type="classes").kind == "single"
    assert targets.infer([0, 1, 0, 1], name="y", target_type="numbers").kind == "scalar"
    assert targets.infer([0, 1, 0, 1], name="y", target_type="numbers").values is not None


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=30)
)
def test_classes_round_trip(names: list[str]) -> None:
    found = targets.single(names)
    assert found.values is not None
    assert [found.class_names[at] for at in found.values] == names


@pytest.mark.parametrize("nothing", ["", "NaN", "nan", "NA", None, float("nan"), "inf"])
def test_missing_numbers_are_listed_with_their_rows(nothing: object) -> None:
    values = [0.5, 1.5, nothing, 2.5, 3.5] * 30
    with pytest.raises(DataError) as caught:
        targets.infer(values, name="age", where=lambda row: f"line {row + 2}")
    first, second = str(caught.value).splitlines()
    assert first.startswith("30 targets in column 'age' are missing or NaN (line 4, line 9, line 14,")
    assert first.endswith("line 99 and 10 more)")
    assert second == "  fix: fill them in, or remove those rows"


def test_missing_classes_and_words_among_numbers() -> None:
    with pytest.raises(DataError, match=r"1 targets in column 'y' are missing or NaN \(row 2\)"):
        targets.infer(["a", None, "b"], name="y")
    with pytest.raises(DataError) as caught:
        targets.infer([*np.linspace(0, 1, 40).tolist(), "12,5"], name="y")
    assert str(caught.value) == (
        "column 'y' is numbers, but not everywhere (row 41: '12,5')\n  fix: correct these, or --task classification"
    )
    with pytest.raises(DataError, match=r"column 'y' must be numbers, but is not everywhere \(row 2: 'b'\)"):
        targets.infer(["1", "b"], name="y", target_type="numbers")


def test_pictures_inside_parquet(folder: Path) -> None:
    rows = [{"image": {"bytes": bytes([at]), "path": f"{at}.png"}, "label": at % 2} for at in range(4)]
    data = read.read(write(folder, "t.parquet", rows))
    assert (list(data.ids), data.inputs[3]) == (["0.png", "1.png", "2.png", "3.png"], b"\x03")
    data = read.read(write(folder, "t.parquet", [{"image": bytes([at]), "label": at % 2} for at in range(4)]))
    assert data.ids[0] == "row 1"


def test_unknown_column(folder: Path) -> None:
    path = write(folder, "t.csv", ROWS)
    assert fails(path, target_column="lable") == (
        f"no column 'lable' in {path} (--target-column lable), which has file, label, patient, split\n"
        "  fix: did you mean 'label'?"
    )
    for option in ("image_column", "group_column", "split_column", "id_column"):
        assert fails(path, **{option: "nothing"}).startswith(
            f"no column 'nothing' in {path} (--{option.replace('_', '-')} nothing)"
        )


def test_columns_that_cannot_be_guessed(folder: Path) -> None:
    path = write(folder, "t.csv", [{"left": "img/a.png", "right": "img/b.png", "label": "x"}])
    assert fails(path) == (
        f"cannot tell which column of {path} holds the pictures, it has left, right, label\n  fix: --image-column left"
    )
    path = write(folder, "t.csv", [{"file": "img/a.png", "colour": "x", "shape": "y"}])
    assert fails(path) == (
        f"cannot tell which column of {path} holds the targets, it has colour, shape\n  fix: --target-column colour"
    )
    data = read.read(write(folder, "t.csv", [{"file": "img/a.png"}]))
    assert data.kind == "none"
    data = read.read(
        write(folder, "t.csv", [{"file": "img/a.png", "colour": "x"}, {"file": "img/b.png", "colour": "y"}])
    )
    assert data.class_names == ("x", "y")


def test_encodings_that_cannot_be_read(folder: Path) -> None:
    path = folder / "t.csv"
    path.write_bytes(b"file,label\nimg/a.png,caf\xe9\n")
    assert fails(path) == (
        f"{path} is not UTF-8: byte 0xe9 at position 24 (line 2)\n"
        f"  fix: iconv -f WINDOWS-1252 -t UTF-8 {path} > {path.with_name('t.utf8.csv')}"
    )
    path.write_bytes(b"\xef\xbb\xbffile,label\nimg/a.png,caf\xe9\n")
    assert "byte 0xe9 at position 27 (line 2)" in fails(path)
    path.write_bytes(b"\xff\xfea\x00\x00\xd8")
    assert fails(path).startswith(f"{path} is not UTF-16: byte ")


def test_repeated_ids_and_overlapping_splits(folder: Path) -> None:
    path = write(folder, "t.csv", [ROWS[0], ROWS[1], ROWS[0]])
    assert fails(path) == (
        "duplicate ids: 1 ids occur more than once (img/a.png in line 2, line 4)\n"
        "  fix: remove the repeated rows, or name a column of unique values with --id-column"
    )
    path = write(folder, "t.csv", [*ROWS, {**ROWS[0], "split": "test"}])
    assert fails(path) == (
        "splits overlap: 1 ids are in more than one split (img/a.png in train line 2 and test line 6)\n"
        "  fix: keep each id in one split"
    )


def test_missing_pictures_are_listed_together(folder: Path) -> None:
    rows = [{"file": f"img/{at}.png", "label": "x"} for at in range(25)]
    path = write(folder, "t.csv", [*rows, {"file": "img/a.png", "label": "y"}])
    first, second = fails(path).splitlines()
    assert first.startswith(f"25 of 26 pictures of {path} do not exist (img/0.png in line 2, img/1.png in line 3,")
    assert first.endswith("img/19.png in line 21 and 5 more)")
    assert second == f"  fix: paths are relative to the table's folder, {folder}: move the table, or correct its paths"


def test_absolute_and_climbing_paths_are_fine(folder: Path) -> None:
    (folder / "lists").mkdir()
    rows = [{"file": "../img/a.png", "label": "x"}, {"file": str(folder / "img/b.png"), "label": "y"}]
    data = read.read(write(folder / "lists", "t.csv", rows))
    assert [path.resolve() for path in data.inputs] == [folder / "img/a.png", folder / "img/b.png"]  # type: ignore[union-attr]


def test_cells_that_make_no_sense(folder: Path) -> None:
    path = write(folder, "t.csv", [{**ROWS[0], "split": "trian"}, {**ROWS[1], "split": ""}])
    assert fails(path, split_column="split", target_column="label") == (
        "2 cells of split column 'split' are not train, val or test (line 2: 'trian', line 3: '')\n"
        "  fix: did you mean 'train'?"
    )
    path = write(folder, "t.csv", [{**ROWS[0], "patient": ""}, ROWS[1]])
    assert fails(path, group_column="patient").startswith("1 cells of group column 'patient' are empty (line 2)")
    path = write(folder, "t.csv", [{**ROWS[0], "file": ""}, ROWS[1]])
    assert fails(path).startswith("1 cells of image column 'file' are empty (line 2)")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "{path} has no rows, expected a header and one row per picture"),
        ("t.csv", "file,label\n", "{path} has no rows, expected a header and one row per picture"),
        ("t.csv", "file,file\na,b\n", "{path} has more than one column named file"),
        (
            "t.csv",
            "file,label\nimg/a.png,x,y\nimg/b.png,z\nimg/c.png\n",
            "2 rows of {path} do not have the 2 cells of its header (line 2 has 3, line 4 has 1)",
        ),
        ("t.csv", 'file,label\nimg/a.png,"x\n', "{path} cannot be read at line 2: unexpected end of data"),
        (
            "t.jsonl",
            '{"file": 1}\nnonsense\n[1]\n',
            "2 lines of {path} are no JSON objects (line 2: Expecting value, line 3: no object)",
        ),
        ("t.parquet", "nonsense", "{path} cannot be read: "),
    ],
)
def test_tables_that_cannot_be_read(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    assert fails(folder / name).startswith(message.format(path=folder / name))


def test_parquet_without_pyarrow_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, "t.parquet", ROWS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert fails(path) == f"{path} is Parquet, which needs pyarrow\n  fix: pip install 'warmstart[tables]'"
