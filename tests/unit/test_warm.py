"""The warm path: where every feature is known nothing is built and torch stays out; what is remembered is checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as save_file
from scipy import optimize
from scipy.special import logsumexp

import warmstart as ws
from warmstart import calibrate, durable, runtime, sources, tasks, trained
from warmstart.data import read
from warmstart.errors import CheckpointError, SourceError
from warmstart.models import Card, lazy, weights
from warmstart.plugins import load as plugin

SCRIPT = """
import json, sys
from warmstart import workflow
given = {"data.image_size": 32, "data.duplicates": "allow"}
run = workflow.finetune(sys.argv[1], backbone=sys.argv[2], strategy="probe", overrides=given, out=sys.argv[3], seed=int(sys.argv[4]))
print(json.dumps({"torch": "torch" in sys.modules, "metrics": {m.name: m.value for m in run.metrics}}))
"""  # noqa: E501


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A weights folder with a tiny network."""
    built, card = sources.load("random/test_resnet")
    weights.save_backbone(built, replace(card, name="local/tiny"), tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes that differ in colour."""
    draw = runtime.rng(0, "pictures")
    for number in range(60):
        place = tmp_path / "pictures" / ("red" if number % 2 else "blue")
        place.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 120, (32, 32, 3), dtype=np.uint8)
        pixels[..., 0 if number % 2 else 2] += 130
        Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "pictures"


def finetune(pictures: Path, backbone: Path, out: Path, seed: int = 0) -> dict[str, object]:
    """Run the command in a process of its own."""
    words = [sys.executable, "-c", SCRIPT, str(pictures), str(backbone), str(out), str(seed)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.slow
def test_on_known_features_torch_is_not_imported_and_the_answer_is_the_same(
    pictures: Path, backbone: Path, tmp_path: Path
) -> None:
    cold = finetune(pictures, backbone, tmp_path / "cold")
    warm = finetune(pictures, backbone, tmp_path / "warm")
    assert (cold["torch"], warm["torch"]) == (True, False)
    assert warm["metrics"] == cold["metrics"]
    for name in ("model.safetensors", "head.safetensors", "card.json"):
        assert (tmp_path / "warm/weights" / name).read_bytes() == (tmp_path / "cold/weights" / name).read_bytes()
    assert trained.load(tmp_path / "warm").identity() == trained.load(tmp_path / "cold").identity()
    report = json.loads((tmp_path / "warm/report.json").read_text())
    assert report["explanations"] == [] and "no network was built" in report["absent"]["explanations"]


def test_a_model_that_was_not_built_predicts_when_asked(pictures: Path, backbone: Path, tmp_path: Path) -> None:
    given = {"data.image_size": 32, "data.duplicates": "allow"}
    files = sorted(pictures.glob("*/*.png"))
    values = []
    for name in ("one", "two"):
        run = ws.finetune(pictures, backbone=str(backbone), strategy="probe", overrides=given, out=tmp_path / name)
        values.append(run.model.predict_proba(files))
    np.testing.assert_array_equal(*values)
    lazily = trained.load(tmp_path / "two", build=False)
    assert not lazily.built and lazily.frozen is not None
    np.testing.assert_array_equal(lazily.predict_proba(files), values[0])
    assert lazily.built


def test_a_card_is_known_by_the_stamp_of_its_file(backbone: Path) -> None:
    _, card = sources.load(str(backbone))
    assert sources.card(str(backbone)) == card
    assert not sources.defer(str(backbone)).built
    other, other_card = sources.load("random/test_resnet")
    with torch.no_grad():
        next(iter(other.parameters())).add_(1)  # type: ignore[attr-defined]
    weights.save_backbone(other, replace(other_card, name="local/tiny"), backbone)
    fresh = sources.defer(str(backbone))
    assert fresh.built, "the file is another one, so what was remembered does not count"
    assert fresh.card.weights_hash != card.weights_hash


def test_weights_that_changed_under_the_same_stamp_are_refused(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.load(str(backbone))
    path = next(path for path in lazy.folder().glob("*.json") if b'"stamps"' in path.read_bytes())
    facts = lazy.recall(path)
    assert facts is not None
    card = dict(facts["card"])  # type: ignore[call-overload]
    lazy.keep(path, {**facts, "card": {**card, "weights_hash": "0" * 32}})
    deferred = sources.defer(str(backbone))
    with pytest.raises(SourceError) as caught:
        deferred.get()
    assert str(caught.value) == (
        f"the weights of local/tiny were {'0' * 32} when they were last read, and are {card['weights_hash']} now\n"
        "  fix: run the command again: from now on the new weights count"
    )
    assert sources.defer(str(backbone)).card.weights_hash == card["weights_hash"], "said and done"


def test_damaged_memory_is_found_out_again(backbone: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, card = sources.load(str(backbone))
    for path in lazy.folder().glob("*.json"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert sources.card(str(backbone)) == card
    assert "is damaged, and what it says is found out again" in caplog.text


def test_kept_weights_that_are_damaged_are_not_copied(backbone: Path, tmp_path: Path) -> None:
    built, card = sources.load(str(backbone))
    known = sources.defer(str(backbone))
    weights.save_backbone(lazy.LazyBackbone.of(built, card), card, tmp_path / "first")
    kept = weights.kept(card)
    assert kept.read_bytes() == (backbone / "model.safetensors").read_bytes()
    data = bytearray(kept.read_bytes())
    data[-5] ^= 1
    durable.write_bytes(kept, bytes(data))
    weights.save_backbone(known, card, tmp_path / "again")
    assert known.built, "the copy has another hash, so the network was built"
    assert weights.load_folder(tmp_path / "again")[1].weights_hash == card.weights_hash


@pytest.mark.parametrize(
    ("name", "problem", "fix"),
    [
        ("nowhere/x", "backbone 'nowhere/x' names no source and is no folder (expected source/name)", "local/x"),
        ("package/efficientnet_lite0x", "no package with weights 'efficientnet_lite0x'", "package/efficientnet_lite0"),
        ("random/resnet1888", "timm has no architecture 'resnet1888'", "resnet18"),
        ("local/nothing", "no backbone 'nothing' on the shelf", "give a path"),
    ],
)
def test_an_unknown_name_is_refused_without_loading(name: str, problem: str, fix: str) -> None:
    with pytest.raises(SourceError) as caught:
        sources.check(name)
    assert problem in caught.value.problem
    assert fix in caught.value.fix


def test_a_known_name_passes(backbone: Path) -> None:
    sources.check(str(backbone))
    sources.check("random/resnet18")
    sources.check("package/efficientnet_lite0")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8])
def test_a_file_has_the_hash_of_its_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6).reshape(2, 3).to(dtype), "a.c": torch.ones(4), "network.d": torch.tensor(3.0)}
    weights.save_tensors(tensors, tmp_path / "x.safetensors")
    assert weights.hash_of((tmp_path / "x.safetensors").read_bytes()) == weights.weights_hash(tensors)


def test_a_type_that_is_not_known_is_refused() -> None:
    data = save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)})
    with pytest.raises(CheckpointError) as caught:
        weights.hash_of(data)
    assert str(caught.value) == "tensors of the type F8_E4M3 are not known here\n  fix: save them as float32"


@pytest.mark.parametrize(
    "targets",
    [["a", "b", "c"] * 2, [["a"], ["b", "c"], ["c"]] * 2, np.arange(6.0), np.arange(12.0).reshape(6, 2) ** 2],
)
def test_values_are_those_of_predict(targets: object) -> None:
    dataset = read.from_arrays(np.zeros((6, 4, 4, 3), np.uint8), targets)  # type: ignore[arg-type]
    task = plugin("task", tasks.for_dataset(dataset))().bind(dataset)
    outputs = runtime.rng(0).normal(0, 30, (50, task.num_outputs)).astype(np.float32)
    found = tasks.values(task, outputs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, task.predict(torch.from_numpy(outputs)).numpy(), rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("factor", [0.1, 1.0, 3.0])
def test_temperature_is_where_scipy_finds_it(factor: float) -> None:
    draw = runtime.rng(1)
    targets = draw.integers(0, 5, 400)
    outputs = (np.eye(5)[targets] * 2 + draw.normal(0, 1.5, (400, 5))) * factor

    def loss(log_t: float) -> float:
        scores = outputs / np.exp(log_t)
        return float((logsumexp(scores, axis=1) - scores[np.arange(400), targets]).mean())

    best = optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8})
    assert calibrate.fit_temperature(outputs, targets) == pytest.approx(np.exp(best.x), rel=1e-5)


def test_cards_are_listed_facts_where_nothing_is_remembered() -> None:
    found = sources.card("package/efficientnet_lite0")
    assert isinstance(found, Card) and found.dim == 1280
    assert os.environ["WARMSTART_CACHE"] in str(lazy.folder())
