"""Errors say what is wrong in the first line and what to do in the second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart import errors
from warmstart.errors import DataError, RecipeError, WarmstartError, closest, listed

KINDS = [
    errors.RecipeError,
    errors.DataError,
    errors.SourceError,
    errors.RunError,
    errors.CheckpointError,
    errors.CacheError,
    errors.TrainingError,
]


def test_text_is_two_lines() -> None:
    error = DataError("2 of 3 test images are also in train", "--duplicates drop-test")
    assert str(error) == "2 of 3 test images are also in train\n  fix: --duplicates drop-test"
    assert (error.problem, error.fix) == ("2 of 3 test images are also in train", "--duplicates drop-test")


@pytest.mark.parametrize("kind", KINDS)
def test_one_except_catches_every_kind(kind: type[WarmstartError]) -> None:
    with pytest.raises(WarmstartError, match="wrong"):
        raise kind("wrong", "mend it")


def test_the_kinds_are_all_listed_here() -> None:
    assert set(KINDS) == set(WarmstartError.__subclasses__())


def test_closest_name_is_suggested() -> None:
    assert closest("last-k", ["probe", "last_k", "full"]) == "did you mean 'last_k'?"


def test_far_name_gets_the_list() -> None:
    assert closest("zzzz", ["probe", "full"]) == "known: full, probe"


def test_listed_shows_twenty_and_counts_the_rest() -> None:
    text = listed([str(number) for number in range(25)])
    assert text.startswith("0, 1, 2")
    assert text.endswith("19 and 5 more")


def test_listed_counts_nothing_when_all_are_shown() -> None:
    assert listed(["a", "b"], shown=2) == "a, b"
    assert listed([]) == ""


@given(st.lists(st.text(alphabet="abc_", min_size=1), min_size=1, unique=True), st.data())
def test_a_known_name_is_its_own_closest(names: list[str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(names))
    assert closest(name, names) == f"did you mean {name!r}?"


def test_cause_can_be_chained() -> None:
    cause = OSError("disk")
    with pytest.raises(RecipeError) as caught:
        raise RecipeError("unreadable", "look") from cause
    assert caught.value.__cause__ is cause
