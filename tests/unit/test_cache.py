"""The store: whatever it returns is what was put in, whatever happened to its files in between."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from warmstart import durable, shards, spaces
from warmstart.cache import Cache, parse_size
from warmstart.errors import CacheError, RecipeError, RunError
from warmstart.spaces import Space


def keys_of(*numbers: int) -> np.ndarray:
    """Make a key per number; some end in zero bytes, which numpy's strings like to lose."""
    return np.array([number.to_bytes(2, "big") + b"k" + bytes(13) for number in numbers], shards.KEY)


def values_of(*numbers: int, width: int = 5) -> np.ndarray:
    """Make the row that belongs to each number."""
    return np.array([[number * 100 + column for column in range(width)] for number in numbers], np.float32)


def put(space: Space, *numbers: int) -> None:
    """Add the rows of these numbers."""
    space.add(keys_of(*numbers), values_of(*numbers))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of one space."""
    return tmp_path / "features" / "space"


def test_rows_come_back_in_any_order_with_repeats_and_from_several_shards(folder: Path) -> None:
    space = Space(folder)
    put(space, 1, 2, 3)
    put(space, 10, 11)
    for reader in (space, Space(folder)):
        wanted = (11, 2, 2, 1, 10)
        assert reader.find(keys_of(*wanted, 4)).tolist() == [True] * 5 + [False]
        rows = reader.rows(keys_of(*wanted))
        np.testing.assert_array_equal(rows[:], values_of(*wanted))
        np.testing.assert_array_equal(np.asarray(rows), values_of(*wanted))
        np.testing.assert_array_equal(rows[np.array([3, 0])], values_of(1, 11))
        np.testing.assert_array_equal(rows[np.array([False, True, False, False, True])], values_of(2, 10))
        np.testing.assert_array_equal(rows[1], values_of(2)[0])
        np.testing.assert_array_equal(rows[-1:], values_of(10))
        assert rows.shape == (5, 5)
        assert rows.ndim == 2
        assert len(rows) == 5
        assert rows.nbytes == 100
        assert len(reader) == 5


def test_rows_stay_mapped_above_the_size_for_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = Space(folder)
    put(space, 1, 2, 3)
    assert isinstance(space.rows(keys_of(1, 2)).load(), np.ndarray)
    monkeypatch.setattr(spaces, "IN_MEMORY_BYTES", 39)
    rows = space.rows(keys_of(1, 2)).load()
    assert isinstance(rows, spaces.Rows)
    part = rows[0:2]
    part[:] = 0  # a copy: what a caller does to it reaches neither the file nor the next caller
    np.testing.assert_array_equal(rows[0:2], values_of(1, 2))


def test_rows_in_order_are_one_slice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = Space(folder)
    put(space, *range(100))
    rows = space.rows(keys_of(*range(10, 90)))
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("a slice needs no row-by-row gathering"))
    np.testing.assert_array_equal(rows[:], values_of(*range(10, 90)))


def test_nothing_is_found_in_an_empty_space(folder: Path) -> None:
    assert not Space(folder).find(keys_of(1, 2)).any()
    assert not folder.exists()


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << (bit % 8)
    path.write_bytes(bytes(data))


def test_four_hundred_flips_and_truncations_are_never_served(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_sync", lambda _: None)
    numbers = tuple(range(20))
    kept = folder.parent / "kept"
    space = Space(folder)
    put(space, *numbers[:12])
    put(space, *numbers[12:])
    del space
    folder.rename(kept)
    rng = np.random.default_rng(0)
    lost = 0
    for trial in range(400):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, folder)
        files = sorted(path for path in folder.iterdir() if path.name != "space.json")
        path = files[rng.integers(len(files))]
        if trial % 4:
            flip(path, int(rng.integers(path.stat().st_size * 8)))
        else:
            os.truncate(path, int(rng.integers(path.stat().st_size)))
        space = Space(folder)
        found = space.find(keys_of(*numbers))
        present = np.array(numbers)[found].tolist()
        np.testing.assert_array_equal(space.rows(keys_of(*present))[:], values_of(*present).reshape(-1, 5))
        assert len(present) < 20, f"trial {trial}: {path.name} was damaged and all rows were served"
        lost += 20 - len(present)
        put(space, *(set(numbers) - set(present)))  # computed again, and whole from then on
        del space
        assert Space(folder).find(keys_of(*numbers)).all()
    assert lost >= 400
    assert "computed again" in caplog.text


def test_one_flipped_bit_costs_one_row(folder: Path) -> None:
    put(Space(folder), 1, 2, 3)
    flip(next(folder.glob("*.values")), 8 * 25)
    space = Space(folder)
    assert space.find(keys_of(1, 2, 3)).tolist() == [True, False, True]
    del space
    assert Space(folder).find(keys_of(1, 2, 3)).tolist() == [True, False, True]


def test_a_damaged_row_gives_way_to_its_copy_in_another_shard(folder: Path) -> None:
    one, other = Space(folder), Space(folder)
    put(one, 1, 2)
    put(other, 2, 1)
    del one, other
    flip(min(folder.glob("*.values")), 3)
    space = Space(folder)
    assert space.find(keys_of(1, 2)).all()
    np.testing.assert_array_equal(space.rows(keys_of(1, 2))[:], values_of(1, 2))


class StoreMachine(RuleBasedStateMachine):
    """Random histories against a dict: the cache may forget, and may never be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(durable, "_sync", lambda _: None)
        self.root = Path(tempfile.mkdtemp())
        self.folder = self.root / "features" / "space"
        self.known: set[int] = set()

    @initialize()
    def start(self) -> None:
        self.space = Space(self.folder)

    @rule(numbers=st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True))
    def add(self, numbers: list[int]) -> None:
        put(self.space, *numbers)
        self.known |= set(numbers)

    @rule(numbers=st.lists(st.integers(0, 40), max_size=8))
    def ask(self, numbers: list[int]) -> None:
        found = self.space.find(keys_of(*numbers))
        present = [number for number, here in zip(numbers, found, strict=True) if here]
        assert set(present) <= self.known
        np.testing.assert_array_equal(
            self.space.rows(keys_of(*present))[:].reshape(-1, 5), values_of(*present).reshape(-1, 5)
        )

    @rule()
    def ask_all_that_was_never_harmed(self) -> None:
        assert self.space.find(keys_of(*sorted(self.known))).all()

    @rule()
    def open_again(self) -> None:
        del self.space
        self.space = Space(self.folder)

    @rule(data=st.data())
    def harm(self, data: st.DataObject) -> None:
        files = [path for path in self.folder.glob("*") if path.name != "space.json" and path.stat().st_size]
        files.sort(key=lambda path: (path.suffix, path.stat().st_mtime_ns))  # names are random, histories must not be
        if not files:
            return
        del self.space
        path = data.draw(st.sampled_from(files))
        match data.draw(st.sampled_from(["flip", "truncate", "delete"])):
            case "flip":
                flip(path, data.draw(st.integers(0, path.stat().st_size * 8 - 1)))
            case "truncate":
                os.truncate(path, data.draw(st.integers(0, path.stat().st_size - 1)))
            case _:
                path.unlink()
        self.space = Space(self.folder)
        self.known = {number for number in self.known if self.space.find(keys_of(number)).all()}

    @rule(limit=st.integers(400, 2000))
    def evict(self, limit: int) -> None:
        del self.space
        Cache(self.root, limit).reserve(0)
        assert Cache(self.root).info().num_bytes <= limit
        self.space = Space(self.folder)
        self.known = {number for number in self.known if self.space.find(keys_of(number)).all()}

    @invariant()
    def length_counts_what_is_known(self) -> None:
        assert len(self.space) >= len(self.known)

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.root)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=40, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)


