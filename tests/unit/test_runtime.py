"""Seeds, hashes, places and the record of the environment."""

from __future__ import annotations

import getpass
import hashlib
import platform
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart import runtime
from warmstart.errors import RecipeError

PART = st.one_of(st.text(max_size=6), st.integers())


def test_digest_is_blake2b_of_sized_parts() -> None:
    sized = b"".join(len(part).to_bytes(8, "little") + part for part in (b"ab", b"7"))
    assert runtime.digest("ab", 7) == hashlib.blake2b(sized, digest_size=16).hexdigest()


@given(st.lists(st.text(max_size=4)), st.lists(st.text(max_size=4)))
def test_digest_tells_order_and_boundaries_apart(first: list[str], second: list[str]) -> None:
    assert (runtime.digest(*first) == runtime.digest(*second)) == (first == second)


@given(st.integers(), st.lists(PART, max_size=3))
def test_seed_fits_63_bits_and_repeats(seed: int, parts: list[str | int]) -> None:
    derived = runtime.seed_of(seed, *parts)
    assert 0 <= derived < 2**63
    assert derived == runtime.seed_of(seed, *parts)


def test_generator_is_the_same_on_every_machine() -> None:
    seed = int(hashlib.blake2b(_sized(b"3", b"order", b"0"), digest_size=16).hexdigest()[:16], 16) >> 1
    expected = np.random.Generator(np.random.Philox(seed)).integers(0, 1_000, 8)
    assert runtime.rng(3, "order", 0).integers(0, 1_000, 8).tolist() == expected.tolist()


def _sized(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def test_generators_of_different_purposes_differ() -> None:
    drawn = {
        tuple(runtime.rng(0, "augment", epoch, f"{row}.png").integers(0, 2**31, 4))
        for epoch in range(20)
        for row in range(50)
    }
    assert len(drawn) == 20 * 50


def test_generators_of_neighbouring_epochs_are_uncorrelated() -> None:
    draws = np.stack([runtime.rng(0, "order", epoch).standard_normal(4_000) for epoch in range(8)])
    off_diagonal = np.corrcoef(draws)[~np.eye(8, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(4_000)


def test_auto_finds_a_device() -> None:
    assert runtime.pick_device("auto").type in {"cpu", "cuda", "mps"}
    assert runtime.pick_device("cpu").type == "cpu"


def test_device_that_is_not_here() -> None:
    import torch

    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(RecipeError) as caught:
        runtime.pick_device(missing)
    assert str(caught.value) == f"device='{missing}' is not on this machine\n  fix: --device auto"


def test_threads_are_limited_inside_the_block_only() -> None:
    from threadpoolctl import threadpool_info

    np.ones((2, 2)) @ np.ones((2, 2))
    before = [pool["num_threads"] for pool in threadpool_info()]
    with runtime.threads(1):
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    assert [pool["num_threads"] for pool in threadpool_info()] == before


def test_places_are_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("WARMSTART_SHELF", str(tmp_path / "s"))
    assert (runtime.cache_root(), runtime.shelf_root()) == (tmp_path / "c", tmp_path / "s")


def test_places_follow_the_desktop_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARMSTART_CACHE")
    monkeypatch.delenv("WARMSTART_SHELF")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert runtime.cache_root() == tmp_path / "cache" / "warmstart"
    assert runtime.shelf_root() == tmp_path / "data" / "warmstart" / "shelf"


def test_places_default_to_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WARMSTART_CACHE", "WARMSTART_SHELF", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert runtime.cache_root() == Path.home() / ".cache" / "warmstart"
    assert runtime.shelf_root() == Path.home() / ".local" / "share" / "warmstart" / "shelf"


def test_environment_names_versions_and_no_person_or_machine() -> None:
    facts = runtime.environment()
    assert {"python", "system", "machine", "cpus", "torch", "numpy", "warmstart"} <= facts.keys()
    assert facts["numpy"] == np.__version__
    assert not {platform.node(), getpass.getuser()} & set(facts.values())


def test_cpus_are_counted() -> None:
    assert runtime.num_cpus() >= 1
