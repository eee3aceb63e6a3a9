"""The report: one self-contained HTML page, its JSON, and a Markdown model card, all drawn from `Facts`."""

from __future__ import annotations

from warmstart.report.facts import Facts

__all__ = ["Facts"]
