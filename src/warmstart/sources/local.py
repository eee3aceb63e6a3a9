"""The shelf: backbones of your own, and any folder of safetensors weights."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from warmstart import runtime
from warmstart.errors import SourceError, closest
from warmstart.models import Card

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

    from warmstart.models import Backbone

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Local:
    """Backbones on this machine: `local/NAME` on the shelf (`WARMSTART_SHELF`), or a path to a folder.

    A folder holds `model.safetensors` with `card.json` (ours) or with `config.json` (as timm saves it).
    """

    def available(self) -> Sequence[Card]:
        """Return the cards on the shelf; a folder whose card cannot be read is left out."""
        cards = []
        for path in sorted(runtime.shelf_root().glob("**/card.json")):
            try:
                facts = json.loads(path.read_bytes())
                cards.append(Card.from_json(facts | {"name": f"local/{path.parent.relative_to(runtime.shelf_root())}"}))
            except (OSError, ValueError, TypeError) as error:
                log.warning("%s is not a card: %s", path, error)
        return cards

    def load(self, name: str) -> tuple[Backbone, Card]:
        """Build the backbone of a folder.

        Raises:
            SourceError: No such folder, or an unknown architecture.
            CheckpointError: Damaged or foreign files, a pickle, or other weights than the card says.
        """
        from warmstart.models import weights

        folder = self.fetch(name)
        if folder.is_file():
            weights.refuse_pickle(folder)
            folder = folder.parent
        if (folder / "card.json").is_file() or not (folder / "config.json").is_file():
            _refuse_pickles(folder)
            return weights.load_folder(folder)
        return _saved_by_timm(folder)

    def fetch(self, name: str) -> Path:
        """Return the folder: it is here already.

        Raises:
            SourceError: It is not.
        """
        shelf = runtime.shelf_root()
        for path in (shelf / name, Path(name).expanduser()):
            if path.exists():
                return path
        known = [card.name for card in self.available()]
        fix = closest(f"local/{name}", known) if known else "give a path, or put a weights folder there"
        raise SourceError(f"no backbone {name!r} on the shelf {shelf}", fix)

    def check(self, name: str) -> None:
        """Refuse a name that is neither on the shelf nor a path.

        Raises:
            SourceError: No such folder.
        """
        self.fetch(name)

    def files(self, name: str) -> tuple[Path, ...]:
        """Return what the folder holds of weights and their description."""
        path = self.fetch(name)
        folder = path.parent if path.is_file() else path
        places = ((folder, *sorted(folder.glob("part*"))), ("model.safetensors", "card.json", "config.json"))
        return tuple(place for place in (at / each for at, each in itertools.product(*places)) if place.is_file())


def _refuse_pickles(folder: Path) -> None:
    """Name the pickle that stands where safetensors are expected, which says more than that those are missing."""
    from warmstart.models import weights

    if (folder / weights.WEIGHTS).exists() or any(folder.glob(f"part*/{weights.WEIGHTS}")):
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in weights.PICKLES:
            weights.refuse_pickle(path)
    raise SourceError(f"no {weights.WEIGHTS} in {folder}", "give a folder with model.safetensors and card.json")


def _saved_by_timm(folder: Path) -> tuple[Backbone, Card]:
    """Load a folder that timm's `save_for_hf` or the Hugging Face hub wrote."""
    from warmstart.models import specs, weights
    from warmstart.models.build import as_backbone, seeded, timm_network

    _refuse_pickles(folder)
    path = folder / weights.WEIGHTS
    weights.refuse_pickle(path)
    cfg = _timm_config(folder, path)
    arch = cfg.architecture or ""
    with weights.reading(path, f"a {arch}", "save it with timm's save_for_hf"), seeded(0):
        network = timm_network(arch, cfg)
    backbone = as_backbone(network, specs.of_timm(cfg)).eval()
    card = Card(name=f"local/{folder.name}", arch=f"timm:{arch}", licence=cfg.license)
    return backbone, weights.completed(card, backbone)


def _timm_config(folder: Path, path: Path) -> PretrainedCfg:
    from timm.models import PretrainedCfg

    from warmstart.models import weights

    place, fix = folder / "config.json", "save it with timm's save_for_hf"
    with weights.reading(place, "the description of a timm network", fix):
        config = json.loads(place.read_bytes())
        known = {k: v for k, v in config.get("pretrained_cfg", {}).items() if k in PretrainedCfg.__dataclass_fields__}
        told = {"num_classes": config.get("num_classes", 1000), "architecture": config["architecture"]}
        fixed = {"file": str(path), "source": None, "custom_load": False}
        return PretrainedCfg(**(known | told | fixed))


PLUGIN = Local
