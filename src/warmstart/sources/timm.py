"""Backbones of timm, with the weights that timm publishes on the Hugging Face hub."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from warmstart.errors import SourceError, closest
from warmstart.models import Card, specs
from warmstart.sources import _catalogue, _facts, _network

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

    from warmstart.models import Backbone

ENCODER = "_enc"
"""End of the names of vision parts of language models, which never classified."""
FILES = ("model.safetensors", "pytorch_model.bin")
TRAINED_ON = {
    "in1k": "ImageNet-1k",
    "in12k": "ImageNet-12k",
    "in21k": "ImageNet-21k",
    "in22k": "ImageNet-22k",
    "lvd142m": "LVD-142M",
    "lvd1689m": "LVD-1689M",
    "laion2b": "LAION-2B",
    "laion400m": "LAION-400M",
    "openai": "WIT-400M",
    "webli": "WebLI",
    "yfcc100m": "YFCC-100M",
    "yfcc15m": "YFCC-15M",
    "jft": "JFT-300M",
    "datacomp1b": "DataComp-1B",
}
"""What the data-set part of a tag stands for; a tag without any is an unknown fact."""


@dataclass(frozen=True)
class Timm:
    """Backbones of timm, `timm/NAME` or `timm/NAME.TAG`; without a tag timm's own default weights.

    Weights are cached by the Hugging Face hub library, where other programs find them too (`HF_HOME`).
    """

    def available(self) -> Sequence[Card]:
        """Return the cards of every published weight, from timm's own tables."""
        return _catalogue.remembered("timm", _all_cards)

    def load(self, name: str) -> tuple[Backbone, Card]:
        """Build the backbone with its weights, from the hub's cache or, when connected, from the hub.

        Raises:
            SourceError: Unknown name, no published weights, or offline and not cached.
            CheckpointError: The cached file does not hold this network.
        """
        from warmstart.models import weights
        from warmstart.models.build import as_backbone, seeded, timm_network

        cfg = _config(name)
        card = _card(cfg)
        path = _weights_file(cfg)
        local = replace(cfg, file=str(path), custom_load=False)
        with weights.reading(path, card.name), seeded(0):
            network = timm_network(cfg.architecture or "", local)
        backbone = as_backbone(network, card.spec).eval()
        return backbone, weights.completed(card, backbone)

    def fetch(self, name: str) -> Path:
        """Bring the weights into the hub's cache and return the file.

        Raises:
            SourceError: Unknown name, no published weights, or no network.
        """
        return _weights_file(_config(name))

    def check(self, name: str) -> None:
        """Refuse a name that timm's tables do not have.

        Raises:
            SourceError: No such network or tag, or a network without published weights.
        """
        listed = f"timm/{name}"
        if not any(card.name == listed or card.name.startswith(f"{listed}.") for card in self.available()):
            _config(name)

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the file in the hub's cache."""
        return (_weights_file(_config(name)),)


def _config(name: str) -> PretrainedCfg:
    """Find the published weights that a name means.

    Raises:
        SourceError: No such network, no such tag, or a network without published weights.
    """
    import timm

    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        raise SourceError(f"timm has no network {arch!r}", closest(f"timm/{arch}", _full(timm.list_models())))
    published = timm.list_pretrained(f"{arch}.*")
    if tag and name not in published:
        raise SourceError(f"timm has no weights {name!r}", closest(f"timm/{name}", _full(published)))
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise SourceError(
            f"timm publishes no weights for {arch!r}", f"random/{arch}, or one of `warmstart list backbones`"
        )
    return cfg


def _full(names: Sequence[str]) -> list[str]:
    return [f"timm/{name}" for name in names]


def offered() -> list[str]:
    """List timm's names of published weights, those left out that never classified."""
    import timm

    return [name for name in timm.list_pretrained() if not name.partition(".")[0].endswith(ENCODER)]


def _all_cards() -> list[Card]:
    import timm

    configs = (timm.get_pretrained_cfg(name) for name in offered())
    return [_card(cfg) for cfg in configs if cfg is not None]


def _card(cfg: PretrainedCfg) -> Card:
    repository = (cfg.hf_hub_id or "").partition("@")[0]
    name = f"{cfg.architecture}.{cfg.tag}" if cfg.tag else f"{cfg.architecture}"
    known = _facts.of_timm(name)
    return Card(
        name=f"timm/{name}",
        spec=specs.of_timm(cfg),
        num_params=known.num_params,
        macs=known.macs,
        accuracy=known.accuracy,
        accuracy_source=known.accuracy_source,
        default=cfg.tag == _default_tag(cfg.architecture or ""),
        licence=cfg.license,
        trained_on=trained_on(cfg.tag or ""),
        url=f"https://huggingface.co/{repository}" if repository else _url(cfg),
        arch=f"timm:{cfg.architecture}",
    )


def _default_tag(arch: str) -> str | None:
    """Return the tag that a name without one means."""
    import timm

    cfg = timm.get_pretrained_cfg(arch)
    return None if cfg is None else cfg.tag


def _url(cfg: PretrainedCfg) -> str | None:
    """Return the plain address of weights that live outside the hub."""
    return cfg.url if isinstance(cfg.url, str) and cfg.url else None


def trained_on(tag: str) -> str | None:
    """Read the data sets off a tag: `augreg_in21k_ft_in1k` → ImageNet-21k, then ImageNet-1k."""
    found = [TRAINED_ON[part] for part in tag.split("_") if part in TRAINED_ON]
    return ", then ".join(dict.fromkeys(found)) or None


def _weights_file(cfg: PretrainedCfg) -> Path:
    """Return the weights file, downloaded first when it is not in a cache yet."""
    if not cfg.hf_hub_id:
        return _network.torch_hub_file(_card(cfg).name, _url(cfg) or "")
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = cfg.hf_hub_id.partition("@")
    files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else FILES
    for file in files:
        cached = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    name = _card(cfg).name
    if constants.HF_HUB_OFFLINE or not _network.reachable(constants.ENDPOINT):
        raise _network.no_weights(name)

    def get() -> Path:
        for file in files[:-1]:
            with contextlib.suppress(EntryNotFoundError):
                return Path(hf_hub_download(repository, file, revision=revision or None))
        return Path(hf_hub_download(repository, files[-1], revision=revision or None))

    return _network.download(name, get, Path(constants.HF_HUB_CACHE))


PLUGIN = Timm
