"""The measuring itself is measured: order of the runs, ratios, and what a result file says."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest
from benchmarks import common
from benchmarks.common import Measured


def test_rounds_start_with_another_variant_each_time_and_pairs_stay_together() -> None:
    order: list[str] = []

    def variant(name: str) -> common.Variant:
        return lambda round_: order.append(f"{name}{round_}") or Measured(1.0)

    names = ("loop", "cold", "then_warm")
    measured = common.interleave({name: variant(name) for name in names}, 3, log=lambda text: None)
    assert order == ["loop0", "cold0", "then_warm0", "cold1", "then_warm1", "loop1", "loop2", "cold2", "then_warm2"]
    assert {name: len(runs) for name, runs in measured.items()} == dict.fromkeys(names, 3)


def test_ratio_is_taken_within_rounds() -> None:
    measured = {"a": [Measured(4.0), Measured(9.0), Measured(8.0)], "b": [Measured(2.0), Measured(3.0), Measured(1.0)]}
    assert common.ratio(measured, "a", "b") == common.Ratio("a", "b", "seconds", 3.0, 2.0, 8.0, 3)


def test_ratio_of_a_fact() -> None:
    measured = {"a": [Measured(4.0)], "b": [Measured(9.0, facts={"inner_seconds": 2.0})]}
    assert common.ratio(measured, "a", "b", what="seconds/inner_seconds").median == 2.0


def test_a_command_is_measured_and_its_last_line_is_read() -> None:
    source = "import time; block = b'x' * 150_000_000; time.sleep(0.2); print('words'); print('{\"accuracy\": 0.5}')"
    measured = common.run([sys.executable, "-c", source])
    assert 0.2 < measured.seconds < 60
    assert measured.peak_bytes > 150_000_000
    assert measured.facts == {"accuracy": 0.5}


def test_a_command_that_fails_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3:\n[\s\S]*no luck"):
        common.run([sys.executable, "-c", "import sys; sys.stderr.write('no luck'); sys.exit(3)"])


def test_a_result_names_its_conditions_and_no_machine(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("seed = 1\n")
    measured = {"a": [Measured(4.0)], "b": [Measured(2.0)]}
    ratios = [common.ratio(measured, "a", "b")]
    recipe = tmp_path / "recipe.toml"
    path = common.write(
        "x", measured, ratios, parameters={"train": 5}, seeds=[1], recipe=recipe, folder=tmp_path / "out"
    )
    text = path.read_text()
    content = json.loads(text)
    assert content["ratios"][0] == {
        "slow": "a",
        "fast": "b",
        "what": "seconds",
        "median": 2.0,
        "low": 2.0,
        "high": 2.0,
        "n": 1,
    }
    assert (content["parameters"], content["seeds"], len(content["recipe_hash"])) == ({"train": 5}, [1], 32)
    assert {"torch", "numpy", "cpus"} <= content["environment"].keys()
    assert platform.node() not in text
