"""fastai: `vision_learner(...).fine_tune(epochs)` with its usual augmentation, on the body of EfficientNet-Lite0.

A tenth of the training pictures is validated on. The head is fastai's own. As many epochs as fit, after the frozen one.
"""

from __future__ import annotations

import peer_tools as tools

VALID = 0.1
FROZEN = 2.5
"""Forward passes that the frozen epoch costs: batch norms learn in it, so gradients go all the way down."""


def main() -> None:
    """Fine-tune until the plan is done or the time is up, then predict."""
    job = tools.job()
    from fastai.callback.core import Callback, CancelFitException
    from fastai.callback.schedule import Learner  # noqa: F401 - fine_tune is patched in by this import
    from fastai.torch_core import set_seed
    from fastai.vision.augment import Normalize, Resize, aug_transforms
    from fastai.vision.data import ImageDataLoaders
    from fastai.vision.learner import vision_learner

    set_seed(job.seed)
    paces = tools.pace(tools.lite0(job, num_classes=0))
    size, epochs, reserve = tools.planned(job, paces, fixed_epochs=FROZEN, share=1 - VALID)

    steps = []

    class Deadline(Callback):
        """Ends a fit when only the time for test is left, and counts."""

        order = 100

        def after_batch(self) -> None:
            steps.extend([1] * self.learn.training)
            if job.left() <= reserve:
                raise CancelFitException

    half = ([0.5] * 3, [0.5] * 3)
    tensors = [*aug_transforms(size=size), Normalize.from_stats(*half, cuda=False)]
    loaders = ImageDataLoaders.from_folder(
        job.data / "train", valid_pct=VALID, seed=job.seed, item_tfms=Resize(round(size * 8 / 7)), batch_tfms=tensors
    )

    def arch(*, pretrained: bool) -> object:
        del pretrained  # always
        return tools.lite0(job, num_classes=len(job.classes))

    learner = vision_learner(loaders, arch, normalize=False, cbs=Deadline(), path=job.out.parent)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
        learner.remove_cb(Deadline)
        scores, _ = learner.get_preds(dl=loaders.test_dl(job.test))
    done = round(len(steps) / len(loaders.train), 2)
    facts = {"image_size": size, "epochs_planned": epochs + 1, "epochs": done}
    job.answer([loaders.vocab[label] for label in scores.argmax(1).tolist()], facts)


if __name__ == "__main__":
    main()
