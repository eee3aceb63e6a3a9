"""The loop against loops written by hand, and everything that it decides between two steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tinyfit
from tinyfit import BATCH, CONFIG, STEPS, Net, Setup
from warmstart import checkpoint, optim
from warmstart.data import Batch
from warmstart.errors import RecipeError, TrainingError
from warmstart.fit import FitConfig, NotFiniteError, Progress, Step, fit
from warmstart.optim import OptimConfig, ScheduleConfig
from warmstart.rundir import Journal
from warmstart.strategies import Group

CONSTANT = ScheduleConfig("constant", warmup_fraction=0.0)
NO_TRAINING = (
    "epochs=0 of 6 batches is no training, expected at least 1 of 1\n  fix: epochs=1, or more training examples"
)


def losses(folder: Path) -> list[float]:
    """Return the loss of every step; so few steps are all written."""
    return [float(str(line["loss"])) for line in Journal(folder / "metrics.jsonl", "fit").read() if "loss" in line]


class Plain(nn.Module):
    """Two layers without randomness or batch statistics, so that micro-batches are exact."""

    def __init__(self) -> None:
        super().__init__()
        donor = Net()
        self.body, self.head = donor.frozen[0], donor.head

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(inputs)))
        return out


def fit_plain(folder: Path, config: FitConfig, net: Plain | None = None) -> Plain:
    net = net or Plain()
    learning = [
        Group("body", tuple(net.body.parameters()), (net.body,), 0.5),
        Group("head", tuple(net.head.parameters())),
    ]
    make = tinyfit.batches()
    fit(net, learning, forward=tinyfit.forward, batches=make, steps_per_epoch=STEPS, config=config, folder=folder)
    return net


def by_hand(config: OptimConfig, lr_of: optim.ScheduleConfig, epochs: int) -> tuple[list[float], Plain]:
    """The loop as one writes it: torch's optimizer, torch's clipping, whole batches."""
    net = Plain()
    entries = [{"params": net.body.parameters(), "lr": 0.0}, {"params": net.head.parameters(), "lr": 0.0}]
    decay = config.weight_decay or 0.0
    optimizer: torch.optim.Optimizer = {
        "sgd": lambda: torch.optim.SGD(entries, momentum=config.momentum, nesterov=config.nesterov, weight_decay=decay),
        "adam": lambda: torch.optim.Adam(entries, weight_decay=decay),
        "adamw": lambda: torch.optim.AdamW(entries, weight_decay=decay),
    }[config.name]()
    seen, step, total = [], 0, epochs * STEPS
    for epoch in range(epochs):
        for batch in tinyfit.batches()(epoch, 0):
            height = config.lr * optim.factor(step, total, lr_of, steps_per_epoch=STEPS)
            optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.5 * height, height
            loss = nn.functional.cross_entropy(net(batch.inputs), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            if config.clip_norm:
                nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
            optimizer.step()
            seen.append(loss.item())
            step += 1
    return seen, net


OPTIMIZERS = [
    OptimConfig("sgd", lr=0.3, momentum=0.0, weight_decay=0.0, clip_norm=None),
    OptimConfig("sgd", lr=0.1, momentum=0.9, weight_decay=1e-2, decay_all=True, clip_norm=0.2),
    OptimConfig("sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2, decay_all=True, clip_norm=0),
    OptimConfig("adam", lr=0.02, weight_decay=1e-2, decay_all=True, clip_norm=1.0),
    OptimConfig("adamw", lr=0.02, weight_decay=0.1, decay_all=True, clip_norm=0.5),
]


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: f"{o.name}-{o.clip_norm}")
def test_losses_and_weights_are_those_of_a_loop_written_by_hand(
    tmp_path: Path, optimizer: OptimConfig, micro_batch: int | None
) -> None:
    schedule = ScheduleConfig("cosine", warmup_fraction=0.2)
    config = FitConfig(epochs=4, optim=optimizer, schedule=schedule, micro_batch=micro_batch)
    net = fit_plain(tmp_path, config)
    expected, reference = by_hand(optimizer, schedule, 4)
    assert losses(tmp_path) == pytest.approx(expected, abs=1e-6)
    assert expected[-1] < expected[0]
    for own, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, atol=2e-6, rtol=1e-5)


def test_weight_decay_leaves_biases_alone_unless_asked(tmp_path: Path) -> None:
    still = OptimConfig("sgd", lr=0.1, momentum=0.0, weight_decay=0.5)
    for decay_all in (False, True):
        net, batch = Plain(), next(tinyfit.batches()(0, 0))
        config = FitConfig(1, optim=replace(still, decay_all=decay_all), schedule=CONSTANT)
        fit(
            net,
            [Group("all", tuple(net.parameters()))],
            forward=lambda m, b: Step(m(b.inputs).sum() * 0.0),
            batches=lambda epoch, start, batch=batch: iter([batch]),
            steps_per_epoch=1,
            config=config,
            folder=tmp_path / str(decay_all),
        )
        shrunk = 0.95 if decay_all else 1.0
        torch.testing.assert_close(net.head.bias, Plain().head.bias * shrunk)
        torch.testing.assert_close(net.head.weight, Plain().head.weight * 0.95)


def test_a_penalty_counts_once_per_step_whatever_the_micro_batch(tmp_path: Path) -> None:
    nets = []
    for micro in (None, 3):
        net = Plain()
        fit(
            net,
            [Group("all", tuple(net.parameters()))],
            forward=tinyfit.forward,
            batches=tinyfit.batches(),
            steps_per_epoch=STEPS,
            config=replace(CONFIG, micro_batch=micro, epochs=2),
            folder=tmp_path / str(micro),
            penalty=lambda net=net: 0.3 * sum(p.square().sum() for p in net.parameters()),
        )
        nets.append(net)
    free = fit_plain(tmp_path / "free", replace(CONFIG, epochs=2))
    torch.testing.assert_close(nets[0].head.weight, nets[1].head.weight, atol=1e-6, rtol=1e-5)
    assert nets[0].head.weight.square().sum() < free.head.weight.square().sum()


def test_frozen_tensors_keep_their_bits_and_sleeping_groups_theirs_until_they_wake(tmp_path: Path) -> None:
    before, net = tinyfit.bits(Net()), Net()
    seen: list[dict[str, bytes]] = []
    check = tinyfit.validate(net)

    def validate() -> float:
        seen.append(tinyfit.bits(net))
        return check()

    fit(
        net,
        tinyfit.groups(net, body_from=2),
        forward=tinyfit.forward,
        batches=tinyfit.batches(),
        steps_per_epoch=STEPS,
        config=CONFIG,
        folder=tmp_path,
        validate=validate,
        head=net.head,
    )
    for name, first in before.items():
        assert tinyfit.bits(net)[name] == first or not name.startswith("frozen"), name
        moved = [epoch[name] != first for epoch in seen]
        since = {"frozen": 4, "body": 2, "head": 0}[name.split(".")[0]]
        assert moved == [epoch >= since for epoch in range(4)], name


def test_statistics_of_a_learning_group_stay_still_unless_told_to_adapt(tmp_path: Path) -> None:
    for statistics in ("still", "adapt"):
        net = Net()
        fit(
            net,
            tinyfit.groups(net, statistics=statistics),
            forward=tinyfit.forward,
            batches=tinyfit.batches(),
            steps_per_epoch=STEPS,
            config=replace(CONFIG, epochs=1),
            folder=tmp_path / statistics,
        )
        before, after = tinyfit.bits(Net()), tinyfit.bits(net)
        assert after["body.1.weight"] != before["body.1.weight"]
        assert (after["body.1.running_mean"] == before["body.1.running_mean"]) == (statistics == "still")


def test_the_best_epoch_wins_a_tie_keeps_the_earlier_and_patience_ends_the_fit(tmp_path: Path) -> None:
    told = iter([0.5, 0.7, 0.7, 0.6, 0.9])
    net, kept = Net(), {}

    def validate() -> float:
        metric = next(told)
        kept.setdefault(metric, tinyfit.bits(net))
        return metric

    result = fit(
        net,
        tinyfit.groups(net),
        forward=tinyfit.forward,
        batches=tinyfit.batches(),
        steps_per_epoch=STEPS,
        config=replace(CONFIG, epochs=5, early_stopping=2),
        folder=tmp_path,
        validate=validate,
    )
    assert (result.best_metric, result.best_epoch, result.stopped_because) == (0.7, 1, "early_stopping")
    assert len(result.history) == 4 and next(told) == 0.9
    assert tinyfit.bits(net) == kept[0.7]
    saved = checkpoint.load_tensors(result.best_path)
    assert torch.equal(saved["head.weight"], net.head.weight) and "frozen.0.weight" not in saved


def test_a_plateau_of_val_drops_the_rate(tmp_path: Path) -> None:
    net, told = Net(), iter([3.0, 2.0, 4.0, 4.0, 4.0])
    result = fit(
        net,
        tinyfit.groups(net),
        forward=tinyfit.forward,
        batches=tinyfit.batches(),
        steps_per_epoch=STEPS,
        config=replace(CONFIG, epochs=5, schedule=ScheduleConfig("plateau", 0.0, step_epochs=0, factor=0.5)),
        folder=tmp_path,
        validate=lambda: next(told),
    )
    assert [record.lr for record in result.history] == pytest.approx([0.01, 0.01, 0.005, 0.005, 0.0025])


def test_lower_is_better_and_a_metric_that_is_not_a_number_never_wins(tmp_path: Path) -> None:
    for metrics, best in (([3.0, 1.0, 2.0, 1.0], 1), ([math.nan, 3.0, math.nan, 4.0], 1)):
        net, told = Net(), iter(metrics)
        result = fit(
            net,
            tinyfit.groups(net),
            forward=tinyfit.forward,
            batches=tinyfit.batches(),
            steps_per_epoch=STEPS,
            config=CONFIG,
            folder=tmp_path / str(metrics[0]),
            validate=lambda told=told: next(told),
            higher_is_better=False,
        )
        assert result.best_epoch == best


def test_a_deadline_ends_the_fit_with_the_step_that_crosses_it_and_validates(tmp_path: Path) -> None:
    result, net = tinyfit.run(tmp_path, Setup(replace(CONFIG, deadline_seconds=0.0)))
    assert (result.stopped_because, result.steps, len(result.history)) == ("deadline", 1, 1)
    assert result.best_metric == pytest.approx(tinyfit.validate(net)())


def test_asked_to_stop_it_saves_and_the_same_call_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, expected = tinyfit.run(tmp_path / "whole")
    for calls in itertools.count(1):  # noqa: B007 - it is used after the loop
        net, steps = Net(), itertools.count(1)
        result = fit(
            net,
            tinyfit.groups(net),
            forward=tinyfit.forward,
            batches=tinyfit.batches(workers=2),
            steps_per_epoch=STEPS,
            config=CONFIG,
            folder=tmp_path / "stopped",
            validate=tinyfit.validate(net),
            should_stop=lambda steps=steps: next(steps) == 5,
        )
        if result.stopped_because != "asked":
            break
    assert calls >= 5
    assert tinyfit.bits(net) == tinyfit.bits(expected)
    assert [replace(r, seconds=0.0) for r in result.history] == [replace(r, seconds=0.0) for r in whole.history]
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_a_finished_fit_is_not_run_again(tmp_path: Path) -> None:
    first, trained = tinyfit.run(tmp_path)
    told: list[Progress] = []
    net = Net()
    result = fit(
        net,
        tinyfit.groups(net),
        forward=tinyfit.forward,
        batches=lambda epoch, start: iter(()),
        steps_per_epoch=STEPS,
        config=CONFIG,
        folder=tmp_path,
        validate=tinyfit.validate(net),
        on_progress=told.append,
    )
    assert result == first and tinyfit.bits(net) == tinyfit.bits(trained) and not told


def spoiled(net: Net, at: int, what: str) -> Iterator[Step]:
    """Yield steps of which one has a loss, or a gradient, that is not a number."""
    make = tinyfit.batches()
    flat = itertools.chain.from_iterable(make(epoch, 0) for epoch in range(9))
    for number, batch in enumerate(flat):
        step = tinyfit.forward(net, batch)
        bad = number == at
        if bad and what == "loss":
            net.body[1].running_mean.data.fill_(math.nan)
        yield Step(step.loss * math.nan) if bad and what == "loss" else _bad_gradient(step, net) if bad else step


def _bad_gradient(step: Step, net: Net) -> Step:
    return Step(step.loss + torch.sqrt(net.head.weight.sum() * 0.0))


def fit_spoiled(folder: Path, what: str, config: FitConfig) -> tuple[Net, object]:
    net = Net()
    steps = spoiled(net, 8, what)
    result = fit(
        net,
        tinyfit.groups(net),
        forward=lambda module, batch: next(steps),
        batches=tinyfit.batches(),
        steps_per_epoch=STEPS,
        config=config,
        folder=folder,
    )
    return net, result


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_with_the_step_and_the_rows(tmp_path: Path, what: str) -> None:
    with pytest.raises(NotFiniteError) as caught:
        fit_spoiled(tmp_path, what, CONFIG)
    rows = next(itertools.islice(tinyfit.batches()(1, 2), 1)).index
    assert caught.value.step == 8
    assert caught.value.rows.tolist() == rows.tolist()
    assert str(caught.value) == (
        f"the loss or its gradient is not finite at step 8 (rows {', '.join(str(int(row)) for row in rows)})\n"
        "  fix: a smaller optim.lr, optim.clip_norm=1.0, or on_nan=skip"
    )


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_skipping_leaves_the_step_out_and_counts_it(tmp_path: Path, what: str) -> None:
    net, result = fit_spoiled(tmp_path, what, replace(CONFIG, on_nan="skip"))
    assert result.skipped_batches == 1 and result.steps == 4 * STEPS
    assert all(torch.isfinite(tensor).all() for tensor in net.state_dict().values())
    assert all(math.isfinite(record.train_loss) for record in result.history)


def test_the_average_is_that_of_the_closed_form_and_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    net, decay = Plain(), 0.8
    after: list[Tensor] = [net.head.weight.detach().clone()]
    seen: list[Tensor] = []
    result = fit(
        net,
        [Group("all", tuple(net.parameters()))],
        forward=tinyfit.forward,
        batches=tinyfit.batches(),
        steps_per_epoch=STEPS,
        config=replace(CONFIG, ema_decay=decay, epochs=2),
        folder=tmp_path,
        validate=lambda: seen.append(net.head.weight.detach().clone()) or float(len(seen)),
        on_progress=lambda progress: after.append(net.head.weight.detach().clone()),
    )
    count = len(after) - 1
    shares = [decay**count] + [(1 - decay) * decay ** (count - k) for k in range(1, count + 1)]
    expected = sum(share * weight for share, weight in zip(shares, after, strict=True))
    torch.testing.assert_close(seen[-1], expected)
    torch.testing.assert_close(net.head.weight, expected)
    assert result.best_epoch == 1 and not torch.equal(net.head.weight, after[-1])


def test_torchs_own_random_numbers_go_on_undisturbed(tmp_path: Path) -> None:
    net = Net()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tinyfit.run(tmp_path, Setup(replace(CONFIG, epochs=1)), net)
    assert torch.equal(torch.rand(3), expected)


def test_progress_is_told_after_every_step(tmp_path: Path) -> None:
    told: list[Progress] = []
    net = Net()
    fit(
        net,
        tinyfit.groups(net),
        forward=tinyfit.forward,
        batches=tinyfit.batches(),
        steps_per_epoch=STEPS,
        config=CONFIG,
        folder=tmp_path,
        validate=tinyfit.validate(net),
        on_progress=told.append,
    )
    assert [p.step for p in told] == list(range(1, 4 * STEPS + 1)) and told[0].total_steps == 4 * STEPS
    assert told[0].metric is None and told[-1].metric is not None and told[0].loss is not None


def test_bfloat16_forward_learns_and_leaves_float32_weights(tmp_path: Path) -> None:
    result, net = tinyfit.run(tmp_path, Setup(replace(CONFIG, precision="bf16")))
    assert net.head.weight.dtype == torch.float32 and result.history[-1].train_loss < result.history[0].train_loss
    exact, _ = tinyfit.run(tmp_path / "fp32")
    assert exact.history[0].train_loss != result.history[0].train_loss


def test_half_precision_on_a_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        tinyfit.run(tmp_path, Setup(replace(CONFIG, precision="fp16")))
    assert str(caught.value) == (
        "precision='fp16' needs a GPU, and the device is cpu\n  fix: precision=fp32, or precision=bf16"
    )


def test_several_processes_are_refused_rather_than_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 2)
    with pytest.raises(TrainingError) as caught:
        tinyfit.run(tmp_path)
    assert str(caught.value) == "2 processes were started, expected one\n  fix: start it without a launcher"


def test_nothing_to_train_is_refused(tmp_path: Path) -> None:
    net = Net()
    for learning, config, text in (
        ([], CONFIG, "no parameter is in a group that learns\n  fix: another strategy, such as --strategy full"),
        (
            tinyfit.groups(net),
            replace(CONFIG, epochs=0),
            NO_TRAINING,
        ),
    ):
        with pytest.raises(TrainingError) as caught:
            fit(
                net,
                learning,
                forward=tinyfit.forward,
                batches=tinyfit.batches(),
                steps_per_epoch=STEPS,
                config=config,
                folder=tmp_path,
            )
        assert str(caught.value) == text


def test_batches_that_fall_short_are_noticed(tmp_path: Path) -> None:
    net = Net()
    with pytest.raises(TrainingError, match="epoch 0 ended after step 6, expected 7"):
        fit(
            net,
            tinyfit.groups(net),
            forward=tinyfit.forward,
            batches=tinyfit.batches(),
            steps_per_epoch=STEPS + 1,
            config=CONFIG,
            folder=tmp_path,
        )


def test_an_open_learning_rate_is_refused_since_strategies_know_the_usual_ones(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        tinyfit.run(tmp_path, Setup(replace(CONFIG, optim=OptimConfig("adamw"))))
    assert str(caught.value) == (
        "optim.lr is open, and the loop does not decide it\n  fix: optim.lr=3e-4, or a strategy's `lrs`"
    )


def test_micro_batches_cover_a_batch_once() -> None:
    from warmstart.looptools import parts

    index = torch.arange(BATCH)
    batch = Batch(index.float(), index, index)
    for micro in (1, 3, 8, 9):
        found = list(parts(batch, micro))
        assert torch.equal(torch.cat([part.index for part, _ in found]), index)
        assert sum(share for _, share in found) == pytest.approx(1.0)
