"""Checkpoints that are whole or refused."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from warmstart import checkpoint
from warmstart.errors import CheckpointError, WarmstartError
from warmstart.models import weights


def tensors(seed: int) -> dict[str, Tensor]:
    values = np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32)
    return {
        "a": torch.from_numpy(values),
        "b/half": torch.from_numpy(values).to(torch.bfloat16),
        "count": torch.tensor(seed),
        "on": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
        "turned": torch.from_numpy(values).T,
        "double": torch.from_numpy(values).double(),
    }


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def saved(folder: Path, generations: int = 3) -> Path:
    for generation in range(1, generations + 1):
        checkpoint.save(folder, tensors(generation), {"step": 10 * generation, "x": 0.1}, generation=generation)
    return folder


def test_the_newest_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    found = checkpoint.load_latest(saved(tmp_path / "c"))
    assert found is not None and same(found.tensors, tensors(3))
    assert (found.state, found.generation, found.damaged) == ({"step": 30, "x": 0.1}, 3, ())
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "00000002.json",
        "00000002.safetensors",
        "00000003.json",
        "00000003.safetensors",
    ]
    assert checkpoint.load_latest(tmp_path / "nothing") is None


def test_files_are_what_the_safetensors_library_reads_and_writes(tmp_path: Path) -> None:
    checkpoint.save_tensors(tmp_path / "own.safetensors", tensors(1))
    assert same(load_file(tmp_path / "own.safetensors"), tensors(1))
    save_file({name: tensor.contiguous() for name, tensor in tensors(1).items()}, tmp_path / "theirs.safetensors")
    assert same(checkpoint.load_tensors(tmp_path / "theirs.safetensors"), tensors(1))
    assert (tmp_path / "own.safetensors").read_bytes()[8:] != b"" and (tmp_path / "own.safetensors").stat().st_size == (
        tmp_path / "theirs.safetensors"
    ).stat().st_size


def damage(data: bytes, dice: np.random.Generator) -> bytes:
    """Flip a bit, cut the end, or drop or repeat a stretch."""
    where, kind = int(dice.integers(len(data))), dice.integers(4)
    if kind <= 1:
        return data[:where] + bytes([data[where] ^ (1 << int(dice.integers(8)))]) + data[where + 1 :]
    return data[:where] if kind == 2 else data[:where] + data[where : where + 8] + data[where:]


def test_no_damage_is_loaded_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    folder, dice = saved(tmp_path / "c", 2), np.random.default_rng(0)
    for name in ("00000002.json", "00000002.safetensors"):
        whole = (folder / name).read_bytes()
        for _ in range(500):
            (folder / name).write_bytes(damage(whole, dice))
            found = checkpoint.load_latest(folder)
            assert found is not None and found.generation == 1 and len(found.damaged) == 1
            assert same(found.tensors, tensors(1))
        (folder / name).write_bytes(whole)
    found = checkpoint.load_latest(folder)
    assert found is not None and found.generation == 2


def test_going_back_one_generation_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(tmp_path / "c")
    (folder / "00000003.safetensors").write_bytes(b"")
    found = checkpoint.load_latest(folder)
    assert found is not None and found.generation == 2
    said = f"{folder}/00000003.safetensors is damaged: its bytes are not those that were written"
    assert found.damaged == (said,) and caplog.messages == [f"{said}; going back one checkpoint"]


def test_nothing_whole_is_an_error(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c")
    for path in folder.glob("*.json"):
        path.write_bytes(b"{}")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_latest(folder)
    assert str(caught.value) == (
        f"no checkpoint of {folder} is whole ({folder}/00000003.json is damaged or no checkpoint, "
        f"{folder}/00000002.json is damaged or no checkpoint)\n  fix: --overwrite to begin anew"
    )


def test_a_generation_under_another_number_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", 1)
    for kind in ("json", "safetensors"):
        (folder / f"00000001.{kind}").rename(folder / f"00000005.{kind}")
    with pytest.raises(CheckpointError, match="is a checkpoint of another version or place"):
        checkpoint.load_latest(folder)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/tmp/warmstart-bomb"),))


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_whose_length_begins_like_a_pickle_is_none(tmp_path: Path, length: int) -> None:
    path, wanted = tmp_path / "weights.safetensors", {"a": torch.arange(3.0)}
    whole = save(wanted)
    old = int.from_bytes(whole[:8], "little")
    path.write_bytes(length.to_bytes(8, "little") + whole[8 : 8 + old].ljust(length) + whole[8 + old :])
    assert path.read_bytes()[0] == pickle.PROTO[0], "as a pickle begins"
    assert same(checkpoint.load_tensors(path), wanted)
    weights.refuse_pickle(path)


@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch"])
def test_a_pickle_is_refused_before_it_is_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_tensors(path)
    assert str(caught.value) == (
        f"{path} is a pickle, which can run code when it is loaded; expected safetensors\n"
        "  fix: convert it where you trust it: "
        "safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)"
    )


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not weights at all")
    with pytest.raises(CheckpointError, match="is not safetensors"):
        checkpoint.load_tensors(tmp_path / "text")
    with pytest.raises(CheckpointError, match="no tensors at"):
        checkpoint.load_tensors(tmp_path / "absent")
    assert issubclass(CheckpointError, WarmstartError)


def test_loading_reports_what_fitted_and_what_did_not() -> None:
    layer = nn.Linear(3, 2)
    given = {"weight": torch.ones(2, 4), "bias": torch.full((2,), 7.0), "extra": torch.zeros(1)}
    report = checkpoint.load_into(checkpoint.tensors_of(layer), given)
    assert report == checkpoint.LoadReport(("bias",), (), ("extra",), ("weight: (2, 4) for (2, 3)",))
    assert layer.bias.tolist() == [7.0, 7.0] and layer.bias.requires_grad
    with pytest.raises(CheckpointError) as caught:
        report.require_complete("x.safetensors")
    assert str(caught.value) == (
        "x.safetensors does not fit the model (1 unexpected: extra; 1 of another shape: weight: (2, 4) for (2, 3))\n"
        "  fix: remove it, or name another run folder with --out NEW"
    )
    assert checkpoint.load_into(checkpoint.tensors_of(layer), layer.state_dict()).complete
