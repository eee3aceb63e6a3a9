"""What every test stands on: its own cache and shelf, one thread, and no way to a model hub."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Libraries read these once, when they are imported, so they are set before any test module is.
_HUBS = Path(tempfile.gettempdir()) / f"warmstart-tests-{os.getuid()}" / "hubs"
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HOME": str(_HUBS / "hf"),
    "TORCH_HOME": str(_HUBS / "torch"),
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "NO_COLOR": "1",
    "COLUMNS": "120",
}


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test its own cache, shelf and hub folders, and one torch thread."""
    places = tmp_path_factory.mktemp("places")
    monkeypatch.setenv("WARMSTART_CACHE", str(places / "cache"))
    monkeypatch.setenv("WARMSTART_SHELF", str(places / "shelf"))
    monkeypatch.setenv("TORCH_HOME", str(places / "torch"))
    _one_thread()
    yield
    _one_thread()


def _one_thread() -> None:
    """Set torch to one thread where it is already loaded; tests that never need it do not pay for its import."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow tests last, after the shuffling, so that the first answer comes within a minute."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is not None, _needs_archive(item)))


def _needs_archive(item: pytest.Item) -> bool:
    return item.get_closest_marker("assets") is not None
