"""Extraction: right values, computed once, the same bits after a kill, and the fastest engine that agrees."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cache_helpers import CARD, SPEC, Tiny, dataset, pictures, transform
from warmstart import engine, extract, runtime, sources, spaces
from warmstart.cache import Cache
from warmstart.data import Dataset, images
from warmstart.data.transforms import for_train
from warmstart.errors import CacheError, DataError
from warmstart.extract import Extracted
from warmstart.models import lazy


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Return an empty cache."""
    return Cache(tmp_path / "cache")


def run(data: Dataset, cache: Cache, rows: Sequence[int] | None = None, **options: object) -> Extracted:
    """Extract with the tiny backbone unless the options say otherwise."""
    chosen = np.arange(len(data)) if rows is None else np.array(rows)
    options = {"backbone": Tiny(), "card": CARD, "cut": 2, "transform": transform(), **options}
    return extract.extract(data, chosen, cache=cache, **options)  # type: ignore[arg-type]


def expected(arrays: np.ndarray, cut: int = 2, net: Tiny | None = None) -> np.ndarray:
    """Compute what the backbone says, without any of our machinery."""
    with torch.no_grad():
        return (net or Tiny()).eval().prefix(torch.from_numpy(arrays).permute(0, 3, 1, 2), cut).numpy()


@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("num", [1, 31, 300])
def test_values_are_those_of_the_backbone(cut: int, num: int, cache: Cache) -> None:
    arrays = pictures(num)
    net = Tiny()
    net.train()
    for computed in (num, 0):
        got = run(dataset(arrays), cache, cut=cut, backbone=net)
        assert (got.computed, got.hits) == (computed, num - computed)
        assert got.values.dtype == np.float32
        np.testing.assert_allclose(got.values, expected(arrays, cut), rtol=1e-4, atol=1e-5)
    assert net.training
    assert net.one[1].num_batches_tracked == 0
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_hundred_more_cost_a_hundred(cache: Cache) -> None:
    arrays = pictures(400)
    assert run(dataset(arrays[:300]), cache).computed == 300
    again = run(dataset(arrays), cache)
    assert (again.computed, again.hits) == (100, 300)
    np.testing.assert_allclose(again.values, expected(arrays), rtol=1e-4, atol=1e-5)
    assert run(dataset(arrays), cache, rows=[399, 5, 5, 0]).computed == 0


def test_every_row_passes_the_engine_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = engine.pick

    def counting(prefix: engine.Prefix, batch: Tensor, *, remaining: int, folder: Path) -> engine.Choice:
        choice = real(prefix, batch, remaining=remaining, folder=folder)
        seen.append(0 if choice.values is None else len(choice.values))

        def submit_counted(pixels: Tensor) -> Callable[[], np.ndarray]:
            seen.append(len(pixels))
            return choice.submit(pixels)

        return replace(choice, submit=submit_counted)

    monkeypatch.setattr(engine, "pick", counting)
    run(dataset(pictures(300)), cache)
    assert sum(seen) == 300
    assert seen[0] == 2 * engine.CHUNK  # what the measurement computed counts
    run(dataset(pictures(300)), cache)
    assert sum(seen) == 300


def test_equal_pictures_are_computed_once(cache: Cache) -> None:
    arrays = np.concatenate([pictures(20), pictures(20)])
    got = run(dataset(arrays), cache)
    assert (got.computed, got.hits) == (20, 20)
    np.testing.assert_array_equal(got.values[:20], got.values[20:])
    assert got.values.flags.writeable


