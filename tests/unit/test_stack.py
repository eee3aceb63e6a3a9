"""Stacks: exact features, names and cards, folders that come back bit for bit, and a run that keeps one when it pays.

Two backbones are blind in different ways here: each one's input spec divides all colours but one by a huge number.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import warmstart as ws
from story.command import start, warmstart
from warmstart import catalogue, choosing, engine, plugins, prepare, runtime, sources, stacking, trained, tune, workflow
from warmstart.cache import Cache
from warmstart.check import check_backbone
from warmstart.choosing import Chosen, Row
from warmstart.config import Choice
from warmstart.data import Dataset, read
from warmstart.errors import CheckpointError, RecipeError, SourceError
from warmstart.extract import extract
from warmstart.heads import Solved
from warmstart.models import Card, InputSpec, Part, parts, weights
from warmstart.models.build import backbone
from warmstart.options import Options
from warmstart.sources.stack import Stack
from warmstart.trained import Framing, Frozen, TrainedModel
from warmstart.tune import Candidate

TWO = "stack/random/test_resnet@32+random/test_vit@48"
NOISE = np.random.default_rng(0).integers(0, 256, (6, 40, 48, 3)).astype(np.uint8)
COLOURS = ("red", "green", "blue")
RED_GREEN = "stack/local/red@32+local/green@64"


def shelve(name: str, colour: str, size: int, seed: int) -> None:
    """Put a backbone on the shelf that sees one colour."""
    std = tuple(0.25 if one == colour else 1e9 for one in COLOURS)
    spec = InputSpec(image_size=size, std=std, fixed_size=True)  # type: ignore[arg-type]
    card = Card(f"local/{name}", spec, arch="timm:test_resnet", licence=f"{name}-1.0", macs=1000)
    weights.save_backbone(backbone("timm:test_resnet", spec, seed=seed).eval(), card, runtime.shelf_root() / name)


@pytest.fixture
def shelf() -> None:
    shelve("red", "red", 32, 0)
    shelve("green", "green", 64, 1)
    shelve("red_too", "red", 64, 2)


def pictures(num: int = 120, *, by: Sequence[str] = ("red", "green"), seed: int = 0) -> Dataset:
    """Noise, brighter or not in some colours, which makes the class."""
    rng = np.random.default_rng(seed)
    bits = np.array([[(at >> bit) & 1 for bit in range(len(by))] for at in range(num)])
    pixels = rng.integers(0, 120, (num, 40, 40, 3))
    for column, colour in enumerate(by):
        pixels[..., COLOURS.index(colour)] += 100 * bits[:, column, None, None]
    labels = ["".join(str(bit) for bit in row) for row in bits]
    return read.from_arrays(pixels.astype(np.uint8), labels, name="colours")


def sheet(card: Card) -> torch.Tensor:
    transform = Framing(card.spec.image_size).plain(card)
    return torch.stack([transform(Image.fromarray(picture)) for picture in NOISE])


# --- the backbone


def test_it_keeps_the_contract_of_backbones() -> None:
    stacked, card = sources.load(TWO)
    pixels = sheet(card)
    assert pixels.shape == (6, 3, 48, 80)
    check_backbone(stacked, pixels)
    assert [group.name for group in stacked.layer_groups()] == ["part1", "part2"]


def test_its_features_are_those_of_its_parts_to_the_bit() -> None:
    stacked, card = sources.load(TWO)
    with torch.inference_mode():
        found = stacked.features(sheet(card)).pooled
        alone = []
        for name, size in parts.parse(TWO):
            one, its = sources.load(name)
            square = Framing(size).plain(its)
            alone.append(one.features(torch.stack([square(Image.fromarray(p)) for p in NOISE])).pooled)
    assert torch.equal(found, torch.cat(alone, dim=1))
    assert found.shape[1] == stacked.dim == card.dim


def test_pixels_that_are_no_sheet_are_refused() -> None:
    stacked, _ = sources.load(TWO)
    with pytest.raises(ValueError, match=r"a stack of \[32, 48\] px takes sheets of \(48, 80\), and these are"):
        stacked.features(torch.zeros(1, 3, 48, 48, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"cut 1 is not on offer, only \[0, 2\]"):
        stacked.prefix(torch.zeros(1, 3, 48, 80, dtype=torch.uint8), 1)


def test_a_sheet_holds_every_square_and_random_ones_draw_as_they_would_alone() -> None:
    card = sources.card(TWO)
    framing, picture = Framing(48), Image.fromarray(NOISE[0])
    both = framing.augmented(card, "strong")
    drawn = both(picture, np.random.default_rng(3))
    left = 0
    for part in card.parts:
        one = replace(framing, image_size=part.image_size).augmented(part.card, "strong")
        alone = one(picture, np.random.default_rng(3))
        assert torch.equal(drawn[:, : part.image_size, left : left + part.image_size], alone)
        left += part.image_size
    assert both.random and not framing.plain(card).random
    assert not drawn[:, 32:, :32].any(), "below the smaller square it is black"
    assert both.key == " beside ".join(
        replace(framing, image_size=part.image_size).augmented(part.card, "strong").key for part in card.parts
    )


def test_features_come_from_the_cache_of_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, rows, cache = read.from_arrays(NOISE), np.arange(6), Cache(tmp_path)
    alone = []
    for name, size in parts.parse(TWO):
        one = sources.defer(name)
        last, plain = one.num_groups, Framing(size).plain(one.card)
        found = extract(dataset, rows, backbone=one, card=one.card, cut=last, transform=plain, cache=cache)
        alone.append(np.asarray(found.values))
    monkeypatch.setattr(engine, "pick", lambda *_, **__: pytest.fail("nothing is computed again"))
    lazy, (built, card) = sources.defer(TWO), sources.load(TWO)
    plain = Framing(48).plain(card)
    for stacked in (lazy, built):
        found = extract(dataset, rows, backbone=stacked, card=card, cut=2, transform=plain, cache=cache)
        assert (found.computed, found.hits, found.engine) == (0, 6, "cache")
        assert np.asarray(found.values).tobytes() == np.concatenate(alone, axis=1).tobytes()
    assert not lazy.built


# --- names and cards


def test_names() -> None:
    assert parts.spell(parts.parse(TWO)) == TWO
    three = "stack/a/b@32+/home/me+you/c.d-1@224+e/f@1"
    assert parts.parse(three) == (("a/b", 32), ("/home/me+you/c.d-1", 224), ("e/f", 1))
    for other in ("a/b@32+c/d@32", "stack/a/b@32", "stack/a/b@32+c/d", "stack/a/b@0+c/d@1", "stack/a/b@32+c/d@32x"):
        assert parts.parse(other) == ()


def test_a_name_that_is_no_stack_and_an_unknown_part_are_refused() -> None:
    with pytest.raises(SourceError) as caught:
        sources.check("stack/random/test_resnet@32")
    assert str(caught.value) == (
        "stack/random/test_resnet@32 names no stack (expected two or more SOURCE/NAME@SIZE with + between them)\n"
        "  fix: --backbone stack/package/efficientnet_lite0@224+package/mobilenet_v2@160"
    )
    for ask in (sources.check, sources.load, sources.defer, sources.card):
        with pytest.raises(SourceError, match="timm has no architecture 'test_resnett'"):
            ask("stack/random/test_resnett@32+random/test_vit@32")


def test_the_source_keeps_its_contract() -> None:
    stacked, card = sources.load(TWO)
    assert card == sources.defer(TWO).card
    assert card.weights_hash == weights.backbone_hash(stacked)
    assert card.num_params == sum(p.numel() for p in stacked.parameters())  # type: ignore[attr-defined]
    assert card.spec == stacked.spec
    assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card
    assert Stack().available() == () == Stack().files("")


def test_another_size_or_order_is_another_stack() -> None:
    hashes = [sources.defer(name).card.weights_hash for name in (TWO, TWO.replace("@32", "@64"))]
    turned = "stack/" + "+".join(reversed(TWO.removeprefix("stack/").split("+")))
    assert len({*hashes, sources.defer(turned).card.weights_hash}) == 3


def part(licence: str | None, macs: int | None, size: int = 112, hashed: str | None = "x") -> Part:
    facts = {"licence": licence, "macs": macs, "num_params": 5, "dim": 3, "weights_hash": hashed, "trained_on": "t"}
    return Part(Card("a/b", InputSpec(image_size=224), **facts), size)  # type: ignore[arg-type]


def test_a_card_sums_and_names_the_strictest_licence_first() -> None:
    card = parts.joined("s", [part("mit", 400), part("cc-by-nc-4.0", 800, 224), part("mit", 0)])
    assert card.licence == "cc-by-nc-4.0 AND mit"
    assert card.notes == "3 backbones side by side; strictest licence: cc-by-nc-4.0"
    assert (card.macs, card.num_params, card.dim, card.spec.image_size) == (900, 15, 9, 224)
    assert not catalogue.permissive(card.licence)
    assert catalogue.permissive(parts.joined("s", [part("mit", 1), part("apache-2.0", 1)]).licence)


def test_what_is_unknown_of_a_part_is_unknown_of_the_stack() -> None:
    card = parts.joined("s", [part("mit", None), part(None, 1, hashed=None)])
    assert (card.macs, card.weights_hash, card.licence) == (None, None, "unknown AND mit")
    assert parts.joined("s", [part(None, 1), part(None, 1)]).licence is None


# --- a run


GIVEN: Options = {"budget": 600.0, "strategy": "probe", "overrides": {"data.workers": 1}}


def offered(tmp_path: Path, data: Dataset, names: Sequence[tuple[str, int]]) -> tuple[list[tune.Trial], tune.Trial]:
    """Probe the first, offer stacks with the others, and pick."""
    with workflow.opened("run", data, {**GIVEN, "out": tmp_path / "run"}, None) as session:
        ready = prepare.prepare(session, data)
        found = [Candidate(name, size, Choice("probe")) for name, size in names]
        rows = [Row(name, size, "probe", 0.5, 0.4, 0.6, 50, 1.0, 0.001, 1, "mit", "") for name, size in names]
        chosen = Chosen(found[0], "made up", "accuracy", tuple(rows))
        trials = [tune.tune(session, ready, found[0])]
        for candidate in stacking.candidates(session, ready, chosen, trials):
            trials.append(tune.tune(session, ready, candidate))
        winner, turned = (choosing.pick(session, ready, given)[0] for given in (trials, trials[::-1]))
        assert turned is winner, "stacks come last, whenever they were tried"
        return trials, winner


@pytest.mark.usefixtures("shelf")
def test_a_stack_that_sees_more_wins_and_a_third_that_adds_nothing_is_not_taken(tmp_path: Path) -> None:
    trials, winner = offered(tmp_path, pictures(), [("local/red", 32), ("local/green", 64), ("local/red_too", 64)])
    assert [len(parts.parse(trial.candidate.backbone)) for trial in trials] == [0, 2, 3]
    assert winner is trials[1]
    assert winner.candidate.backbone == RED_GREEN
    assert float((winner.val.values.argmax(1) == winner.val.targets).mean()) > 0.9
    assert float((trials[0].val.values.argmax(1) == trials[0].val.targets).mean()) < 0.7


@pytest.mark.usefixtures("shelf")
def test_a_stack_that_ties_is_not_taken_whenever_it_was_tried(tmp_path: Path) -> None:
    names = [("local/red", 32), ("local/red_too", 64), ("local/green", 64)]
    trials, winner = offered(tmp_path, pictures(by=["red"]), names)
    assert len(trials) == 2, "where two are no better than one, three are not tried"
    assert winner is trials[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in folders by class."""
    data, root = pictures(100), tmp_path / "data"
    assert data.targets is not None
    for at, (pixels, label) in enumerate(zip(data.inputs, data.targets, strict=True)):
        path = root / data.class_names[int(label)] / f"{at:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels)).save(path)
    return root