def run_python(code: str, *args: object) -> subprocess.Popen[bytes]:
    """Start another process that knows the helpers of this file."""
    prelude = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]\n"
    prelude += "from test_cache import *\n"
    return subprocess.Popen([sys.executable, "-c", prelude + code, *map(str, args)])


def test_two_processes_fill_one_space(folder: Path) -> None:
    code = """
space, first = Space(Path(sys.argv[1])), int(sys.argv[2])
for start in range(first, first + 60, 5):
    put(space, *range(start, start + 5))
"""
    writers = [run_python(code, folder, first) for first in (0, 30)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    space = Space(folder)
    everything = keys_of(*range(90))
    assert space.find(everything).all()
    np.testing.assert_array_equal(space.rows(everything)[:], values_of(*range(90)))
    assert len(space) == 90
    assert Cache(folder.parents[1]).info().num_rows == 120  # the overlap is there twice, and harms nobody


def test_kill_9_leaves_whole_shards_only(folder: Path) -> None:
    code = """
space = Space(Path(sys.argv[1]))
for number in range(100000):
    space.add(keys_of(*range(200)), np.full((200, 20000), number, np.float32))
"""
    rng = np.random.default_rng(0)
    for _ in range(4):
        writer = run_python(code, folder)
        while not list(folder.glob("*")):
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0.05, 0.4)))
        writer.kill()
        writer.wait()
        for index in folder.glob("*.index"):
            shard = shards.read(index)
            assert not len(shard.damaged(np.arange(200)))
            assert (shard.values == shard.values[0, 0]).all()
    litter = list(folder.glob(".*.tmp"))
    for path in folder.glob(".*"):
        os.utime(path, (0, 0))
    Space(folder)
    assert not list(folder.glob(".*.tmp")), litter