def test_hashes_of_the_audit_are_taken(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(pictures(20))
    hashes = [images.content_hash(array) for array in data.inputs]
    first = run(data, cache, rows=[7, 3])
    monkeypatch.setattr(images, "content_hash", lambda _: pytest.fail("the hashes are known"))
    assert run(data, cache, rows=[3, 7], content_hashes=hashes).computed == 0
    assert first.engine == "torch"


def test_other_weights_structure_transform_or_cut_are_other_values(cache: Cache) -> None:
    data = dataset(pictures(10))
    stretched = Tiny()
    stretched.one[1].eps = 0.1  # equal tensors, other function
    trained = Tiny()
    with torch.no_grad():
        trained.two[0].weight.add_(0.1)  # the card does not notice
    normalised = Tiny()
    normalised.spec = replace(SPEC, std=(0.25, 0.25, 0.25))
    variants: list[dict[str, object]] = [
        {},
        {"cut": 1},
        {"backbone": Tiny(seed=1)},
        {"backbone": stretched},
        {"backbone": trained},
        {"backbone": normalised},
        {"card": replace(CARD, arch="test:other")},
        {"transform": for_train(SPEC, augment="flip")},
    ]
    for variant in variants:
        assert run(data, cache, **variant).computed == 10, variant
    assert cache.info().num_rows == 10 * len(variants)
    for variant in variants:
        assert run(data, cache, **variant).computed == 0, variant


def test_views_follow_seed_view_and_example(cache: Cache) -> None:
    arrays = np.concatenate([pictures(6), pictures(6)])  # equal pictures under other names get other views
    data, random = dataset(arrays), for_train(SPEC, augment="standard")
    for view, seed in ((0, 0), (1, 0), (0, 1)):
        got = run(data, cache, transform=random, view=view, seed=seed)
        assert got.computed == 12
        drawn = [
            random(images.open_picture(array), runtime.rng(seed, "augment", view, name))
            for name, array in zip(data.ids, arrays, strict=True)
        ]
        with torch.no_grad():
            np.testing.assert_allclose(got.values, Tiny().eval().prefix(torch.stack(drawn), 2), rtol=1e-4, atol=1e-5)
    assert run(data, cache, transform=random, view=1).computed == 0
    assert run(data, cache).computed == 6
    assert run(data, cache, view=3, seed=9).computed == 0  # nothing random, so nothing new


def test_a_damaged_row_is_computed_again(cache: Cache) -> None:
    data = dataset(pictures(30))
    first = run(data, cache).values
    path = next(cache.features.glob("*/*.values"))
    raw = bytearray(path.read_bytes())
    raw[100] ^= 4
    path.write_bytes(bytes(raw))
    again = run(data, cache)
    assert again.computed == 1
    np.testing.assert_allclose(again.values, first, rtol=1e-5, atol=1e-6)
    assert run(data, cache).computed == 0


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from pathlib import Path
from cache_helpers import CARD, Tiny, dataset, pictures, transform
from warmstart import extract
from warmstart.cache import Cache
from warmstart.spaces import Space
torch.set_num_threads(1)
extract.FLUSH_BYTES = 4000
def add(space, keys, values, real=Space.add):
    real(space, keys, values)
    if sys.argv[3] == "kill":
        os.kill(os.getpid(), 9)
Space.add = add
extract.extract(dataset(pictures(300)), np.arange(300), backbone=Tiny(), card=CARD, cut=2, transform=transform(),
                cache=Cache(Path(sys.argv[2])))
"""


def test_killed_and_repeated_gives_the_same_bits(tmp_path: Path) -> None:
    def command(root: Path, how: str) -> int:
        tests = Path(__file__).parents[1]
        return subprocess.run([sys.executable, "-c", KILLED, tests, root, how], check=False).returncode

    assert command(tmp_path / "killed", "kill") == -9
    remembered = [path.read_text() for path in (tmp_path / "killed" / "engines").glob("*.json")]
    assert len(remembered) == 1  # before the first rows are on disk, so the rest comes from the same engine
    assert 0 < Cache(tmp_path / "killed").info().num_rows < 300
    while command(tmp_path / "killed", "kill"):
        pass
    assert [path.read_text() for path in (tmp_path / "killed" / "engines").glob("*.json")] == remembered
    whole = Cache(tmp_path / "whole")
    engines = whole.engines
    engines.mkdir(parents=True)
    for path in (tmp_path / "killed" / "engines").glob("*.json"):
        (engines / path.name).write_text(path.read_text())  # another measurement may choose another engine
    assert command(tmp_path / "whole", "finish") == 0
    data = dataset(pictures(300))
    one, other = (run(data, Cache(tmp_path / name)) for name in ("killed", "whole"))
    assert one.computed == other.computed == 0
    assert one.values.tobytes() == other.values.tobytes()


def test_measured_and_remembered_engines_give_the_same_bits(tmp_path: Path) -> None:
    one, other = Cache(tmp_path / "one"), Cache(tmp_path / "other")
    data = dataset(pictures(300))
    measured = run(data, one)
    other.root.mkdir()
    one.engines.rename(other.engines)
    recalled = run(data, other)
    assert recalled.engine == measured.engine
    assert recalled.computed == 300
    assert recalled.values.tobytes() == measured.values.tobytes()


def test_progress_counts_what_is_computed(cache: Cache) -> None:
    calls: list[tuple[int, int]] = []
    data = dataset(pictures(100))
    run(data, cache, rows=range(30))
    run(data, cache, batch_size=24, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(24, 70), (48, 70), (70, 70)]


def test_no_rows(cache: Cache) -> None:
    got = run(dataset(pictures(3)), cache, rows=[])
    assert (got.computed, got.hits, len(got.values)) == (0, 0, 0)


def test_large_values_stay_on_disk(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(extract, "FLUSH_BYTES", 10_000)
    arrays = pictures(100)
    values = run(dataset(arrays), cache, cut=1).values
    assert isinstance(values, spaces.Rows)
    assert values.shape == (100, 4, 8, 8)
    assert cache.info().num_rows == 100
    assert len(list(cache.features.glob("*/*.index"))) == 4
    picked = np.array([70, 2, 99])
    np.testing.assert_allclose(values[picked], expected(arrays[picked], 1), rtol=1e-4, atol=1e-5)


def test_too_low_a_limit_stops_before_the_work(tmp_path: Path) -> None:
    calls: list[int] = []
    with pytest.raises(CacheError) as caught:
        run(dataset(pictures(100)), Cache(tmp_path, 2000), cut=1, progress=lambda done, _: calls.append(done))
    assert str(caught.value) == (
        f"102.0 KiB must be cached and 0 B are in use, but the cache in {tmp_path} may hold 2.0 KiB\n"
        "  fix: --cache-limit 1GiB"
    )
    assert not calls


def test_a_missing_file_is_named(cache: Cache, tmp_path: Path) -> None:
    data = Dataset(ids=["cats/1.png"], inputs=[tmp_path / "cats/1.png"])
    with pytest.raises(DataError) as caught:
        run(data, cache)
    assert str(caught.value) == (
        "cats/1.png cannot be read: cannot be read: no such file or directory\n"
        "  fix: repair or remove the file; `warmstart audit` lists all such files"
    )


def test_few_pictures_are_not_worth_a_measurement(cache: Cache) -> None:
    got = run(dataset(pictures(engine.MEASURE_FROM - 1)), cache)
    assert (got.engine, got.engine_table) == ("torch", {})
    assert not cache.engines.exists()


def pick(net: Tiny, folder: Path, *, cut: int = 2, identity: str = "tiny") -> engine.Choice:
    """Pick an engine for the tiny backbone."""
    batch = torch.from_numpy(pictures(32)).permute(0, 3, 1, 2).contiguous()
    prefix = engine.Prefix(net, identity, cut, torch.device("cpu"))
    return engine.pick(prefix, batch, remaining=1000, folder=folder)


def test_the_table_has_a_row_for_every_engine(tmp_path: Path) -> None:
    choice = pick(Tiny(), tmp_path)
    assert list(choice.table) == ["torch", "torch channels-last", "onnxruntime"]
    assert all(timing.images_per_second and not timing.refused for timing in choice.table.values())
    assert all(timing.max_difference <= engine.TOLERANCE for timing in choice.table.values())
    rates = {name: timing.images_per_second for name, timing in choice.table.items()}
    assert rates[choice.name] == max(rates.values())
    again = pick(Tiny(), tmp_path)
    assert (again.name, again.table, again.reason) == (choice.name, choice.table, "measured before")


@pytest.mark.parametrize("name", ["torch", "torch channels-last", "onnxruntime"])
def test_bits_depend_on_neither_batch_size_nor_threads(
    name: engine.EngineName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.from_numpy(pictures(100)).permute(0, 3, 1, 2).contiguous()
    prefix = engine.Prefix(Tiny(), "tiny", 2, torch.device("cpu"))
    found = set()
    for threads, size in (("1", 100), ("2", 100), ("2", 16), ("1", 24)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        submit = engine._build(name, prefix, pixels, tmp_path)
        found.add(b"".join(submit(part)().tobytes() for part in torch.split(pixels, size)))
    assert len(found) == 1


class Wrong(Tiny):
    """Says one thing under the tracer and another outside."""

    def prefix(self, inputs: Tensor, cut: int) -> Tensor:
        hidden = super().prefix(inputs, cut)
        return hidden * 1.001 if torch.jit.is_tracing() else hidden


class Unexportable(Tiny):
    """Cannot be exported at all."""

    def prefix(self, inputs: Tensor, cut: int) -> Tensor:
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise NotImplementedError("no such operator")
        return super().prefix(inputs, cut)


def test_an_engine_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    choice = pick(Wrong(), tmp_path)
    assert choice.name != "onnxruntime"
    assert choice.table["onnxruntime"].refused == "differs from torch by 1.0e-03 of the largest value"


def test_an_engine_that_cannot_is_left_out(tmp_path: Path) -> None:
    choice = pick(Unexportable(), tmp_path)
    assert choice.name != "onnxruntime"
    assert choice.table["onnxruntime"].images_per_second is None
    assert choice.table["onnxruntime"].refused


def remember_onnx(folder: Path) -> None:
    """Let the memory say that ONNX Runtime won, whatever the clock said."""
    path = next(folder.glob("*.json"))
    facts = lazy.recall(path)
    assert facts is not None
    lazy.keep(path, {**facts, "engine": "onnxruntime"})


def test_the_exported_graph_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pick(Tiny(), tmp_path)
    remember_onnx(tmp_path)
    monkeypatch.setattr(engine, "_export", lambda *_: pytest.fail("the graph is there"))
    assert pick(Tiny(), tmp_path).name == "onnxruntime"


def test_a_damaged_graph_is_exported_again(tmp_path: Path) -> None:
    pick(Tiny(), tmp_path)
    remember_onnx(tmp_path)
    graph = next(tmp_path.glob("*.onnx"))
    whole = graph.read_bytes()
    for position in range(0, len(whole), len(whole) // 20):
        data = bytearray(whole)
        data[position] ^= 1
        graph.write_bytes(bytes(data))
        assert pick(Tiny(), tmp_path).name == "onnxruntime"
        assert engine._graph_on_disk(graph) is not None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"engine": "warp", "table": {}}', '{"engine": 1, "table": []}'])
def test_a_damaged_memory_is_measured_again(text: str, tmp_path: Path) -> None:
    pick(Tiny(), tmp_path)
    path = next(tmp_path.glob("*.json"))
    path.write_text(text)
    assert pick(Tiny(), tmp_path).reason == "fastest of those that agree"
    assert pick(Tiny(), tmp_path).reason == "measured before"


def test_a_remembered_engine_that_differs_now_is_measured_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pick(Tiny(), tmp_path)
    remember_onnx(tmp_path)
    assert pick(Tiny(seed=1), tmp_path).reason == "fastest of those that agree"  # the identity was a lie
    assert "no longer works: differs from torch by" in caplog.text


def test_the_newer_exporter_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> bytes:
        raise TypeError("dynamo=False is gone")

    monkeypatch.setattr(engine, "_export_traced", gone)
    timing = pick(Tiny(), tmp_path).table["onnxruntime"]
    assert not timing.refused
    assert timing.max_difference <= engine.TOLERANCE


def test_a_disk_that_keeps_no_engines_costs_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    choice = pick(Tiny(), tmp_path / "file" / "engines")
    assert choice.reason == "fastest of those that agree"
    assert "cannot write" in caplog.text


def test_threads_honour_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for stated, count in (("1", 1), ("", runtime.num_cpus()), ("0", runtime.num_cpus()), ("999", runtime.num_cpus())):
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
        assert engine._threads() == count


def test_a_network_that_resamples_its_positions_is_exported_without_a_page_of_graph(
    capfd: pytest.CaptureFixture[str],
) -> None:
    backbone, _ = sources.load("random/test_vit")
    own = backbone.spec.embedded_size or backbone.spec.image_size
    prefix = engine.Prefix(backbone, "x", len(backbone.layer_groups()), torch.device("cpu"))
    for side, resampled in ((own, False), (own // 2, True)):
        assert engine._resamples_positions(prefix, side) == resampled
    engine._export(prefix, torch.zeros((8, 3, own // 2, own // 2), dtype=torch.uint8))
    assert capfd.readouterr().out == ""