def run(folder: Path, out: Path) -> ws.Run:
    return ws.run(folder, candidates="local/red,local/green", **{**GIVEN, "out": out})  # type: ignore[typeddict-item]


def contents(place: Path) -> dict[str, bytes]:
    files = (file for file in (place / "weights").rglob("*") if file.is_file())
    return {file.relative_to(place).as_posix(): file.read_bytes() for file in files}


@pytest.mark.usefixtures("shelf")
def test_a_run_keeps_a_stack_that_pays_and_the_model_can_be_used(folder: Path, tmp_path: Path) -> None:
    made = run(folder, tmp_path / "run")
    report = json.loads(made.report.with_suffix(".json").read_text())
    attempts = {attempt["backbone"]: attempt for attempt in report["attempts"]}
    (name,) = (name for name in attempts if parts.parse(name))
    assert attempts[name]["chosen"] and made.facts.answer.backbone == name
    assert made.facts.metrics[0].value > 0.9
    assert attempts[name]["details"]["multiply-adds per picture"] == "2e-06 G, 2.00 × the first trial"
    assert report["card"]["licence"] == "green-1.0 AND red-1.0"
    assert {path.parent.name for path in (tmp_path / "run/weights").glob("*/model.safetensors")} == {"part1", "part2"}
    files = sorted(map(str, folder.rglob("*.png")))[::9]
    rows = warmstart(tmp_path, "predict", "run", *files, "--json").json["predictions"]
    loaded = trained.load(tmp_path / "run")
    assert [row["probabilities"] for row in rows] == [
        loaded.told(row)["probabilities"] for row in loaded.predict_proba(files)
    ]
    assert np.mean([row["prediction"] == Path(row["file"]).parent.name for row in rows]) > 0.9
    (metric, *_), openings = workflow.evaluate(tmp_path / "run", split="test")
    assert (metric.value, openings) == (made.facts.metrics[0].value, 1)
    again = ws.run(made.folder / "recipe.toml", out=tmp_path / "again")
    assert contents(again.folder) == contents(made.folder), "the recipe describes the model that was kept"