def test_values_without_index_are_swept_only_when_old(folder: Path) -> None:
    put(Space(folder), 1)
    lonely = folder / "x.values"
    lonely.write_bytes(b"1234")
    Space(folder)
    assert lonely.exists()
    os.utime(lonely, (0, 0))
    Space(folder)
    assert not lonely.exists()
    assert Space(folder).find(keys_of(1)).all()


def failing(k: int, real: Callable[..., None]) -> Callable[..., None]:
    """Let the k-th call, and all after it, find the disk full."""
    calls = iter(range(k))

    def call(*args: object) -> None:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args)

    return call


@pytest.mark.parametrize("operation", ["_write", "_sync", "_rename", "_sync_folder"])
@pytest.mark.parametrize("k", range(5))
def test_full_disk_at_every_write_keeps_rows_in_memory(
    operation: str, k: int, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    space = Space(folder)
    with monkeypatch.context() as patch:
        patch.setattr(durable, operation, failing(k, getattr(durable, operation)))
        put(space, 1, 2)
        put(space, 3)
        assert space.find(keys_of(1, 2, 3)).all()
        np.testing.assert_array_equal(space.rows(keys_of(3, 1, 2))[:], values_of(3, 1, 2))
        assert "No space left on device" in caplog.text
    del space
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        space = Space(folder)
    assert not caplog.records, "what is left behind is whole"
    present = np.array([1, 2, 3])[space.find(keys_of(1, 2, 3))].tolist()
    np.testing.assert_array_equal(space.rows(keys_of(*present))[:].reshape(-1, 5), values_of(*present).reshape(-1, 5))
    assert not list(folder.glob(".*.tmp"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of one megabyte, where we may."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_really_fills_up(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CacheError) as caught:
        Cache(small_disk).reserve(2**20)
    assert str(caught.value) == (
        f"1.0 MiB must be cached, but the disk of {small_disk} has only 1.0 MiB\n"
        "  fix: make room there, or set WARMSTART_CACHE to a folder on a larger disk"
    )
    space = Space(small_disk / "features" / "s")
    for number in range(20):
        space.add(keys_of(number), np.full((1, 25_000), number, np.float32))
    assert "No space left on device" in caplog.text
    rows = space.rows(keys_of(*range(20)))
    assert space.find(keys_of(*range(20))).all()
    assert (rows[:] == np.arange(20, dtype=np.float32)[:, None]).all()
    del space, rows
    assert 8 <= Space(small_disk / "features" / "s").find(keys_of(*range(20))).sum() < 20


def test_neither_disk_nor_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "_write", full)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10}))
    with pytest.raises(CacheError) as caught:
        put(Space(folder), 1)
    problem, fix = str(caught.value).split("\n")
    assert problem.startswith("the cache takes no more (cannot write ")
    assert problem.endswith("No space left on device), and 20 B do not fit in 10 B of free memory")
    assert fix == "  fix: set WARMSTART_CACHE to a folder on a larger disk"


