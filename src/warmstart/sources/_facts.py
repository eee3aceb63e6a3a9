"""Facts about weights that their library's wheel does not have; `facts/README.md` says where each comes from."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).with_name("facts")


@dataclass(frozen=True)
class Facts:
    """What is known of some weights; see the fields of `Card`."""

    num_params: int | None = None
    macs: int | None = None
    accuracy: float | None = None
    accuracy_source: str = ""


def of_timm(name: str) -> Facts:
    """Return the facts of one of timm's weights; without any where the tables have none."""
    return _timm().get(name, Facts())


@cache
def _timm() -> dict[str, Facts]:
    linear = {row["name"]: row for row in _rows("published.csv")}
    found = {}
    for row in _rows("timm.csv"):
        accuracy, source = row["accuracy"], f"timm, {row['accuracy_size']} px" if row["accuracy"] else ""
        if not accuracy and (more := linear.get(row["name"])):
            accuracy, source = more["accuracy"], more["source"]
        num_params, macs = (int(row[key]) if row[key] else None for key in ("num_params", "macs"))
        found[row["name"]] = Facts(num_params, macs, float(accuracy) if accuracy else None, source)
    return found


def _rows(file: str) -> Iterator[dict[str, str]]:
    with (FOLDER / file).open(newline="", encoding="utf-8") as lines:
        yield from csv.DictReader(lines)
