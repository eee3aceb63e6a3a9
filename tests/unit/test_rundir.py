"""The run folder: whose it is, what is done, what was measured, and how often test was opened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from warmstart.errors import RunError
from warmstart.rundir import RunDir

RECIPE = 'backbone = "timm/resnet50"\nepochs = 3\n[optim]\nlr = 0.1 # given\n'


def opened(path: Path, recipe: str = RECIPE, fingerprint: str = "one", overwrite: bool = False) -> RunDir:
    return RunDir.open(path, recipe=recipe, fingerprint=fingerprint, overwrite=overwrite)


def done(path: Path) -> Path:
    with opened(path) as run:
        run.finish("done")
    return path


def test_a_repeated_command_finds_the_stages_that_are_done(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        assert run.stage("audit") is None
        run.finish_stage("audit", {"copies": 3}, seconds=1.5)
    with opened(tmp_path / "run") as run:
        assert run.stage("audit") == {"copies": 3} and run.stage("split") is None
        assert run.stage_seconds() == {"audit": 1.5} and run.status == "running"
        run.finish("done")
    assert RunDir.load(tmp_path / "run").status == "done"
    assert (tmp_path / "run" / "recipe.toml").read_text() == RECIPE


def test_another_recipe_is_refused_and_the_keys_are_named(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()
    with pytest.raises(RunError) as caught:
        opened(tmp_path / "run", RECIPE.replace("0.1", "0.2").replace("epochs = 3\n", ""), "two")
    assert str(caught.value) == (
        f"{tmp_path}/run belongs to another recipe (epochs: there 3, here not set, optim.lr: there 0.1, here 0.2)\n"
        "  fix: --out NEW, or --overwrite"
    )
    with pytest.raises(RunError, match="equal keys, other data"):
        opened(tmp_path / "run", RECIPE, "two")


def test_overwrite_begins_anew_and_is_a_different_word(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        run.finish_stage("audit", {}, seconds=0.0)
        (run.path / "weights").mkdir()
        (run.path / "weights" / "old.safetensors").write_bytes(b"x")
    with opened(tmp_path / "run", RECIPE, "two", overwrite=True) as run:
        assert run.stage("audit") is None and run.fingerprint == "two" and not (run.path / "weights").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_else_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"x")
    with pytest.raises(RunError) as caught:
        opened(tmp_path / "photos", overwrite=overwrite)
    assert str(caught.value) == f"{tmp_path}/photos is not empty and holds no run (cat.png)\n  fix: --out NEW"
    (tmp_path / "photos" / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(RunError, match="is not a manifest of this version of warmstart"):
        opened(tmp_path / "photos", overwrite=overwrite)
    assert (tmp_path / "photos" / "cat.png").exists()
    with pytest.raises(RunError, match="is a file, expected a run folder\n  fix: --out NEW"):
        opened(tmp_path / "photos" / "cat.png")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError) as caught:
        opened(tmp_path / "file" / "run")
    assert str(caught.value) == (
        f"cannot write to {tmp_path}/file/run: Not a directory\n  fix: --out NEW, in a place you may write to"
    )


def test_a_run_in_use_is_refused_even_within_one_process(tmp_path: Path) -> None:
    with opened(tmp_path / "run"):
        with pytest.raises(RunError) as caught:
            opened(tmp_path / "run")
        assert str(caught.value) == (
            f"{tmp_path}/run is in use by process {os.getpid()}\n  fix: wait for it, or --out NEW"
        )
    opened(tmp_path / "run").close()


def test_a_killed_owner_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time; from warmstart.rundir import RunDir\n"
        "run = RunDir.open(sys.argv[1], recipe='', fingerprint='one'); print('held', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None and owner.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"is in use by process {owner.pid}"):
            opened(tmp_path / "run")
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    opened(tmp_path / "run", "").close()


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    done(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    opened(tmp_path / "half").close()
    for name, said in (
        ("none", f"no run at {tmp_path}/none\n  fix: name a run folder: {tmp_path}/good, {tmp_path}/half"),
        ("empty", f"{tmp_path}/empty holds no run (no manifest.json)\n  fix: name a run folder: {tmp_path}/good"),
        ("half", f"run {tmp_path}/half has not finished (status running)\n  fix: repeat the command it is from"),
    ):
        with pytest.raises(RunError) as caught:
            RunDir.load(tmp_path / name)
        assert str(caught.value).startswith(said)
    assert RunDir.load(tmp_path / "half", finished=False).status == "running"
    (tmp_path / "good" / "manifest.json").write_text('{"warmstart_run": 1,')
    with pytest.raises(RunError, match=r"is not JSON .*\n  fix: --out NEW for a fresh run"):
        RunDir.load(tmp_path / "good")


def test_files_are_hashed_and_changes_found(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        for name in ("a.txt", "b.txt", "c.txt"):
            (run.path / name).write_text(name)
            run.add_file(name)
        assert run.verify() == ()
        (run.path / "a.txt").write_text("A.txt")
        (run.path / "b.txt").unlink()
        assert run.verify() == ("a.txt", "b.txt")
        with pytest.raises(RunError, match=r"'\.\./x' is no file of run"):
            run.add_file("../x")


def test_the_ledger_counts_openings_and_other_weights_need_another_word(tmp_path: Path) -> None:
    run = RunDir.load(done(tmp_path / "run"))
    assert run.open_test("a" * 32) == 1
    run.record_test("a" * 32, {"accuracy": 0.9})
    assert run.open_test("a" * 32) == 1
    with pytest.raises(RunError) as caught:
        run.open_test("b" * 32)
    when = run.openings()[0].when
    assert str(caught.value) == (
        f"test of {tmp_path}/run was opened 1x with other weights (first {when}, aaaaaaaaaaaa; now bbbbbbbbbbbb)\n"
        "  fix: --again, and the report will print the count"
    )
    assert run.open_test("b" * 32, again=True) == 2
    openings = RunDir.load(tmp_path / "run").openings()
    assert [(o.weights_hash[0], o.again, o.result) for o in openings] == [
        ("a", False, {"accuracy": 0.9}),
        ("b", True, None),
    ]
    assert when.endswith("+00:00")
    with pytest.raises(RunError, match="was never opened with cccccccccccc"):
        run.record_test("c" * 32, {})


def test_two_who_look_at_a_run_both_write_the_ledger(tmp_path: Path) -> None:
    path = done(tmp_path / "run")
    one, two = RunDir.load(path), RunDir.load(path)
    one.open_test("a" * 32)
    with pytest.raises(RunError, match="with other weights"):
        two.open_test("b" * 32)


def test_lines_beyond_the_checkpoint_and_torn_ones_are_forgotten(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        journal, other = run.journal("head"), run.journal("full")
        for step in (1, 2, 3):
            journal.append(step, {"loss": 0.5 * step})
            other.append(step, {"loss": float("nan")})
        journal.flush()
        other.flush()
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "head", "st')
        assert [line["step"] for line in journal.read()] == [1, 2, 3]
        journal.drop_after(1)
        journal.append(2, {"loss": 7.0})
        journal.flush()
        assert [(line["step"], line["loss"]) for line in journal.read()] == [(1, 0.5), (2, 7.0)]
        assert [(line["step"], line["loss"]) for line in other.read()] == [(1, None), (2, None), (3, None)]
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
        assert all(json.loads(line) for line in lines) and len(lines) == 5


@pytest.mark.parametrize("moment", range(4))
def test_a_kill_while_opening_leaves_a_folder_that_opens(tmp_path: Path, moment: int) -> None:
    code = (
        "import os, sys; from warmstart import durable; from warmstart.rundir import RunDir\n"
        "count, real = [0], durable._rename\n"
        "def rename(old, new):\n"
        "    count[0] += 1\n"
        "    if count[0] > int(sys.argv[2]): os.kill(os.getpid(), 9)\n"
        "    real(old, new)\n"
        "durable._rename = rename\n"
        "run = RunDir.open(sys.argv[1], recipe='epochs = 3', fingerprint='one', overwrite=True)\n"
        "run.finish_stage('audit', {}, seconds=0.0); run.finish('done')"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run"), str(moment)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    with opened(tmp_path / "run", "epochs = 3") as run:
        run.finish("done")
    assert not list((tmp_path / "run").rglob(".*.tmp"))


def test_opening_does_not_need_torch() -> None:
    began = time.monotonic()
    code = "import sys, warmstart.rundir; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert time.monotonic() - began < 10