@pytest.mark.usefixtures("shelf")
@pytest.mark.parametrize("place", ["warmstart.choosing.pick", "warmstart.heads.solve", "warmstart.judge.record"])
def test_stopped_anywhere_and_repeated_it_ends_in_the_same_bits(
    place: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = place.rpartition(".")
    original, calls, last = getattr(sys.modules[module], name), 0, 0

    def broken(*args: object, **given: object) -> object:
        nonlocal calls
        calls += 1
        if calls == last:
            raise OSError("the plug was pulled")
        return original(*args, **given)

    with monkeypatch.context() as patched:
        patched.setattr(f"{module}.{name}", broken)
        whole = run(folder, tmp_path / "whole")
        calls, last = 0, calls
        patched.setenv("WARMSTART_CACHE", str(tmp_path / "another"))
        with pytest.raises(OSError, match="the plug was pulled"):
            run(folder, tmp_path / "stopped")
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "another"))
    repeated = run(folder, tmp_path / "stopped")
    assert parts.parse(repeated.facts.answer.backbone)
    assert contents(repeated.folder) == contents(whole.folder)
    assert repeated.facts.metrics == whole.facts.metrics


@pytest.mark.slow
@pytest.mark.usefixtures("shelf")
def test_killed_at_any_moment_and_repeated_it_ends_in_the_same_bits(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(runtime.shelf_root(), tmp_path / ".shelf")
    words = ["run", "data", "--candidates", "local/red,local/green", "--strategy", "probe", "--budget", "1h", "--json"]
    begun = time.monotonic()
    assert warmstart(tmp_path, *words, "--out", "whole").code == 0
    seconds = time.monotonic() - begun
    shutil.rmtree(tmp_path / ".cache")
    for part in (0.6, 0.85):
        process = start(tmp_path, *words, "--out", "killed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=part * seconds)
        process.kill()
        process.communicate()
    done = warmstart(tmp_path, *words, "--out", "killed")
    assert done.code == 0, done.err
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert any("part2" in name for name in contents(tmp_path / "killed"))


# --- folders


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model on a stack, as a run leaves it."""
    data = read.from_arrays(NOISE, ["ant", "bee", "cat"] * 2)
    lazy = sources.defer(TWO)
    task = plugins.load("task", "classification")().bind(data)
    head = task.head(160)
    with torch.no_grad():
        head.linear.weight.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(0))
    solved = Solved.from_arrays({name: tensor.numpy() for name, tensor in head.state_dict().items()})
    return TrainedModel(Frozen(lazy, solved), lazy.card, task, "classification", Framing(48), 1.5).save(tmp_path / "m")


def test_saved_and_loaded_it_says_the_same_built_or_not(saved: Path, tmp_path: Path) -> None:
    dataset, cache = read.from_arrays(NOISE), Cache(tmp_path / "cache")
    unbuilt, built = trained.load(saved, build=False), trained.load(saved)
    assert (unbuilt.built, built.built) == (False, True)
    found = [one.predictions(dataset, np.arange(6), cache=cache)[0].outputs.tobytes() for one in (unbuilt, built)]
    assert found[0] == found[1]
    assert not unbuilt.built, "nobody needed the network"
    values = built.predict_proba(NOISE)
    assert built.save(tmp_path / "again") == tmp_path / "again"
    assert contents_of(tmp_path / "again") == contents_of(saved)
    assert trained.load(tmp_path / "again").predict_proba(NOISE).tobytes() == values.tobytes()
    assert len(np.unique(values.round(6), axis=0)) == len(NOISE)


def contents_of(place: Path) -> dict[str, bytes]:
    return {file.relative_to(place).as_posix(): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def test_the_folder_is_a_source_of_weights_and_so_is_each_part(saved: Path) -> None:
    whole, card = sources.load(str(saved))
    assert card == sources.defer(TWO).card
    assert whole.dim == sources.load(str(saved / "part1"))[0].dim + sources.load(str(saved / "part2"))[0].dim
    assert sources.defer(str(saved)).num_groups == 2
    known = {path.relative_to(saved).as_posix() for path in sources.find(str(saved))[0].files(str(saved))}
    assert known == {"card.json", *(f"part{at}/{name}" for at in (1, 2) for name in ("card.json", "model.safetensors"))}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def swap(saved: Path) -> None:
    (saved / "part1").rename(saved / "x")
    (saved / "part2").rename(saved / "part1")
    (saved / "x").rename(saved / "part2")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a part": (lambda m: flip(m / "part2/model.safetensors"), "has hash .*, but its card says"),
    "a part is missing": (lambda m: shutil.rmtree(m / "part2"), "part2"),
    "parts exchanged": (swap, "the parts in .* are not those that its card.json speaks of"),
    "another size": (
        lambda m: edit(m / "card.json", '"image_size": 32', '"image_size": 64'),
        "the parts in .* are not those that its card.json speaks of",
    ),
    "no parts": (lambda m: edit(m / "card.json", '"parts"', '"sparts"'), "no weights at .*model.safetensors"),
    "odd parts": (lambda m: edit(m / "card.json", '"image_size": 32\n', '"image_side": 32\n'), "is not a card"),
    "a bit of the head": (lambda m: flip(m / "head.safetensors"), "was changed after it was saved"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_and_foreign_folders_are_refused(what: str, saved: Path) -> None:
    damage, said = DAMAGES[what]
    damage(saved)
    for build in (True, False):
        with pytest.raises((CheckpointError, SourceError), match=said):
            trained.load(saved, build=build)


# --- what a stack cannot do


@pytest.mark.usefixtures("shelf")
def test_strategies_that_would_tune_it_are_refused_and_a_gradient_probe_is_not(tmp_path: Path) -> None:
    data = pictures(40)
    given: Options = {"backbone": RED_GREEN, "overrides": {"data.workers": 1, "epochs": 2}}
    for verb in (ws.finetune, ws.run):
        with pytest.raises(RecipeError) as caught:
            verb(data, strategy="lp_ft", out=tmp_path / "refused", **given)  # type: ignore[call-arg]
        assert str(caught.value) == (
            f"strategy lp_ft would tune the backbones of {RED_GREEN}, and a stack is only probed\n"
            "  fix: --strategy probe, or one of them: --backbone local/red"
        )
    overrides = {**given["overrides"], "strategy.head": "gradient"}
    made = ws.finetune(data, strategy="probe", out=tmp_path / "a", **{**given, "overrides": overrides})  # type: ignore[call-arg]
    assert made.model.card.parts
    with pytest.raises(RecipeError, match=r"data\.image_size=32, but these weights take 64 pixels only"):
        ws.finetune(data, strategy="probe", out=tmp_path / "b", backbone=RED_GREEN, overrides={"data.image_size": 32})


@pytest.mark.usefixtures("shelf")
def test_a_limit_on_parameters_holds_for_stacks(tmp_path: Path) -> None:
    data = pictures(40)
    with workflow.opened("run", data, {**GIVEN, "out": tmp_path / "run", "max_params": "0.5M"}, None) as session:
        rows = [
            Row(name, 32, "probe", 0.5, 0.4, 0.6, 50, 1.0, 0.001, 1, "mit", "")
            for name in ("local/red", "local/red_too")
        ]
        assert stacking._allowed(session, rows[:1])
        assert not stacking._allowed(session, rows)
