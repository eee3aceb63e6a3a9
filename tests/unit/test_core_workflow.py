"""The verbs from Python, end to end on tiny networks: what they return, refuse, repeat and record."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import assets
import warmstart as ws
from warmstart import (
    bench,
    choosing,
    extract,
    finals,
    options,
    pace,
    prepare,
    runtime,
    sources,
    trained,
    tune,
    workflow,
)
from warmstart.config import Choice
from warmstart.data import Dataset, read
from warmstart.errors import DataError, RecipeError, RunError, SourceError, TrainingError
from warmstart.models import Card, InputSpec
from warmstart.options import Options
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.tasks import Predictions
from warmstart.tune import Candidate, Trial

TINY = "random/test_resnet"
AT_32 = {"data.image_size": 32, "data.workers": 1}
PROBE: Options = {"backbone": TINY, "strategy": "probe", "overrides": AT_32}


def pictures(num: int = 50, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Two colours with noise, which any network tells apart."""
    rng = np.random.default_rng(seed)
    labels = ["dark" if at % 2 else "light" for at in range(num)]
    noise = rng.integers(0, 90, (num, 24, 24, 3))
    return (noise + np.array([100 * (name == "light") for name in labels])[:, None, None, None]).astype(
        np.uint8
    ), labels


def dataset(num: int = 50, seed: int = 0) -> Dataset:
    pixels, labels = pictures(num, seed)
    return read.from_arrays(pixels, labels, name="shades")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return assets.noise_folder(tmp_path / "data", {"a": 25, "b": 25})


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("nothing is computed again")


def session_of(tmp_path: Path, do: Callable[[Session, Prepared], None], given: Options | None = None) -> None:
    """Do something inside a prepared session on data in memory."""
    data = dataset()
    merged: Options = {**PROBE, **(given or {}), "out": tmp_path / "session"}
    with workflow.opened("run", data, merged, None) as session:
        do(session, prepare.prepare(session, data))


# --- the package


def test_public_names() -> None:
    assert ws.__all__ == sorted(ws.__all__)
    assert {name: callable(getattr(ws, name)) for name in ws.__all__} == dict.fromkeys(ws.__all__, True)
    assert set(dir(ws)) == set(ws.__all__)
    with pytest.raises(AttributeError, match="module 'warmstart' has no attribute 'tain'"):
        ws.tain  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["list", "strategies"], ["list", "readers"], ["show"], ["cache", "info"]]
)
def test_what_needs_no_framework_imports_none(words: list[str]) -> None:
    source = (
        "import sys, warmstart.cli as cli\n"
        f"sys.argv = ['warmstart', *{words!r}]\n"
        "try: code = cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = sorted({'torch', 'timm', 'torchvision', 'sklearn', 'scipy', 'PIL'} & sys.modules.keys())\n"
        "print(); print(code or 0, *heavy)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", source], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert len(done.stdout.splitlines()) >= 3


# --- run


def test_a_dataset_in_memory_becomes_a_tested_model(tmp_path: Path) -> None:
    run = ws.run(dataset(), out=tmp_path / "run", **PROBE)
    assert {metric.split for metric in run.metrics} == {"test"}
    assert run.metrics[0].name == "accuracy" and run.metrics[0].value == 1.0
    assert run.report.is_file()
    pixels, labels = pictures(8, seed=9)
    assert run.model.predict(pixels) == labels
    told = json.loads(json.dumps(run.to_json()))
    assert told["run"] == str(tmp_path / "run") and told["metrics"]
    assert "accuracy 1.0000 on test" in run.words()
    assert [entry.again for entry in workflow.RunDir.load(run.folder).openings()] == [False]


def test_the_same_call_again_returns_the_finished_run_without_computing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for data in (folder, dataset()):
        for verb in (ws.run, ws.finetune):
            first = verb(data, **PROBE)
            with monkeypatch.context() as patch:
                for owner, name in ((extract, "extract"), (sources, "load"), (tune, "tune")):
                    patch.setattr(owner, name, forbidden)
                again = verb(data, **PROBE)
                assert again.folder == first.folder
                assert again.metrics == first.metrics
                assert again.facts.answer == first.facts.answer
            assert workflow.RunDir.load(first.folder).status == "done"


