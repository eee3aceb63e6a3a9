"""Whether a server answers, asked once and briefly, so that being offline is an answer and not a wait."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from warmstart.errors import SourceError

T = TypeVar("T")
SECONDS = 5.0


def reachable(url: str, seconds: float = SECONDS) -> bool:
    """Ask a server for anything; a refusal is an answer too. Proxies of the environment are used."""
    import urllib.error
    import urllib.request
    from http.client import HTTPException

    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):  # noqa: S310
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, HTTPException, ValueError):
        return False


def no_weights(name: str) -> SourceError:
    """Say that weights are neither here nor within reach."""
    return SourceError(
        f"no weights for {name} in the local cache, and no network",
        f"run `warmstart fetch {name}` on a connected machine and copy its folder",
    )


def download(name: str, get: Callable[[], T], where: Path) -> T:
    """Run a download of a library.

    Raises:
        SourceError: It failed, with the library's own reason.
    """
    try:
        return get()
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise SourceError(
            f"could not download {name} ({reason})",
            f"try `warmstart fetch {name}` again, or copy the weights into {where}",
        ) from error


def torch_hub_file(name: str, url: str) -> Path:
    """Return a file of torch's hub cache, downloaded first when it is not there yet.

    Raises:
        SourceError: Not cached and offline, or the download failed.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    if not reachable(url):
        raise no_weights(name)

    def get() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_prefix(path), progress=False)

    download(name, get, path.parent)
    return path


def _hash_prefix(path: Path) -> str | None:
    """Read the first digits of the SHA-256 off a file name such as `resnet50-0676ba61.pth`."""
    found = re.search(r"-([a-f0-9]{8,})\.", path.name)
    return found.group(1) if found else None
