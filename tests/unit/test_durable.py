"""Writes that are whole or not there."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from warmstart import durable
from warmstart.errors import CheckpointError, RunError


def test_a_write_says_what_it_wrote_and_leaves_nothing_aside(tmp_path: Path) -> None:
    written = durable.write(tmp_path / "deep" / "file", [b"ab", memoryview(b"cd"), b""])
    assert written == durable.Written(hashlib.sha256(b"abcd").hexdigest(), 4)
    assert durable.sha256(tmp_path / "deep" / "file") == written.sha256
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def test_order_is_write_flush_rename_flush_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for name in ("_write", "_sync", "_rename"):
        real = getattr(durable, name)

        def watched(*args: object, name: str = name, real: object = real) -> None:
            is_folder = name == "_sync" and Path(f"/proc/self/fd/{args[0]}").is_dir()
            told.append("_sync folder" if is_folder else name)
            real(*args)

        monkeypatch.setattr(durable, name, watched)
    durable.write_bytes(tmp_path / "file", b"x")
    assert told == ["_write", "_sync", "_rename", "_sync folder"]


@pytest.mark.parametrize("what", ["_write", "_sync", "_rename"])
def test_a_refusal_leaves_the_old_file_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    path = tmp_path / "file"
    durable.write_text(path, "old")

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, what, refuse)
    with pytest.raises(RunError) as caught:
        durable.write_text(path, "new")
    assert str(caught.value) == (
        f"cannot write {path}: No space left on device\n"
        f"  fix: make room or give permission in {tmp_path}, then repeat the command; it goes on where it stopped"
    )
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_torn_last_line_is_cut_off_before_the_next_is_added(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    for torn, kept in (
        (b"", b""),
        (b"torn", b""),
        (b"a\nto", b"a\n"),
        (b"a\n" + b"x" * 9000, b"a\n"),
        (b"a\n", b"a\n"),
    ):
        path.write_bytes(torn)
        durable.append(path, ["new", "newer"])
        assert path.read_bytes() == kept + b"new\nnewer\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1', "is not JSON (Expecting ',' delimiter: line 1 column 8 (char 7))"),
        (b"[1]", "holds a JSON list, expected an object"),
        (None, "cannot read"),
    ],
)
def test_json_that_cannot_be_read_is_an_error_of_two_lines(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "facts.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        durable.read_json(path, fix="do this", error=CheckpointError)
    first, second = str(caught.value).split("\n")
    assert said in first and str(path) in first and second == "  fix: do this"


def test_json_comes_back_as_it_went(tmp_path: Path) -> None:
    facts = {"a": [1, 2.5, None], "b": {"ü": "✓"}, "c": 0.1 + 0.2}
    durable.write_json(tmp_path / "facts.json", facts)
    assert durable.read_json(tmp_path / "facts.json", fix="") == facts


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    for name in (".file.12.tmp", "deep/.file.13.tmp", "kept"):
        durable.write_text(tmp_path / name, "x")
    durable.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["kept"]
