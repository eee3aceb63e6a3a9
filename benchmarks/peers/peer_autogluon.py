"""AutoGluon MultiModal: `MultiModalPredictor.fit(..., time_limit=…)` with its defaults, on EfficientNet-Lite0.

Its checkpoint option takes a local folder in timm's layout. The picture size is chosen as for the other peers, and the
longest training is set to what fits, so that the learning rate comes down within the time. Everything else is its own:
hold-out, augmentation, layer-wise rates, and the soup of its best checkpoints. `--variant` is another learning rate
than its 1e-4.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import peer_tools as tools

if TYPE_CHECKING:
    from torch import nn

VALID = 0.2
"""Part that it holds out of so few examples; it validates on it twice in an epoch, and a few times at the end."""
MICRO_BATCH = 8
"""It accumulates gradients over batches of this size."""
START_SECONDS = 10.0
"""It spends before the first step, and between the last one and the end, other than on pictures."""


def main() -> None:
    """Hand over files and time, then predict."""
    job = tools.job()
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor

    network = tools.lite0(job, num_classes=0)
    paces, num = tools.pace(network, MICRO_BATCH), len(job.train)
    size, epochs, reserve = tools.planned(job, paces, fixed_epochs=3 * VALID, share=1 - VALID)
    reserve += 3.3 * VALID * paces.seconds(num, size, training=False)
    predictor = MultiModalPredictor(label="label", path=str(job.out.parent / "autogluon"), verbosity=1)
    predictor.fit(
        pd.DataFrame([(str(path), job.classes[label]) for path, label in job.train], columns=["image", "label"]),
        time_limit=max(1.0, job.left() - reserve - START_SECONDS),
        seed=job.seed,
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": str(_checkpoint(job, network)),
            "model.timm_image.image_size": size,
            "model.timm_image.image_norm": "inception",
            "optim.max_epochs": min(20, epochs),
            **({"optim.lr": float(job.variant)} if job.variant else {}),
        },
    )
    found = predictor.predict(pd.DataFrame({"image": [str(path) for path in job.test]}), as_pandas=False)
    job.answer([str(label) for label in found], {"image_size": size, "epochs_planned": min(20, epochs)})


def _checkpoint(job: tools.Job, network: nn.Module) -> Path:
    """Write the weights as the folder that it reads: a state dict without head beside timm's facts."""
    import torch

    folder = job.out.parent / "lite0"
    folder.mkdir()
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    shutil.copy(job.weights.with_name("config.json"), folder)
    return folder


if __name__ == "__main__":
    main()
