"""The public conformance suite for plug-ins, as `check_estimator` is for scikit-learn; also our own contract tests.

Each check raises AssertionError with a sentence that says what is wrong and where. They take seconds, need no data and
no network, and run on the CPU.

Example:
    >>> from warmstart import plugins
    >>> from warmstart.check import check_task
    >>> check_task(plugins.load("task", "regression")())
"""

from __future__ import annotations

from warmstart.check.backbones import check_backbone
from warmstart.check.readers import check_reader
from warmstart.check.scores import check_score
from warmstart.check.sources import check_source
from warmstart.check.strategies import check_strategy
from warmstart.check.tasks import check_task

__all__ = ["check_backbone", "check_reader", "check_score", "check_source", "check_strategy", "check_task"]
