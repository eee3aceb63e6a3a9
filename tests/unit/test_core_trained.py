"""A model in a folder: the same bits come back, and what is not a model is refused."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from warmstart import plugins, sources, trained, workflow
from warmstart.cache import Cache
from warmstart.data import read
from warmstart.errors import CheckpointError, DataError, RecipeError, RunError, SourceError
from warmstart.models.model import Model
from warmstart.trained import Framing, TrainedModel

NOISE = np.random.default_rng(0).integers(0, 256, (6, 40, 48, 3)).astype(np.uint8)
TARGETS: dict[str, object] = {
    "single": ["ant", "bee", "cat"] * 2,
    "multi": [["red"], ["big", "red"], ["big"]] * 2,
    "scalar": np.arange(6.0),
    "vector": np.arange(12.0).reshape(6, 2) ** 2,
}


def make(kind: str = "single", seed: int = 0) -> TrainedModel:
    """A tiny network with random weights and a random head that tells pictures apart."""
    backbone, card = sources.load("random/test_resnet")
    dataset = read.from_arrays(NOISE, TARGETS[kind])  # type: ignore[arg-type]
    name = "classification" if kind in ("single", "multi") else "regression"
    task = plugins.load("task", name)().bind(dataset)
    head = task.head(backbone.dim)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.linear.weight.normal_(0.0, 10.0, generator=generator)
        head.scale.uniform_(0.5, 2.0, generator=generator)
    return TrainedModel(Model(backbone, head).eval(), card, task, name, Framing(32), 1.5)


@pytest.mark.parametrize("kind", TARGETS)
def test_saved_and_loaded_it_says_the_same_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    assert model.save(tmp_path / "m") == tmp_path / "m"
    again = trained.load(tmp_path / "m")
    values = model.predict_proba(NOISE)
    assert values.tobytes() == again.predict_proba(NOISE).tobytes()
    assert len(np.unique(values.round(6), axis=0)) == len(NOISE), "the pictures are told apart"
    assert again.identity() == model.identity()
    assert (again.task, again.framing, again.temperature) == (model.task, model.framing, model.temperature)
    assert again.predict(NOISE) == model.predict(NOISE)


def test_a_folder_holds_nothing_but_tensors_and_text(tmp_path: Path) -> None:
    make().save(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".safetensors", ".json"}


def test_the_backbone_in_the_folder_is_a_source_of_weights(tmp_path: Path) -> None:
    make().save(tmp_path / "m")
    backbone, card = sources.load(str(tmp_path / "m"))
    assert (backbone.dim, card.arch) == (96, "timm:test_resnet")


def changed(model: TrainedModel, what: str) -> TrainedModel:
    state = model.model.state_dict()
    tensor = next(value for name, value in state.items() if what in name)
    tensor.view(-1)[0] += 1
    return model


@pytest.mark.parametrize("what", ["conv1.weight", "running_mean", "linear.weight", "linear.bias", "scale", "mean"])
def test_the_identity_knows_every_tensor(what: str) -> None:
    assert changed(make(), what).identity() != make().identity()


def test_the_identity_knows_temperature_framing_and_task() -> None:
    model, numbers = make(), make("scalar")
    others = [
        replace(model, temperature=1.6),
        replace(model, framing=Framing(64)),
        replace(model, framing=Framing(32, resize=40)),
        replace(model, framing=Framing(32, fit="pad")),
        replace(model, task=replace(model.task, class_names=("ant", "cat", "bee"))),  # type: ignore[type-var]
        numbers,
        replace(numbers, task=replace(numbers.task, std=(9.0,))),  # type: ignore[type-var]
    ]
    assert len({one.identity() for one in [model, *others]}) == len(others) + 1
    assert make().identity() == model.identity()


# --- words


def test_values_are_said_in_the_terms_of_the_targets() -> None:
    assert make().word(np.array([0.1, 0.7, 0.2])) == "bee"
    assert make("multi").word(np.array([0.5, 0.49])) == ("big",)
    assert make("multi").word(np.array([0.1, 0.2])) == ()
    assert make("scalar").word(np.array([2.5])) == 2.5
    assert make("vector").word(np.array([2.5, 1.0])) == (2.5, 1.0)


def test_a_row_for_json() -> None:
    told = make().told(np.array([0.25, 0.5, 0.25]))
    assert told == {
        "prediction": "bee",
        "confidence": 0.5,
        "probabilities": {"ant": 0.25, "bee": 0.5, "cat": 0.25},
    }
    assert "confidence" not in make("multi").told(np.array([0.5, 0.49]))
    assert make("vector").told(np.array([2.5, 1.0])) == {"prediction": (2.5, 1.0)}
    json.dumps([told, make("multi").told(np.array([0.5, 0.4], np.float32))])


def test_probabilities_are_those_of_the_temperature() -> None:
    model = make()
    hot, cold = replace(model, temperature=1e6), replace(model, temperature=1e-6)
    np.testing.assert_allclose(hot.predict_proba(NOISE), 1 / 3, atol=1e-3)
    np.testing.assert_allclose(cold.predict_proba(NOISE).max(1), 1.0, atol=1e-3)
    assert hot.predict(NOISE) == cold.predict(NOISE)


# --- every kind of input


def test_paths_words_bytes_arrays_and_pictures_are_the_same_to_it(tmp_path: Path) -> None:
    model, files = make(), []
    for row, pixels in enumerate(NOISE):
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
        files.append(tmp_path / f"{row}.png")
    expected = model.predict_proba(NOISE)
    kinds = {
        "paths": files,
        "words": [str(file) for file in files],
        "bytes": [file.read_bytes() for file in files],
        "arrays": list(NOISE),
        "pictures": [Image.fromarray(pixels) for pixels in NOISE],
        "mixed": [files[0], str(files[1]), files[2].read_bytes(), NOISE[3], Image.fromarray(NOISE[4]), NOISE[5]],
    }
    for kind, inputs in kinds.items():
        assert model.predict_proba(inputs).tobytes() == expected.tobytes(), kind  # type: ignore[arg-type]


def test_many_pictures_are_predicted_as_each_by_itself() -> None:
    model = make()
    many = np.concatenate([NOISE] * 12)
    alone = np.concatenate([model.predict_proba(NOISE[[row]]) for row in range(6)])
    np.testing.assert_allclose(model.predict_proba(many), np.concatenate([alone] * 12), atol=1e-5)


def test_no_pictures_give_no_rows() -> None:
    assert make().predict_proba([]).shape == (0, 3)
    assert make().predict([]) == []


def test_predictions_of_a_dataset_are_those_of_its_pictures() -> None:
    model = make()
    dataset = read.from_arrays(NOISE, TARGETS["single"], groups=list("aabbcc"))  # type: ignore[arg-type]
    rows = np.array([4, 1])
    found, extracted = model.predictions(dataset, rows, cache=Cache())
    np.testing.assert_allclose(found.values, model.predict_proba(NOISE[rows]), atol=1e-3)
    assert found.targets is not None and found.groups is not None
    assert (list(found.index), list(found.targets), list(found.groups)) == ([4, 1], [1, 1], ["c", "a"])
    assert (extracted.computed, extracted.hits) == (2, 0)
    assert model.predictions(dataset, rows, cache=Cache())[1].hits == 2


def test_an_unreadable_picture_gets_an_error_in_its_row_and_stops_nothing(tmp_path: Path) -> None:
    make().save(tmp_path / "m")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(NOISE[0]).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    inputs = [str(tmp_path / name) for name in ("empty.png", "whole.png", "gone.png", "cut.png")]
    rows = workflow.predict(tmp_path / "m", [*inputs, NOISE[1], b"words"])
    assert [row["file"] for row in rows] == [*inputs, "", ""]
    assert ["error" in row for row in rows] == [True, False, True, True, False, True]
    assert all(isinstance(row["error"], str) and row["error"] for row in rows if "error" in row)
    assert [rows[at]["prediction"] for at in (1, 4)] == make().predict(NOISE[:2])
    assert all("prediction" not in row for row in rows if "error" in row)
    assert all("error" in row for row in workflow.predict(tmp_path / "m", [inputs[0]]))


def test_predict_itself_names_the_picture_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.png"):
        make().predict([tmp_path / "empty.png"])


# --- what is no model


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no model in .* \(expected model\.json\)\n  fix: warmstart run DATA --out DIR"):
        trained.load(tmp_path)
    with pytest.raises(RunError, match="no model in"):
        trained.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": {"kind": "single"}}, "'name'"),
        ({"task": None}, "NoneType"),
        ({"framing": {"side": 3}}, "side"),
        ({"temperature": "hot"}, "hot"),
        ({"temperature": None}, "NoneType"),
        ({"format": 1}, "format 1, and this version reads 2"),
        ({"task": {"name": "classification", "kind": "single"}}, "class_names"),
    ],
)
def test_a_description_of_something_else(change: dict[str, object], words: str, tmp_path: Path) -> None:
    file = make().save(tmp_path) / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=r"model\.json does not describe a model: .*" + words) as found:
        trained.load(tmp_path)
    assert found.value.fix == "copy the folder again from where it was made"


def test_a_task_that_is_not_here_is_named(tmp_path: Path) -> None:
    file = make().save(tmp_path) / "model.json"
    file.write_text(file.read_text().replace('"classification"', '"segmentation"'))
    with pytest.raises(RecipeError, match="unknown task 'segmentation'"):
        trained.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '"words"', "\x00\xff"])
def test_a_damaged_description_names_its_file(content: str, tmp_path: Path) -> None:
    file = make().save(tmp_path) / "model.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"model\.json") as found:
        trained.load(tmp_path)
    assert found.value.fix == "copy the folder again from where it was made"


@pytest.mark.parametrize("name", ["head.safetensors", "model.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flip", "pickle", "gone", "other"])
def test_damaged_tensors_are_refused(name: str, damage: str, tmp_path: Path) -> None:
    file = make().save(tmp_path / "m") / name
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-9])
    elif damage == "flip":
        content[-5] ^= 0x10
        file.write_bytes(content)
    elif damage == "pickle":
        buffer = io.BytesIO()
        torch.save({"linear.weight": torch.zeros(3, 96)}, buffer)
        file.write_bytes(buffer.getvalue())
    elif damage == "gone":
        file.unlink()
    else:
        shutil.copy(make("vector").save(tmp_path / "other") / "head.safetensors", file)
    with pytest.raises((CheckpointError, SourceError), match=name.replace(".", r"\.")):
        trained.load(tmp_path / "m")


def test_a_number_that_was_changed_is_noticed(tmp_path: Path) -> None:
    file = make().save(tmp_path / "m") / "model.json"
    file.write_text(file.read_text().replace("1.5", "1.6"))
    with pytest.raises(
        CheckpointError, match=r"m was changed after it was saved \(by head\.safetensors or model\.json\)"
    ):
        trained.load(tmp_path / "m")
