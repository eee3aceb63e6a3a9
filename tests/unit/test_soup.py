"""Greedy soup: means in closed form, never worse on val than the best fit, nothing where fits do not go together."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from warmstart import finals, judge, prepare, soup, tune, workflow
from warmstart.config import Choice
from warmstart.data import Dataset, read
from warmstart.models.model import LinearHead
from warmstart.options import Options
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.tune import Candidate, Trial

TINY = "random/test_resnet"
GIVEN: Options = {
    "backbone": TINY,
    "overrides": {"data.image_size": 32, "data.workers": 1, "batch_size": 16},
}
GRADIENT = Choice("probe", {"head": "gradient"})


def dataset(num: int = 80) -> Dataset:
    """Shades that overlap, so that no model is perfect."""
    rng = np.random.default_rng(0)
    labels = np.arange(num) % 3
    shade = 60 + 40 * labels + rng.normal(0, 25, num)
    noise = rng.integers(0, 60, (num, 24, 24, 3))
    pixels = (noise + shade[:, None, None, None]).clip(0, 255).astype(np.uint8)
    found = read.from_arrays(pixels, [f"c{label}" for label in labels], name="shades")
    return replace(found, given_split=np.array(["train", "train", "train", "val", "val"] * (num // 5)))


@contextmanager
def opened(place: Path, **given: object) -> Iterator[tuple[Session, Prepared]]:
    data = dataset()
    merged: Options = {**GIVEN, "budget": 600.0, **given, "out": place}  # type: ignore[typeddict-item]
    with workflow.opened("run", data, merged, None) as session:
        yield session, prepare.prepare(session, data)


def fit(session: Session, data: Prepared, strategy: Choice, lr: float, epochs: int = 1) -> Trial:
    return tune.tune(session, data, Candidate(TINY, 32, strategy, {"epochs": epochs, "optim.lr": lr}))


def changed(trial: Trial, change: float, data: Prepared, session: Session) -> Trial:
    """A fit like another one, its head moved at random, with its own predictions on val."""
    model = copy.deepcopy(trial.trained.model)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        model.head.linear.weight.add_(torch.randn(model.head.linear.weight.shape, generator=generator) * change)
    moved = replace(trial.trained, held=model)
    found, _ = judge.predictions(session, data, moved, data.splits.val)
    return replace(trial, trained=moved, val=found)


def test_the_mean_of_linear_models_is_the_mean_of_their_answers() -> None:
    heads = [LinearHead(5, 3) for _ in range(3)]
    for head in heads:
        head.mean.fill_(0.5)
    whole = LinearHead(5, 3)
    whole.load_state_dict(soup.mean([head.state_dict() for head in heads]))
    inputs = torch.randn(7, 5)
    torch.testing.assert_close(whole(inputs), torch.stack([head(inputs) for head in heads]).mean(0))
    counts = soup.mean([{"n": torch.tensor(3)}, {"n": torch.tensor(4)}])
    assert counts["n"] == 3 and counts["n"].dtype == torch.int64


def test_two_linear_fits_give_the_mean_of_their_predictions(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as (session, data):
        fits = [fit(session, data, GRADIENT, lr, epochs=3) for lr in (0.03, 0.02)]
        kitchen = soup._Kitchen.open(session, data, tuple(fits))
        assert kitchen.feed.cut == kitchen.place.num_groups, "the layers that all share come from the cache"
        found = kitchen.taste(fits)
        expected = (fits[0].val.outputs + fits[1].val.outputs) / 2
        np.testing.assert_allclose(found.val.outputs, expected, rtol=1e-4, atol=1e-5)


def test_it_is_never_worse_on_val_and_comes_back_the_same(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as (session, data):
        start = tune.tune(session, data, Candidate(TINY, 32, Choice("probe")))
        fits = [fit(session, data, Choice("lp_ft", {"depth": depth}), 1e-3) for depth in (1, 2)]
        awful = changed(fits[0], 50.0, data, session)
        trials = [start, *fits, awful]
        ordered = soup.ingredients(data, trials)
        assert set(map(id, ordered)) == set(map(id, trials[1:])), "a solved head alone is no fit"
        values = [tune.point(data, one.val) for one in ordered]
        assert values == sorted(values, reverse=True)
        assert values[-1] < values[0] and ordered[-1] is awful
        (found,) = soup.greedy(session, data, trials)
        assert tune.point(data, found.val) >= values[0]
        assert found.candidate == replace(ordered[0].candidate, soup=2)
        assert finals.named(found.candidate).startswith("lp_ft soup of 2 depth=")
        assert found.details["fits averaged"] == "2 of 3"
        assert found.details["val as each was added"].endswith("(left out)")
        (again,) = soup.greedy(session, data, trials)
        assert again.trained.identity() == found.trained.identity()
        assert again.val.outputs.tobytes() == found.val.outputs.tobytes()
        states = [one.trained.model.state_dict() for one in ordered[:2]]
        for name, tensor in found.trained.model.state_dict().items():
            torch.testing.assert_close(tensor.double(), (states[0][name].double() + states[1][name].double()) / 2)
        saved = judge.save(session, data, found)
        assert saved.predict(data.dataset.inputs) == found.trained.predict(data.dataset.inputs)
        assert replace(saved, temperature=1.0).identity() == found.trained.identity()


def test_fits_that_make_it_worse_leave_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as (session, data):
        good = fit(session, data, Choice("lp_ft", {"depth": 1}), 1e-3)
        assert soup.greedy(session, data, [good, changed(good, 50.0, data, session)]) == []


def test_only_fits_that_began_alike_and_kept_their_statistics_go_together(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as (session, data):
        one = fit(session, data, Choice("lp_ft", {"depth": 1}), 1e-3)
        assert soup.greedy(session, data, [one]) == []
        fresh = fit(session, data, Choice("full", {"head": "fresh"}), 1e-4)
        drifted = fit(session, data, Choice("lp_ft", {"depth": 1, "batch_norm": "adapt"}), 1e-3)
        elsewhere = replace(one, candidate=replace(one.candidate, image_size=64))
        cooked = replace(one, candidate=replace(one.candidate, soup=2))
        for other in (fresh, drifted, elsewhere):
            assert not soup._alike(other, one)
        assert soup.ingredients(data, [one, cooked]) == (one,)
        assert soup._alike(one, one)


def test_without_time_or_a_val_split_there_is_none(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as (session, data):
        one = fit(session, data, Choice("lp_ft", {"depth": 1}), 1e-3)
        trials = [one, replace(one)]
        session.closing_seconds = math.inf
        assert soup.greedy(session, data, trials) == []
        session.closing_seconds = 0.0
        assert soup.greedy(session, data, trials) == [], "the run remembers that there was no time"
