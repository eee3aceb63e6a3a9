"""Forecasts: the record of a step against torch's own counts, and the arithmetic against sums written by hand."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import cache_helpers
from warmstart import forecast, looptools, pace, planning, profiles, profiling, resources, sources, workflow
from warmstart.config import Choice
from warmstart.data import Dataset, read
from warmstart.errors import RecipeError, SourceError
from warmstart.forecast import Cost, Load
from warmstart.models.model import LinearHead, Model
from warmstart.optim import OptimConfig
from warmstart.planning import Limits
from warmstart.profiles import Decoding, Engine, Profile
from warmstart.profiling import Inference, Network, Steps
from warmstart.strategies import thaw
from warmstart.workflow import plan

MIB = 2**20
TINY = "random/test_resnet"


def network() -> Network:
    """Three groups and a head, with round numbers."""
    return Network(
        steps=(
            Steps(8, (0.010, 0.010, 0.020, 0.001), (0.020, 0.020, 0.040, 0.002)),
            Steps(32, (0.040, 0.040, 0.080, 0.004), (0.080, 0.080, 0.160, 0.008)),
        ),
        live=(
            ((2 * MIB, 2 * MIB), (9 * MIB, MIB / 8)),
            ((1 * MIB, 1.5 * MIB),),
            ((0.0, 0.75 * MIB),),
            ((1 * MIB, 0.0),),
        ),
        inference=Inference(8, 0.024, 4 * MIB),
        parameters=(1000, 10_000, 100_000, 5130),
        layers=(1, 2, 1, 1),
        hidden_bytes={0: 27_648, 1: 400_000, 2: 100_000, 3: 2048},
        optimizer_seconds=0.01,
    )


def made(**changes: object) -> Profile:
    values: dict[str, object] = {
        "backbone": "test/round",
        "image_size": 96,
        "num_outputs": 10,
        "network": network(),
        "engine": Engine("onnxruntime", 0.001, 0.5, 30 * MIB, 20 * MIB),
        "decoding": Decoding(0.0, 0.0),
        "load_seconds": 0.25,
        "load_peak_bytes": 10 * MIB,
        "resident_bytes": 700 * MIB,
        "cpus": 2,
        "threads": 1,
        "workers": 2,
        "seconds": 1.0,
    }
    return Profile(**{**values, **changes})  # type: ignore[arg-type]


def cost(name: str, load: Load, profile: Profile | None = None, **options: object) -> Cost:
    return forecast.cost(
        profile or made(), Choice(name, options), dataclasses.replace(load, memory_bytes=load.memory_bytes or 2**40)
    )


LOAD = Load(num_train=320, num_val=0, epochs=2, batch_size=32)
PER_STEP = forecast.STEP_SECONDS


def written(parameters: int) -> float:
    return 4 * parameters / forecast.WRITTEN


def test_an_epoch_of_everything_is_the_sum_of_its_groups() -> None:
    whole = 0.164 + 0.328
    expected = 10 * (whole + PER_STEP + 0.01) + written(116_130)
    assert cost("full", LOAD, made(), head="fresh").epoch_seconds == pytest.approx(expected)


def test_the_groups_before_the_cut_cost_their_features_once() -> None:
    found = cost("last_k", LOAD, k=1, head="fresh")
    # Group 2 is one layer: learning first, it sends no gradient back, half of its backward pass.
    step = 0.080 + 0.004 + 0.160 / 2 + 0.008 + PER_STEP + 0.01 * 105_130 / 116_130
    assert found.epoch_seconds == pytest.approx(10 * step + written(105_130))
    share = 0.080 / 0.164
    assert found.fill_seconds == pytest.approx(0.25 + 0.5 + 320 * 0.001 * share)


def test_smaller_portions_lie_on_the_line_and_cost_no_less() -> None:
    whole = cost("full", LOAD, head="fresh")
    small = cost("full", dataclasses.replace(LOAD, micro_batch=8), head="fresh")
    assert small.accumulation == 4
    assert small.epoch_seconds == pytest.approx(whole.epoch_seconds)  # of a network whose time is proportional
    assert small.peak_bytes < whole.peak_bytes


def test_decoding_beside_the_steps_takes_the_processors_that_are_left() -> None:
    each = (0.164 + 0.328) / 32
    slow = cost("full", LOAD, made(decoding=Decoding(0.1, 0.1)), head="fresh")
    quick = cost("full", LOAD, made(decoding=Decoding(0.001, 0.001)), head="fresh")
    both = cost("full", LOAD, made(decoding=Decoding(each, each), threads=2), head="fresh")
    rest = 10 * (PER_STEP + 0.01) + written(116_130)
    assert slow.epoch_seconds == pytest.approx(320 * (each + 0.1) / 2 + rest)
    assert quick.epoch_seconds == pytest.approx(320 * each + rest)
    assert both.epoch_seconds == pytest.approx(320 * each * 1.5 + rest)


def test_gradual_thawing_costs_the_mean_of_its_epochs() -> None:
    load = dataclasses.replace(LOAD, epochs=4)
    found = cost("gradual", load).epoch_seconds
    forward, fixed = 0.164, 10 * PER_STEP
    backward = (0.008 / 2, 0.008 + 0.160 / 2, 0.008 + 0.160 + 0.080 * (1 - 0.25), 0.328)
    learning = (5130, 105_130, 115_130, 116_130)
    steps = [10 * (forward + one + 0.01 * num / 116_130) + fixed for one, num in zip(backward, learning, strict=True)]
    assert found == pytest.approx(sum(steps) / 4 + written(116_130))


def test_the_peak_is_what_is_held_and_the_largest_stage() -> None:
    found = cost("full", LOAD, head="fresh")
    weights = 4 * 116_130
    pixels = 27_648 * (2 * 32 + 2 * 4 * 16)
    step = forecast.SCATTER * 66 * MIB + forecast.WORKSPACE + pixels
    assert found.peak_stage == "fit"
    assert found.peak_bytes == pytest.approx(700 * MIB + 3.8 * weights + step, abs=1)
    sgd = cost("full", dataclasses.replace(LOAD, optimizer="sgd"), head="fresh")
    assert found.peak_bytes - sgd.peak_bytes == pytest.approx(weights, abs=1)
    pulled = cost("l2_sp", LOAD, head="fresh")
    assert pulled.peak_bytes - found.peak_bytes == pytest.approx(3 * weights, abs=1)


def test_the_largest_portion_that_fits_is_chosen() -> None:
    alone = dataclasses.replace(LOAD, resident_bytes=0)
    peaks = {
        size: cost("full", dataclasses.replace(alone, micro_batch=size), head="fresh").peak_bytes for size in (32, 16)
    }
    for size, limit in ((32, 1.11 * peaks[32]), (16, 1.09 * peaks[32]), (8, 1.09 * peaks[16])):
        found = cost("full", dataclasses.replace(alone, memory_bytes=round(limit)), head="fresh")
        assert (found.micro_batch, found.fits) == (size, True), limit
        assert found.micro_batch * found.accumulation >= 32
    told = cost("full", dataclasses.replace(alone, memory_bytes=round(1.05 * peaks[32]), micro_batch=32), head="fresh")
    assert not told.fits
    assert told.reason.startswith("memory: ")


@given(st.integers(1, 256), st.integers(1, 256), st.integers(1, 2000))
def test_more_is_never_cheaper(micro: int, more: int, num_train: int) -> None:
    def at(size: int, num: int) -> Cost:
        return cost("full", Load(num_train=num, epochs=1, batch_size=256, micro_batch=size), head="fresh")

    low, high = sorted((micro, more))
    # A portion that is not the whole batch keeps the gradients of those before it.
    assert high == 256 or at(low, num_train).peak_bytes <= at(high, num_train).peak_bytes
    assert at(micro, num_train).epoch_seconds <= at(micro, num_train + 256).epoch_seconds
    assert at(micro, num_train).disk_bytes == at(more, num_train).disk_bytes


def test_too_little_disk_does_not_fit() -> None:
    found = cost("last_k", dataclasses.replace(LOAD, disk_bytes=MIB), k=2)
    assert not found.fits
    assert found.reason.startswith("disk: ")
    assert found.disk_bytes > 320 * 400_000


def test_another_size_scales_with_its_pixels() -> None:
    twice = forecast.scaled(made(), 192)
    assert cost("full", LOAD, twice, head="fresh").epoch_seconds == pytest.approx(
        10 * (4 * 0.492 + PER_STEP + 0.01) + written(116_130)
    )
    assert twice.network.live_bytes(0, 32) == (2 + 4 * 64) * MIB  # what does not grow, 2 MiB, stays
    assert twice.network.live_bytes(3, 32) == 1 * MIB
    assert twice.network.hidden_bytes == {0: 110_592, 1: 1_600_000, 2: 400_000, 3: 2048}


def test_a_profile_is_remembered_as_it_was() -> None:
    assert Profile.from_json(json.loads(json.dumps(made().to_json()))) == made()


# The record of a real step.


def tiny() -> Model:
    return Model(cache_helpers.Tiny(), LinearHead(6, 3)).to(memory_format=torch.channels_last)


def loss(outputs: Tensor, num: int) -> Tensor:
    return nn.functional.cross_entropy(outputs, torch.arange(num) % 3)


def measured(model: Model) -> Network:
    return profiling.measure(model, loss, image_size=64, optimizer=OptimConfig(), precision="fp32", seconds=0.2)


def test_measuring_changes_no_weight_and_leaves_no_hook() -> None:
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measured(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_what_is_live_at_the_peak_grows_with_the_examples() -> None:
    """The first layer's output and both batch-norms' inputs and outputs live at once, which numbers can be said of."""
    found = measured(tiny())
    small, large = found.steps
    assert large.batch == 4 * small.batch
    each = (found.live_bytes(0, 256) - found.live_bytes(0, 128)) / 128
    first, second, pixels = 4 * 64 * 64 * 4, 6 * 32 * 32 * 4, 3 * 64 * 64 * 4
    kept = pixels + 3 * first + 3 * second  # input, convolutions, batch-norms and rectified values
    assert kept * 0.8 <= each <= kept + 3 * first
    peaks = [found.live_bytes(group, 32) for group in range(3)]
    assert peaks == sorted(peaks, reverse=True)
    assert found.hidden_bytes == {0: 3 * 64 * 64, 1: first, 2: 24}
    assert found.parameters == (4 * 27 + 12, 6 * 36 + 18, 21)


def test_the_line_between_two_batches_meets_a_third() -> None:
    model = tiny()
    found = measured(model)
    job = profiling._Job(model, loss, 64, nullcontext)
    looptools.set_modes(model, thaw(model.layer_groups()), 0)
    for group, moments in enumerate(job.windows(23)):
        expected = max(moments) + 23 * found.hidden_bytes[group]
        assert found.live_bytes(group, 23) == pytest.approx(expected, rel=1e-6)


def test_the_peak_of_small_batches_is_where_the_gradients_are_complete() -> None:
    """Gradients of 100 bytes at the end, activations of 10 each in the middle: no one line goes through both."""
    steps = {size: [0, 10 * size, 5 * size + 40, size + 100] for size in (2, 8)}
    lines = profiling._lines(steps[2], steps[8], (2, 8), given=0)
    for size in (1, 4, 20, 500):
        assert max(fixed + size * each for fixed, each in lines) == pytest.approx(max(10 * size, size + 100))


def test_bytes_are_counted_when_they_live_and_no_longer() -> None:
    values, model = torch.zeros(1 << 18), nn.Linear(1, 1)
    with profiling._Live(model) as live:
        kept = [torch.tanh(values + step) for step in range(4)]
        del kept[1:]
        torch.tanh(values)
    size = values.nbytes
    assert live._now == size  # one is kept
    assert live.peak() == 5 * size  # four results and one sum
    del kept
    assert live._now == 0


# The verb.


def shades(num: int = 60) -> Dataset:
    rng = np.random.default_rng(0)
    labels = ["dark" if at % 2 else "light" for at in range(num)]
    bright = np.array([100 * (name == "light") for name in labels])[:, None, None, None]
    return read.from_arrays((rng.integers(0, 90, (num, 24, 24, 3)) + bright).astype(np.uint8), labels, name="shades")


AT_32 = {"data.image_size": 32, "data.workers": 1}


def test_the_second_plan_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan(shades(), backbone=TINY, overrides=AT_32)
    assert [option.strategy for option in first.options] == [
        "probe", "last_k", "lp_ft depth=2", "lp_ft depth=4", "lp_ft", "gradual", "full", "l2_sp",
    ]  # fmt: skip

    def forbidden(*_: object) -> None:
        raise AssertionError("nothing is measured again")

    monkeypatch.setattr(profiles, "_measure", forbidden)
    again = plan(shades(), backbone=TINY, overrides=AT_32)
    assert [option.cost for option in again.options] == [option.cost for option in first.options]
    assert all(option.fits for option in again.options)


def test_a_damaged_memory_is_measured_again(caplog: pytest.LogCaptureFixture) -> None:
    plan(shades(), backbone=TINY, strategy="probe", overrides=AT_32)
    with workflow.scratch("plan", shades(), {}, None) as session:
        (file,) = session.cache.engines.glob("*.profile.json")
    file.write_text('{"backbone": "random')
    plan(shades(), backbone=TINY, strategy="probe", overrides=AT_32)
    assert "is damaged and measured again" in caplog.text
    assert json.loads(file.read_text())["image_size"] == 32


def test_a_backbone_that_cannot_be_loaded_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cards = [sources.card(TINY), dataclasses.replace(sources.card(TINY), name="timm/gone")]
    monkeypatch.setattr(planning.choosing, "cards", lambda session: cards)
    real = forecast.profile

    def profile(session: object, data: object, name: str, *rest: object, **more: object) -> Profile:
        if name == "timm/gone":
            raise SourceError(
                "no weights for timm/gone in the local cache, and no network", "warmstart fetch timm/gone"
            )
        return real(session, data, name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(forecast, "profile", profile)
    found = plan(shades(), strategy="probe", overrides=AT_32)
    row = found.options[-1].to_json()
    assert (row["backbone"], row["fits"], row["seconds"]) == ("timm/gone", False, None)
    assert "no: no weights for timm/gone in the local cache, and no network" in found.words()
    monkeypatch.setattr(planning.choosing, "cards", lambda session: cards[1:])
    with pytest.raises(SourceError) as error:
        plan(shades(), strategy="probe", overrides=AT_32)
    assert str(error.value) == (
        "none of 1 candidates can be loaded (first: no weights for timm/gone in the local cache, and no network)\n"
        "  fix: warmstart fetch timm/gone"
    )


def options(*costs: Cost) -> list[planning.Option]:
    found = []
    for one in costs:
        _, seconds, reason = planning._judged(one, LIMITS)
        found.append(planning.Option("test/round", 96, "full", one, seconds, not reason, reason))
    return found


LIMITS = Limits(60.0, 2**40, 2**40)


def test_as_many_epochs_as_the_budget_allows() -> None:
    load = dataclasses.replace(LOAD, epochs=30, memory_bytes=2**40)
    one = cost("full", dataclasses.replace(load, epochs=1), head="fresh")
    for budget in (10.0, 30.0, 600.0):
        found, seconds, reason = planning.affordable(
            made(), Choice("full", {"head": "fresh"}), load, Limits(budget, 2**40, 2**40)
        )
        room = 0.9 * (budget - pace.REPORT_SECONDS) - one.fill_seconds - one.evaluate_seconds
        fitting = int(room / one.epoch_seconds)
        assert found.epochs == max(1, min(30, fitting)), budget
        assert (not reason) == (fitting >= 1)
        assert seconds == pytest.approx(pace.REPORT_SECONDS + found.seconds)


def test_when_the_budget_is_too_short_the_smallest_that_would_do_is_named() -> None:
    slow = dataclasses.replace(cost("full", LOAD, head="fresh"), epochs=1, epoch_seconds=90.0, fill_seconds=0.0)
    with pytest.raises(RecipeError) as error:
        planning._require_some(options(slow, dataclasses.replace(slow, epoch_seconds=500.0)), [made()], LIMITS)
    assert str(error.value) == (
        "no option fits budget=60s; the quickest is full on test/round at 96 px in 108s\n  fix: --budget 3m"
    )


def test_when_memory_is_too_small_the_least_that_would_do_is_named() -> None:
    large = dataclasses.replace(cost("full", LOAD, head="fresh"), fits=False, reason="memory: …", peak_bytes=10**9)
    limits = dataclasses.replace(LIMITS, memory=512 * MIB)
    with pytest.raises(RecipeError) as error:
        planning._require_some(options(large), [made()], limits)
    assert str(error.value) == (
        "no option fits memory=512.0 MiB; the smallest is full on test/round at 96 px with 1.0 GiB\n"
        "  fix: --memory 1.1GB"
    )


def test_when_the_disk_is_full_it_says_what_is_needed() -> None:
    large = dataclasses.replace(cost("full", LOAD, head="fresh"), fits=False, reason="disk: …", disk_bytes=300 * MIB)
    with pytest.raises(RecipeError) as error:
        planning._require_some(options(large), [made()], dataclasses.replace(LIMITS, disk=8 * MIB))
    assert str(error.value) == (
        "no option fits the 8.0 MiB of disk that the cache may use; the smallest needs 300.0 MiB\n"
        "  fix: --cache-limit, or WARMSTART_CACHE on a larger disk"
    )


# The machine.


def test_memory_is_what_the_system_counts() -> None:
    resources.trim()
    assert resources.reset_peak()
    before = resources.resident_bytes()
    held = np.ones(64 * MIB, np.uint8)
    assert resources.resident_bytes() - before > 60 * MIB
    del held
    assert resources.peak_bytes() - before > 60 * MIB
    assert resources.resident_bytes() - before < 20 * MIB
    assert 0 < resources.available_bytes() < 2**50


def test_a_container_limits_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("limit", str(900 * MIB)), ("use", str(500 * MIB)), ("none", "max")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(resources, "CGROUPS", ((str(tmp_path / "limit"), str(tmp_path / "use")),))
    assert resources.available_bytes() == min(400 * MIB, resources._meminfo("MemAvailable"))
    monkeypatch.setattr(resources, "CGROUPS", ((str(tmp_path / "none"), str(tmp_path / "use")),))
    assert resources.available_bytes() > 0


def test_the_disk_of_a_folder_to_come_is_that_of_its_parent(tmp_path: Path) -> None:
    assert resources.free_disk_bytes(tmp_path / "not" / "yet") == pytest.approx(
        resources.free_disk_bytes(tmp_path), rel=0.1
    )
