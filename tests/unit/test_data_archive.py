"""Archives from strangers: unpacked whole, or refused before a byte is written."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from warmstart.data import archive, read
from warmstart.errors import DataError


def tar(path: Path, *members: tarfile.TarInfo | tuple[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as packed:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                packed.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            packed.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zipped(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members:
            packed.writestr(name, data)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(path: Path, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        archive.safe_extract(path, folder)
    return str(caught.value)


GOOD = {"a/1.png": b"one", "b/deep/2.png": b"two", "empty": b""}


@pytest.mark.parametrize(
    ("name", "mode"),
    [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("x.tar.bz2", "w:bz2"), ("x.tar.xz", "w:xz")],
)
def test_tar(tmp_path: Path, name: str, mode: str) -> None:
    path = tar(tmp_path / name, special("a", tarfile.DIRTYPE), *GOOD.items(), mode=mode)
    assert archive.is_archive(path)
    archive.safe_extract(path, tmp_path / "out")
    assert contents(tmp_path / "out") == GOOD


def test_zip(tmp_path: Path) -> None:
    archive.safe_extract(zipped(tmp_path / "x.ZIP", ("a/", b""), *GOOD.items()), tmp_path / "out")
    assert contents(tmp_path / "out") == GOOD


def test_links_inside_become_copies(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "x.tar",
        ("a/1.png", b"one"),
        special("b/soft.png", tarfile.SYMTYPE, "../a/1.png"),
        special("b/hard.png", tarfile.LNKTYPE, "a/1.png"),
    )
    archive.safe_extract(path, tmp_path / "out")
    assert contents(tmp_path / "out") == {"a/1.png": b"one", "b/soft.png": b"one", "b/hard.png": b"one"}
    assert not (tmp_path / "out/b/soft.png").is_symlink()


CLIMBS = {
    "../evil.png": "a path that climbs out of its folder",
    "a/../../evil.png": "a path that climbs out of its folder",
    "/evil.png": "an absolute path",
    "C:/evil.png": "an absolute path",
    "a\\..\\..\\evil.png": "a path that climbs out of its folder",
    "\\evil.png": "an absolute path",
}


@pytest.mark.parametrize("name", sorted(CLIMBS))
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_that_climb_out_are_refused_before_anything_is_written(tmp_path: Path, name: str, kind: str) -> None:
    make = zipped if kind == "zip" else tar
    path = make(tmp_path / f"x.{kind}", ("good.png", b"1"), (name, b"2"))
    out = tmp_path / "deep" / "out"
    assert refused(path, out) == (
        f"{path} is refused: 1 entries would leave its folder or are no files ({name}: {CLIMBS[name]})\n"
        "  fix: unpack it yourself after looking at it, and give the folder"
    )
    assert not out.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (special("l", tarfile.SYMTYPE, "/etc/passwd"), "l: a link out of its folder to /etc/passwd"),
        (special("a/l", tarfile.SYMTYPE, "../../x"), "a/l: a link out of its folder to ../../x"),
        (special("a/l", tarfile.LNKTYPE, "../x"), "a/l: a link out of its folder to ../x"),
        (special("d", tarfile.CHRTYPE), "d: a device, a pipe or a sparse file"),
        (special("p", tarfile.FIFOTYPE), "p: a device, a pipe or a sparse file"),
        (special("../d", tarfile.DIRTYPE), "../d: a path that climbs out of its folder"),
    ],
)
def test_links_out_and_devices_are_refused(tmp_path: Path, member: tarfile.TarInfo, reason: str) -> None:
    path = tar(tmp_path / "x.tar", ("good.png", b"1"), member)
    assert f"({reason})" in refused(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_then_a_file_through_it_cannot_escape(tmp_path: Path) -> None:
    """The classic: `x` links out, then `x/evil` is written through it."""
    path = tar(tmp_path / "x.tar", special("x", tarfile.SYMTYPE, "a/../.."), ("x/evil.png", b"2"))
    assert "a link out of its folder" in refused(path, tmp_path / "out")
    path = tar(tmp_path / "y.tar", special("x", tarfile.SYMTYPE, "nowhere"), ("x/evil.png", b"2"))
    assert refused(path, tmp_path / "out2").startswith(f"{path} is damaged or no archive (x links to nowhere")


def test_zip_links_and_passwords_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        info = zipfile.ZipInfo("l")
        info.external_attr = 0o120777 << 16
        packed.writestr(info, "/etc/passwd")
    assert "(l: a link or a device)" in refused(tmp_path / "x.zip", tmp_path / "out")
    data = bytearray(zipped(tmp_path / "y.zip", ("a.png", b"1")).read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "y.zip").write_bytes(data)
    assert "(a.png: it needs a password)" in refused(tmp_path / "y.zip", tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_bombs_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "SMALL_BYTES", 100_000)
    zeros = ("zeros.png", b"\0" * 5_000_000)
    path = zipped(tmp_path / "x.zip", zeros) if kind == "zip" else tar(tmp_path / "x.tar.gz", zeros, mode="w:gz")
    assert refused(path, tmp_path / "out") == (
        f"{path} unpacks to more than 200 times its {path.stat().st_size} bytes (a decompression bomb?)\n"
        "  fix: unpack it yourself if you trust it, and give the folder"
    )
    assert not (tmp_path / "out").exists()


def test_many_links_to_one_file_are_a_bomb_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "SMALL_BYTES", 100_000)
    monkeypatch.setattr(archive, "MAX_RATIO", 20)
    links = [special(f"l{at}", tarfile.LNKTYPE, "a") for at in range(300)]
    path = tar(tmp_path / "x.tar", ("a", np.random.default_rng(0).bytes(90_000)), *links)
    assert "unpacks to more than 20 times" in refused(path, tmp_path / "out")


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.xz"])
def test_damage(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not an archive at all" * 40)
    assert refused(tmp_path / name, tmp_path / "out").startswith(f"{tmp_path / name} is damaged or no archive (")
    whole = tar(tmp_path / "w.tar.gz", ("a.png", np.random.default_rng(0).bytes(50_000)), mode="w:gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[:20_000])
    assert "is damaged or no archive" in refused(tmp_path / "cut.tar.gz", tmp_path / "out")


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def test_read_unpacks_into_the_cache_once_and_steps_into_the_only_folder(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", ("photos/a/1.png", png(1)), ("photos/b/2.png", png(2)), ("__MACOSX/._x", b""))
    data = read.read(path)
    assert (list(data.ids), data.name) == (["a/1.png", "b/2.png"], "photos")
    first = data.inputs[0]
    assert isinstance(first, Path)
    before = first.stat().st_mtime_ns
    again = read.read(path).inputs[0]
    assert again == first
    assert first.stat().st_mtime_ns == before
    zipped(path, ("a/1.png", png(3)), ("b/2.png", png(2)), ("b/3.png", png(2)))
    assert len(read.read(path)) == 3


def test_a_table_inside_an_archive(tmp_path: Path) -> None:
    table = b"file,label\n1.png,x\n2.png,y\n"
    data = read.read(zipped(tmp_path / "x.zip", ("set/t.csv", table), ("set/1.png", png(1)), ("set/2.png", png(2))))
    assert len(data) == 2


def test_a_refused_archive_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="would leave its folder"):
        read.read(zipped(tmp_path / "x.zip", ("../x.png", png(1))))
    assert not list((tmp_path / "cache").rglob("*.png"))