def test_other_workers_are_the_same_run(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ws.run(folder, out=tmp_path / "run", **PROBE)
    monkeypatch.setattr(tune, "tune", forbidden)
    ws.run(folder, out=tmp_path / "run", **{**PROBE, "overrides": {**AT_32, "data.workers": 2}})


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    ws.finetune(folder, out=tmp_path / "run", **PROBE)
    with pytest.raises(RunError, match=r"belongs to another recipe \(seed: there 0, here 1\)"):
        ws.finetune(folder, out=tmp_path / "run", seed=1, **PROBE)
    with pytest.raises(RunError, match="belongs to another recipe"):
        ws.run(folder, out=tmp_path / "run", **PROBE)
    ws.finetune(folder, out=tmp_path / "run", seed=1, overwrite=True, **PROBE)


def test_other_data_in_memory_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = dataset(), dataset(seed=1)
    lied = replace(one, targets=1 - np.asarray(one.targets))
    names = [ws.finetune(data, **PROBE).folder.name for data in (one, other, one, lied)]
    assert names == [names[0], f"{names[0]}-2", names[0], f"{names[0]}-3"]
    with pytest.raises(RunError, match="belongs to another recipe"):
        ws.finetune(other, out=Path("runs") / names[0], **PROBE)


def test_a_run_is_named_for_data_backbone_strategy_and_verb(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ws.finetune(folder, **PROBE).folder == Path("runs/data-test_resnet-probe-finetune")
    assert ws.run(folder, **PROBE).folder == Path("runs/data-test_resnet-probe")
    assert ws.run(folder, seed=1, **PROBE).folder == Path("runs/data-test_resnet-probe-2")
    assert ws.run(folder, **PROBE).folder == Path("runs/data-test_resnet-probe")
    assert ws.run(dataset(), **PROBE).folder == Path("runs/shades-test_resnet-probe")


def test_a_name_that_was_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workflow, "_is_run", lambda *_: False)
    for number in range(1, 1000):
        name = "shades-test_resnet-probe" if number == 1 else f"shades-test_resnet-probe-{number}"
        Path("runs", name).mkdir(parents=True)
    with pytest.raises(RunError, match=r"runs/ holds 999 runs named shades-test_resnet-probe\n  fix: --out DIR"):
        ws.run(dataset(), **PROBE)


@pytest.mark.parametrize("verb", [ws.run, ws.finetune, ws.audit])
def test_an_unknown_keyword_is_refused_before_anything_is_done(
    verb: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="unknown keyword 'image_size'") as found:
        verb(dataset(), backbone=TINY, image_size=128)
    assert found.value.fix == 'overrides={"data.image_size": 128}'
    assert list(tmp_path.iterdir()) == []


# --- prepare


def test_no_data() -> None:
    with (
        pytest.raises(DataError, match=r"no data was named\n  fix: warmstart run DATA"),
        workflow.scratch("audit", None, {}, None) as session,
    ):
        prepare.prepare(session)


def test_a_finished_run_is_not_passed_off_for_data_that_changed(tmp_path: Path, folder: Path) -> None:
    run = ws.finetune(folder, out=tmp_path / "run", **PROBE)
    assets.noise_folder(folder, {"c": 25}, seed=5)
    with pytest.raises(RunError, match=r"was begun on other data \(splits \w+, now \w+\)\n  fix: --out NEW"):
        ws.finetune(folder, out=tmp_path / "run", **PROBE)
    assert workflow.RunDir.load(run.folder).status == "done"


def test_a_run_that_was_interrupted_does_not_go_on_with_other_data(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tune, "tune", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            ws.run(folder, out=tmp_path / "run", **PROBE)
    assets.noise_folder(folder, {"c": 25}, seed=5)
    with pytest.raises(RunError, match=r"was begun on other data \(splits \w+, now \w+\)\n  fix: --out NEW"):
        ws.run(folder, out=tmp_path / "run", **PROBE)


# --- choose


@pytest.mark.parametrize(
    ("own", "expected"),
    [(224, (128, 160, 192, 224)), (160, (96, 128, 160)), (288, (160, 192, 256, 288)), (32, (32,)), (64, (32, 64))],
)
def test_sizes_are_about_4_5_6_and_7_sevenths(own: int, expected: tuple[int, ...]) -> None:
    found = choosing.sizes(Card("x", spec=InputSpec(image_size=own)))
    assert found[-1] == own
    assert found == tuple(sorted(set(found)))
    assert found == expected


def said(hits: np.ndarray) -> Predictions:
    targets = np.arange(len(hits)) % 2
    values = np.where(np.arange(2) == np.where(hits, targets, 1 - targets)[:, None], 0.9, 0.1).astype(np.float32)
    return Predictions(np.log(values), values, np.arange(len(hits)), targets)


@pytest.mark.parametrize(
    ("first", "second", "size", "winner"),
    [
        (80, 80, 32, 0),
        (80, 82, 32, 1),  # nobody is cheaper, so half a point decides
        (80, 82, 24, 1),
        (80, 82, 64, 0),  # a tie goes to what answers faster
        (82, 80, 32, 0),
        (60, 95, 64, 1),
        (95, 60, 32, 0),
        (100, 100, 32, 0),
    ],
)
def test_the_better_wins_and_a_tie_goes_to_the_cheaper(
    first: int, second: int, size: int, winner: int, tmp_path: Path
) -> None:
    def check(session: Session, data: Prepared) -> None:
        model = object.__new__(trained.TrainedModel)
        trials = [
            Trial(Candidate(TINY, at, Choice(name)), model, said(np.arange(100) < hits), 1.0)
            for name, hits, at in (("probe", first, 32), ("lp_ft", second, size))
        ]
        found, comparisons = choosing.pick(session, data, trials)
        assert found is trials[winner]
        assert len(comparisons) == 1
        rival, other, verdict = comparisons[0][0], comparisons[0][1], comparisons[0][2].verdict
        assert (rival, other) == (trials[1], trials[0])
        assert verdict == ("tie" if abs(first - second) < 5 else "a" if winner else "b")
        assert choosing.pick(session, data, trials[:1]) == (trials[0], [])

    session_of(tmp_path, check)


def test_a_larger_input_has_to_be_better_not_equal(tmp_path: Path) -> None:
    def check(session: Session, data: Prepared) -> None:
        chosen = choosing.choose(session, data)
        assert chosen.candidate == Candidate(TINY, 96, Choice("probe")), "colour shows at any size"
        assert session.recipe.data.image_size == 96
        assert "the cheapest within half a point of the best" in chosen.reason or "the best of them" in chosen.reason

    session_of(tmp_path, check, {"overrides": {}})


def test_a_race_is_run_once_and_told_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(session: Session, data: Prepared) -> None:
        opened = session.sourced
        first = choosing.choose(session, data)
        session.sourced = opened  # as the command finds it when it is repeated
        monkeypatch.setattr(choosing, "Course", forbidden)
        assert choosing.choose(session, data) == first
        told = first.to_json()
        assert told["pick"] == {"backbone": TINY, "input_size": 96, "strategy": "probe", "reason": first.reason}
        assert told["leaderboard"][0].keys() >= {  # type: ignore[index]
            *("backbone", "input_size", "strategy", "value", "low", "high", "seconds", "dropped_because")
        }

    session_of(tmp_path, check, {"overrides": {}})


def test_what_was_named_in_full_is_not_raced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "Course", forbidden)
    session_of(tmp_path, lambda session, data: assert_told(choosing.choose(session, data)))


def assert_told(chosen: choosing.Chosen) -> None:
    assert (chosen.candidate.image_size, chosen.reason, chosen.leaderboard) == (32, "it was asked for", ())


def test_a_candidate_without_weights_is_recorded_and_the_race_goes_on(tmp_path: Path) -> None:
    def check(session: Session, data: Prepared) -> None:
        chosen = choosing.choose(session, data)
        assert chosen.candidate.backbone == TINY
        gone = [row for row in chosen.leaderboard if row.backbone == "timm/resnet18.a1_in1k"]
        assert gone and all(row.value is None for row in gone)
        assert gone[0].dropped_because.startswith("no weights for timm/resnet18.a1_in1k")

    given: Options = {"backbone": None, "candidates": f"{TINY},timm/resnet18.a1_in1k", "overrides": {}}
    session_of(tmp_path, check, given)


def test_the_order_of_the_race_has_every_class_in_every_beginning_and_in_every_fold(tmp_path: Path) -> None:
    def check(session: Session, data: Prepared) -> None:
        order, fold = choosing.course(data, seed=0)
        assert sorted(order) == sorted(data.seen), "test is not among them"
        targets = data.dataset.targets[order]  # type: ignore[index]
        for n in (8, 16, len(order)):
            counts = np.bincount(targets[:n], minlength=2)
            assert abs(int(counts[0]) - int(counts[1])) <= 1
        assert all(set(targets[fold == k]) == {0, 1} for k in range(choosing.NUM_FOLDS))

    session_of(tmp_path, check)


def test_groups_stay_together_in_the_race(tmp_path: Path) -> None:
    def check(session: Session, data: Prepared) -> None:
        grouped = replace(data, dataset=replace(data.dataset, groups=np.arange(len(data.dataset)) // 5))
        order, fold = choosing.course(grouped, seed=0)
        for group in np.unique(order // 5):
            assert len(set(fold[order // 5 == group])) == 1

    session_of(tmp_path, check)


# --- finals


def finals_of(session: Session, data: Prepared) -> finals.Plan:
    chosen = choosing.choose(session, data)
    return finals.planned(session, data, tune.tune(session, data, chosen.candidate))


def test_a_probe_that_was_asked_for_is_all_there_is(tmp_path: Path) -> None:
    def check(session: Session, data: Prepared) -> None:
        found = finals_of(session, data)
        assert (found.candidate, found.reason) == (None, "the recipe asks for a probe")

    session_of(tmp_path, check)


def test_a_budget_that_is_nearly_gone_leaves_no_room(tmp_path: Path) -> None:
    def check(session: Session, data: Prepared) -> None:
        probe = tune.tune(session, data, choosing.choose(session, data).candidate)
        session.started -= 55.0
        found = finals.planned(session, data, probe)
        assert found.candidate is None
        assert found.reason.startswith(
            "the budget leaves 0 s, room for too few epochs (of lp_ft lr=0.0003 0; of lp_ft depth="
        )

    session_of(tmp_path, check, {"strategy": None, "budget": "1m"})


STEADY = pace.Pace(fill=0.0, example=0.01, num_train=40, num_val=0)
"""A pace that does not depend on how busy the machine is: two epochs of each fold in a short trial."""


def test_a_budget_with_room_tries_things_out_and_decides_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "measured", lambda *_: STEADY)

    def check(session: Session, data: Prepared) -> None:
        found = finals_of(session, data)
        assert found.candidate is not None and found.candidate.settings["epochs"] == tune.MAX_EPOCHS
        assert "was best of" in found.reason
        names = [short.name for short in found.shorts]
        assert {"lp_ft", "full", "l2_sp", "lp_ft depth=1"} <= set(names)
        assert len({short.lr for short in found.shorts}) >= 3, "learning rates were tried"
        assert sum(short.verdict == "best" for short in found.shorts) == 2, "one of each round"
        assert len(found.gradients) >= 3 and all(value >= 0 for value in found.gradients.values())
        assert not list((session.folder.path / "checkpoints").glob("short-*")), "they are not kept"
        assert 0 < session.planned["fit"] < 600

    session_of(tmp_path, check, {"strategy": None, "budget": "10m"})


def test_few_epochs_are_not_spent_on_trying_things_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "measured", lambda *_: replace(STEADY, example=0.5))

    def check(session: Session, data: Prepared) -> None:
        found = finals_of(session, data)
        assert found.candidate is not None and 1 <= found.candidate.settings["epochs"] < finals.ENOUGH_EPOCHS
        assert found.reason.startswith(
            "every epoch was worth more than trying things out, so the usual was taken; lp_ft"
        )
        assert found.shorts == ()

    session_of(tmp_path, check, {"strategy": None, "budget": "10m"})


def test_finals_are_planned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "measured", lambda *_: replace(STEADY, example=0.5))

    def check(session: Session, data: Prepared) -> None:
        first = finals_of(session, data)
        monkeypatch.setattr(pace, "measured", forbidden)
        assert finals_of(session, data) == first == finals.told(session)

    session_of(tmp_path, check, {"strategy": None, "budget": "10m"})


# --- tune


def test_a_head_of_its_own_that_does_not_fit(tmp_path: Path) -> None:
    given: Options = {**PROBE, "strategy": "full", "overrides": {**AT_32, "strategy.head": "own", "epochs": 1}}
    with pytest.raises(RecipeError, match=r"strategy\.head='own', but .*test_resnet has .* and the data has 2\n") as e:
        ws.finetune(dataset(), out=tmp_path / "run", **given)
    assert e.value.fix == "strategy.head=fresh"


# --- judge


def test_weights_that_differ_from_the_validated_ones_are_not_passed_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trained.load

    def sabotaged(folder: Path, *, build: bool = True) -> trained.TrainedModel:
        model = real(folder, build=build)
        with torch.no_grad():
            model.model.head.linear.weight.neg_()
            model.model.head.linear.bias.neg_()
        return model

    monkeypatch.setattr(trained, "load", sabotaged)
    wanted = r"the saved weights give 0\.\d{4} on val, and 1\.0000 was reported\n  fix: this is a fault of warmstart"
    for verb in (ws.run, ws.finetune):
        with pytest.raises(TrainingError, match=wanted):
            verb(dataset(num=1200), out=tmp_path / verb.__name__, **PROBE)
        assert workflow.RunDir.load(tmp_path / verb.__name__, finished=False).openings() == ()
        assert workflow.RunDir.load(tmp_path / verb.__name__, finished=False).status == "failed"


def test_finetune_never_opens_test(tmp_path: Path, folder: Path) -> None:
    run = ws.finetune(folder, out=tmp_path / "run", **PROBE)
    assert {metric.split for metric in run.metrics} == {"val"}
    assert workflow.RunDir.load(run.folder).openings() == ()
    metrics, openings = ws.evaluate(run.folder)
    assert openings == 1 and {metric.split for metric in metrics} == {"test"}


def test_test_is_counted_by_weights_and_not_by_looks(tmp_path: Path, folder: Path) -> None:
    run = ws.run(folder, out=tmp_path / "run", **PROBE)
    for _ in range(2):
        metrics, openings = ws.evaluate(run.folder)
        assert openings == 1
        assert [(m.name, m.value) for m in metrics] == [(m.name, m.value) for m in run.metrics]
    other = replace(run.model, temperature=7.0)
    other.save(run.folder / "weights")
    with pytest.raises(RunError, match=r"was opened 1x with other weights .*\n  fix: --again"):
        ws.evaluate(run.folder)
    assert ws.evaluate(run.folder, again=True)[1] == 2
    ledger = workflow.RunDir.load(run.folder).openings()
    assert [(entry.weights_hash, entry.again) for entry in ledger] == [
        (run_identity, again) for run_identity, again in ((ledger[0].weights_hash, False), (other.identity(), True))
    ]
    assert ledger[1].result is not None
    assert workflow.RunDir.load(run.folder).status == "done", "a look changes nothing"


def test_a_split_that_the_run_does_not_have(tmp_path: Path, folder: Path) -> None:
    given: Options = {**PROBE, "overrides": {**AT_32, "data.test_fraction": 0.0}}
    run = ws.run(folder, out=tmp_path / "run", **given)
    assert {metric.split for metric in run.metrics} == {"val"}, "without a test, val is what there is"
    for split in ("test", "train"):
        with pytest.raises(RunError, match=f"this run has no {split} split\n  fix: --split val"):
            ws.evaluate(run.folder, split=split)  # type: ignore[arg-type]


# --- report, audit


def test_a_report_can_be_drawn_again(tmp_path: Path, folder: Path) -> None:
    run = ws.finetune(folder, out=tmp_path / "run", **PROBE)
    before = run.report.read_text()
    run.report.unlink()
    assert ws.report(run.folder) == run.report
    assert run.report.read_text() == before


def test_an_audit_leaves_nothing_behind(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert {finding.status for finding in ws.audit(folder, **PROBE).findings} <= {"ok", "note", "warning"}
    assert sorted(tmp_path.rglob("*")) == before


def test_options_and_their_decisions_are_in_the_facts(tmp_path: Path, folder: Path) -> None:
    run = ws.finetune(folder, out=tmp_path / "run", **{**PROBE, "strategy": None, "epochs": 1})
    decided = {decision.key: decision for decision in run.facts.decisions}
    assert decided["strategy.name"].value == "lp_ft"
    assert decided["optim.lr"].reason
    assert runtime.environment().items() <= run.facts.environment.items()
    assert set(options.RECIPE_KEYS) <= set(Options.__annotations__)


def test_what_a_network_cannot_take_is_said_with_both_names() -> None:
    with pytest.raises(SourceError) as caught, bench.taken("timm/x", 100):
        raise AssertionError("Input height (100) should be divisible by patch size (14).\nand more")
    problem = "timm/x cannot be used at 100 px: Input height (100) should be divisible by patch size (14)."
    assert (caught.value.problem, caught.value.fix) == (problem, "another data.image_size, or other --candidates")
    with pytest.raises(SourceError, match="cannot be used at 100 px: MemoryError"), bench.taken("timm/x", 100):
        raise MemoryError
