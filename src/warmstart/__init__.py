"""warmstart: from raw files to a proven fine-tuned model.

Names are loaded when first used, so `import warmstart` costs nothing and imports no framework.

Example:
    >>> import warmstart as ws
    >>> run = ws.run("photos/", budget="10m")  # doctest: +SKIP
    >>> run.model.predict(["new.jpg"])  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warmstart.errors import WarmstartError
    from warmstart.estimators import WarmstartClassifier, WarmstartRegressor
    from warmstart.trained import TrainedModel, load
    from warmstart.workflow import Run, audit, choose, compare, evaluate, finetune, plan, predict, report, run

_WHERE = {
    "Run": "workflow",
    "TrainedModel": "trained",
    "WarmstartClassifier": "estimators",
    "WarmstartError": "errors",
    "WarmstartRegressor": "estimators",
    "audit": "workflow",
    "choose": "workflow",
    "compare": "workflow",
    "evaluate": "workflow",
    "finetune": "workflow",
    "load": "trained",
    "plan": "workflow",
    "predict": "workflow",
    "report": "workflow",
    "run": "workflow",
}
__all__ = [
    "Run",
    "TrainedModel",
    "WarmstartClassifier",
    "WarmstartError",
    "WarmstartRegressor",
    "audit",
    "choose",
    "compare",
    "evaluate",
    "finetune",
    "load",
    "plan",
    "predict",
    "report",
    "run",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'warmstart' has no attribute {name!r}")
    return getattr(importlib.import_module(f"warmstart.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
