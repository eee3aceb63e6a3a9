"""Weights on disk: what is saved comes back, what is damaged or foreign is refused, nothing runs code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import save_file
from torch import Tensor, nn

from warmstart import runtime
from warmstart.errors import CheckpointError, SourceError
from warmstart.models import Card, InputSpec, weights
from warmstart.models.build import backbone
from warmstart.models.chain import ChainBackbone

SPEC = InputSpec(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_fraction=0.9)


@pytest.fixture(scope="module")
def small() -> ChainBackbone:
    """Build the smallest backbone once; tests do not change it."""
    return backbone("timm:mobilenetv3_small_050", SPEC, seed=1).eval()


def saved(small: ChainBackbone, folder: Path) -> Card:
    return weights.save_backbone(small, Card("local/small", arch="timm:mobilenetv3_small_050"), folder)


tensors = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4),
    arrays.arrays(
        st.sampled_from([np.float32, np.int64, np.float16, np.uint8, np.bool_]), arrays.array_shapes(min_dims=0)
    ),
    max_size=4,
)


@given(tensors, st.randoms())
def test_hash_ignores_order_and_sees_everything_else(values: dict[str, np.ndarray], random: object) -> None:
    named = {name: torch.from_numpy(value) for name, value in values.items()}
    shuffled = list(named.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    same = weights.weights_hash(named)
    assert weights.weights_hash(dict(shuffled)) == same
    assert weights.weights_hash({f"network.{name}": tensor for name, tensor in named.items()}) == same
    for name, tensor in named.items():
        others = {key: value for key, value in named.items() if key != name}
        assert weights.weights_hash(others) != same
        assert weights.weights_hash(others | {name: tensor.reshape(1, *tensor.shape)}) != same
        flipped = tensor.clone().reshape(-1).contiguous()
        flipped.view(torch.uint8)[0] ^= 1
        assert weights.weights_hash(others | {name: flipped.reshape(tensor.shape)}) != same


def test_hash_sees_the_type() -> None:
    zeros = torch.zeros(4, dtype=torch.float32)
    assert weights.weights_hash({"a": zeros}) != weights.weights_hash({"a": zeros.to(torch.int32)})


def test_hash_of_tensors_that_are_not_contiguous() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    assert weights.weights_hash({"a": tensor.T}) == weights.weights_hash({"a": tensor.T.contiguous()})


def test_a_saved_backbone_comes_back(small: ChainBackbone, tmp_path: Path) -> None:
    card = saved(small, tmp_path)
    again, read = weights.load_folder(tmp_path)
    pixels = torch.from_numpy(runtime.rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
    assert read == card
    assert card.weights_hash == weights.weights_hash(small.state_dict())
    assert (card.dim, card.num_params) == (small.dim, sum(p.numel() for p in small.parameters()))
    assert again.spec == SPEC
    assert torch.equal(again.features(pixels).pooled, small.features(pixels).pooled)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "model.safetensors"]


def test_another_hash_is_refused(small: ChainBackbone, tmp_path: Path) -> None:
    card = saved(small, tmp_path)
    changed = weights.load_tensors(tmp_path / "model.safetensors")
    changed["classifier.weight" if "classifier.weight" in changed else next(iter(changed))].add_(1)
    weights.save_tensors(changed, tmp_path / "model.safetensors")
    found = weights.weights_hash(changed)
    with pytest.raises(CheckpointError) as caught:
        weights.load_folder(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/model.safetensors has hash {found}, but its card says {card.weights_hash}\n"
        "  fix: fetch or save the weights again"
    )


def test_weights_of_another_network_are_refused(small: ChainBackbone, tmp_path: Path) -> None:
    saved(small, tmp_path)
    facts = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(facts | {"arch": "timm:mobilenetv3_small_075"}))
    with pytest.raises(CheckpointError, match=r"does not fit the network: \d+ of another shape \("):
        weights.load_folder(tmp_path)


def test_a_pickle_is_refused_whatever_its_name(tmp_path: Path) -> None:
    old = tmp_path / "model.safetensors"
    for content in (pickle.dumps({"a": 1}), None):
        if content is None:
            torch.save({"a": torch.ones(1)}, old)
        else:
            old.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            weights.load_tensors(old)
        assert str(caught.value) == (
            f"{old} is a pickle, which can run code when it is read; expected safetensors\n"
            '  fix: where you trust it: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{old}', weights_only=True), '{old}')\""
        )


@given(at=st.integers(0, 10_000), cut=st.booleans())
def test_damage_is_never_loaded_as_something_else(at: int, cut: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    good = {"a": torch.arange(30.0), "b": torch.ones(3, 4)}
    save_file(good, path)
    data = bytearray(path.read_bytes())
    spot = at % len(data)
    if cut:
        data = data[:spot]
    else:
        data[spot] ^= 1 << at % 8
    path.write_bytes(data)
    try:
        found = weights.load_tensors(path)
    except CheckpointError:
        return
    assert weights.weights_hash(found) != weights.weights_hash(good)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not a tensor in sight")
    with pytest.raises(CheckpointError) as caught:
        weights.load_tensors(path)
    assert str(caught.value).startswith(f"{path} does not hold safetensors weights (")
    assert str(caught.value).endswith("\n  fix: fetch or save the weights again")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no weights at .*model\.safetensors\n  fix: give a folder with"):
        weights.load_tensors(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot read .*card\.json"):
        weights.load_folder(tmp_path)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"card\.json is not a card"):
        weights.load_folder(tmp_path)


def test_report_counts_every_tensor() -> None:
    target = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    given_tensors: dict[str, Tensor] = {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(5), "old": torch.ones(1)}
    report = weights.load_into(target, given_tensors)
    assert report == weights.LoadReport(
        loaded=("0.weight",),
        missing=("1.weight", "1.bias"),
        unexpected=("old",),
        reshaped=("0.bias: file (5,), network (3,)",),
    )
    assert torch.equal(target[0].weight, torch.ones(3, 2))
    with pytest.raises(CheckpointError) as caught:
        report.require_exact("head.safetensors")
    assert str(caught.value) == (
        "head.safetensors does not fit the network: 2 missing (1.weight, 1.bias); 1 unexpected (old); "
        "1 of another shape (0.bias: file (5,), network (3,))\n  fix: use the weights of this very network"
    )


def test_load_tensors_into(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    weights.save_tensors(source.state_dict(), tmp_path / "head.safetensors")
    assert weights.load_tensors_into(target, tmp_path / "head.safetensors").exact
    assert torch.equal(source.weight, target.weight)