def fill(root: Path, name: str, number: int, *, age: float) -> Path:
    """Write one row of 20 kB into its own space, used `age` seconds ago."""
    space = Space(root / "features" / name)
    space.add(keys_of(number), np.full((1, 5000), number, np.float32))
    index = next(space.folder.glob("*.index"))
    os.utime(index, (time.time() - age,) * 2)
    return index


def test_the_longest_unused_leaves_first_and_never_what_is_in_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100_000)
    held = Space(tmp_path / "features" / "held")
    held.add(keys_of(0), np.zeros((1, 5000), np.float32))
    os.utime(next(held.folder.glob("*.index")), (0, 0))
    old, older, young = (fill(tmp_path, name, 1, age=age) for name, age in (("b", 50), ("a", 90), ("c", 10)))
    cache.reserve(30_000)
    assert not older.exists()
    assert old.exists()
    assert young.exists()
    space = Space(old.parent)
    space.rows(keys_of(1))  # used now, so the younger one is next
    del space
    cache.reserve(50_000)
    assert old.exists()
    assert not young.exists()
    assert held.find(keys_of(0)).all()
    assert next(held.folder.glob("*.index")).exists()


def test_a_limit_too_low_is_said_with_sizes(tmp_path: Path) -> None:
    held = Space(tmp_path / "features" / "held")
    held.add(keys_of(0), np.zeros((1, 5000), np.float32))
    with pytest.raises(CacheError) as caught:
        Cache(tmp_path, 30_000).reserve(2**30)
    assert str(caught.value) == (
        f"1.0 GiB must be cached and 19.6 KiB are in use, but the cache in {tmp_path} may hold 29.3 KiB\n"
        "  fix: --cache-limit 2GiB"
    )


def test_info_and_clear(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.info().num_bytes == 0
    space = cache.space(weights="w", transform="t", cut=2, description="lite0 cut 2")
    put(space, 1, 2)
    cache.engines.mkdir()
    (cache.engines / "a.onnx").write_bytes(b"12345")
    info = cache.info()
    assert (info.root, info.num_rows, info.limit_bytes) == (tmp_path, 2, 20 * 2**30)
    assert [(found.description, found.num_rows) for found in info.spaces] == [("lite0 cut 2", 2)]
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".index", ".values", ".onnx")]
    assert info.num_bytes == sum(path.stat().st_size for path in files)
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "remembered.npz").write_bytes(b"123")
    everything = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert cache.clear() == everything
    assert cache.info().num_bytes == 0
    assert not list(tmp_path.rglob("*.*"))


def test_spaces_differ_by_weights_transform_and_cut(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    folders = {
        cache.space(weights=weights, transform=transform, cut=cut).folder
        for weights in "ab"
        for transform in "cd"
        for cut in (1, 2)
    }
    assert len(folders) == 8


@pytest.mark.parametrize(
    ("text", "size"), [("20GiB", 20 * 2**30), ("500 MB", 5 * 10**8), ("1000", 1000), ("1.5k", 1500), ("2TiB", 2**41)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, name="--cache-limit") == size


@pytest.mark.parametrize("text", ["", "much", "-5", "5 XB", "nan", "1e999", "5 Gb b"])
def test_no_size(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_size(text, name="--cache-limit")
    assert str(caught.value) == f"--cache-limit={text!r} is no size\n  fix: --cache-limit=20GiB"


def test_the_limit_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMSTART_CACHE_LIMIT", "3 GiB")
    assert Cache(tmp_path).limit_bytes == 3 * 2**30
    assert Cache(tmp_path, 7).limit_bytes == 7
    monkeypatch.setenv("WARMSTART_CACHE_LIMIT", "3 miles")
    with pytest.raises(RecipeError, match="WARMSTART_CACHE_LIMIT='3 miles' is no size"):
        Cache(tmp_path)


def test_a_write_that_fails_is_a_run_error_below_the_space(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_rename", failing(1, durable._rename))
    with pytest.raises(RunError):
        shards.write(folder, keys_of(1), values_of(1))
    assert not [path for path in folder.iterdir() if path.is_file()]
