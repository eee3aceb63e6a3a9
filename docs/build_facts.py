"""Write `src/warmstart/sources/facts/timm.csv`: parameters, multiply-adds and published accuracy of timm's weights.

Run it when timm's floor moves: `python docs/build_facts.py RESULTS`, where RESULTS is `results/results-imagenet.csv` of
https://github.com/huggingface/pytorch-image-models (Apache-2.0). Parameters and multiply-adds are counted here, on
networks without storage (torch's meta device, the formulas of `torch.utils.flop_counter`); accuracy is theirs.
"""  # noqa: INP001 docs/ is no package

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from timm.models import PretrainedCfg
    from torch import Tensor, nn

FACTS = Path(__file__).resolve().parents[1] / "src" / "warmstart" / "sources" / "facts" / "timm.csv"
COLUMNS = ("name", "num_params", "macs", "accuracy", "accuracy_size")


def main(results: Path) -> None:
    """Count every network that the source offers and join the published accuracies."""
    import timm

    from warmstart.sources.timm import offered

    published = accuracies(results)
    counted: dict[str, tuple[int, int | None]] = {}
    rows = []
    for name in sorted(offered()):
        cfg = timm.get_pretrained_cfg(name)
        key = f"{cfg.architecture} {cfg.input_size} {cfg.num_classes} {cfg.pool_size} {cfg.first_conv}"
        if key not in counted:
            counted[key] = count(name, cfg)
        rows.append((name, *counted[key], *at_size(published.get(name, {}), str(cfg.input_size[-1]))))
    with FACTS.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def accuracies(results: Path) -> dict[str, dict[str, str]]:
    """Read the published accuracies: of a name, by input size."""
    found: dict[str, dict[str, str]] = {}
    with results.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["model"], {})[row["img_size"]] = row["top1"]
    return found


def at_size(known: dict[str, str], size: str) -> tuple[str, str]:
    """Return accuracy and size, measured at the weights' own size where it was, else at the nearest."""
    if not known:
        return "", ""
    nearest = min(known, key=lambda other: (abs(int(other) - int(size)), int(other)))
    return known[nearest], nearest


def count(name: str, cfg: PretrainedCfg) -> tuple[int, int | None]:
    """Count parameters, and multiply-adds of one picture at the weights' own size; None where torch cannot."""
    import timm
    import torch

    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False).eval()
        num_params = sum(parameter.numel() for parameter in network.parameters())
        try:
            return num_params, multiply_adds(network, torch.empty(1, *cfg.input_size))
        except (NotImplementedError, RuntimeError, TypeError) as error:
            sys.stderr.write(f"{name}: {type(error).__name__}: {str(error)[:120]}\n")
            return num_params, None


def multiply_adds(network: nn.Module, picture: Tensor) -> int:
    """Add up what torch's table of operations says of every product; half of it, a multiply-add being two."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Counter(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            out = func(*args, **(kwargs or {}))
            if (formula := flop_registry.get(func._overloadpacket)) is not None:
                self.total += formula(*args, **(kwargs or {}), out_val=out)
            return out

    with torch.no_grad(), Counter() as counter:
        network(picture)
    return counter.total // 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
