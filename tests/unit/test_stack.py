"""Stacks: exact features, names and cards, folders that come back bit for bit, and a run that keeps one when it pays.

Two backbones are blind in different ways here: each one's input spec divides all colours but one by a huge number.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import warmstart as ws
from warmstart import bench, catalogue, choosing, engine, prepare, runtime, sources, stacking, trained, tune, workflow
from warmstart.cache import Cache
from warmstart.check import check_backbone, check_source
from warmstart.choosing import Chosen, Row
from warmstart.config import Choice
from warmstart.data import Dataset, read
from warmstart.errors import CheckpointError, RecipeError, SourceError
from warmstart.extract import extract
from warmstart.models import Card, InputSpec, Part, parts, weights
from warmstart.models.build import backbone
from warmstart.options import Options
from warmstart.sources.stack import Stack
from warmstart.trained import Framing
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
    assert check_source is not None and Stack().available() == () == Stack().files("")


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
        return trials, choosing.pick(session, ready, trials)[0]


@pytest.mark.usefixtures("shelf")
def test_a_stack_that_sees_more_wins_and_a_third_that_adds_nothing_is_not_taken(tmp_path: Path) -> None:
    trials, winner = offered(tmp_path, pictures(), [("local/red", 32), ("local/green", 64), ("local/red_too", 64)])
    assert [len(parts.parse(trial.candidate.backbone)) for trial in trials] == [0, 2, 3]
    assert winner is trials[1]
    assert winner.candidate.backbone == RED_GREEN
    assert tune.point is not None and float((winner.val.values.argmax(1) == winner.val.targets).mean()) > 0.9
    assert float((trials[0].val.values.argmax(1) == trials[0].val.targets).mean()) < 0.7


@pytest.mark.usefixtures("shelf")
def test_a_stack_that_ties_is_not_taken_whenever_it_was_tried(tmp_path: Path) -> None:
    trials, winner = offered(tmp_path, pictures(by=["red"]), [("local/red", 32), ("local/red_too", 64)])
    assert len(trials) == 2
    assert winner is trials[0]
