"""The report: one self-contained HTML page, its JSON, and a Markdown model card, all drawn from `Facts`."""

from __future__ import annotations

from pathlib import Path

from warmstart import durable
from warmstart.reporting.facts import Facts

__all__ = ["Facts", "read", "write"]


def write(facts: Facts, folder: Path) -> Path:
    """Write `report.html`, `report.json` and `README.md`, each whole or not at all.

    Args:
        facts: What the report says.
        folder: The run folder; made when it is not there.

    Returns:
        The path of `report.html`.

    Raises:
        RunError: The file system refused.
    """
    from warmstart.reporting import card, render

    durable.write_text(folder / "report.json", facts.dumps())
    durable.write_text(folder / "README.md", card.markdown(facts))
    durable.write_text(folder / "report.html", render.page(facts))
    return folder / "report.html"


def read(folder: Path) -> Facts:
    """Read `report.json` of a run folder back, to draw the page again.

    Raises:
        RunError: There is none, or it is not a report.
    """
    fix = "run `warmstart report RUN` on a finished run folder"
    return Facts.from_json(durable.read_json(folder / "report.json", fix=fix))
