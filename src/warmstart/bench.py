"""A backbone on the bench: framed, and able to give frozen values of any rows; and what the loop is fed."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from warmstart import sources, tasks
from warmstart.data import Batch, loading
from warmstart.errors import CacheError, SourceError
from warmstart.extract import Extracted, extract
from warmstart.models import Backbone, Card
from warmstart.models.lazy import LazyBackbone
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.strategies import Group, deepest_cut
from warmstart.tasks import Predictions
from warmstart.trained import Framing

if TYPE_CHECKING:
    import torch
    from torch import nn

    from warmstart.data.transforms import Augment, Transform
    from warmstart.models.model import Model

log = logging.getLogger(__name__)

EVAL_BATCH = 64


@dataclass(frozen=True)
class Bench:
    """A backbone at an input size, with everything that tuning it needs. It is built when first asked for."""

    session: Session
    data: Prepared
    lazy: LazyBackbone
    framing: Framing

    @property
    def backbone(self) -> Backbone:
        """Return the network, built at the first call."""
        return self.lazy.get()

    @property
    def card(self) -> Card:
        """Return the facts of its weights."""
        return self.lazy.card

    @property
    def num_groups(self) -> int:
        """Count its layer groups, which is also the last cut; nothing is built for it."""
        return self.lazy.num_groups

    def values(self, rows: np.ndarray, cut: int, transform: Transform, *, view: int = 0) -> Extracted:
        """Compute the frozen prefix for rows, or read it from the cache."""
        session = self.session
        with session.stage("features") as advance:
            return extract(
                self.data.dataset,
                rows,
                backbone=self.lazy,
                card=self.card,
                cut=cut,
                transform=transform,
                cache=session.cache,
                view=view,
                seed=session.recipe.seed,
                workers=session.workers,
                device=session.recipe.device,
                content_hashes=self.data.hashes,
                progress=advance,
            )

    def plain(self) -> Transform:
        """Return the transform of validation and prediction."""
        return self.framing.plain(self.card)

    def augmented(self, default: Augment) -> Transform:
        """Return the transform of training pictures."""
        return self.framing.augmented(self.card, self.session.recipe.data.augment or default)


def load(session: Session, data: Prepared, backbone_name: str, image_size: int) -> Bench:
    """Put a backbone on the bench at an input size.

    Raises:
        SourceError: The weights are not here.
    """

    def move(backbone: Backbone) -> None:
        cast("nn.Module", backbone).to(session.device)

    with session.stage("load"):
        lazy = sources.defer(backbone_name, move)
    return Bench(session, data, lazy, Framing(image_size, session.recipe.data.resize, session.recipe.data.fit))


@contextmanager
def taken(backbone_name: str, image_size: int) -> Iterator[None]:
    """Turn what a network says of an input that it cannot take, or of missing memory, into an error that names both.

    Raises:
        SourceError: The network refused.
    """
    try:
        yield
    except (RuntimeError, AssertionError, ValueError, MemoryError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        fix = "another data.image_size, or other --candidates"
        raise SourceError(f"{backbone_name} cannot be used at {image_size} px: {said}", fix) from error


@dataclass(frozen=True)
class Feed:
    """What the loop is fed: batches of train in the order of (seed, epoch), and val.

    Where the frozen prefix is deep enough to be worth keeping, its values come from the cache; else pixels do, and
    the cut is 0.
    """

    place: Bench
    model: Model
    train: np.ndarray
    val: np.ndarray
    cut: int
    pixels: Transform
    """How training pictures become pixels; no effect when the loop is fed prefix values."""
    views: tuple[Extracted, ...] = ()
    """Prefix values of train, one per view; empty when the loop is fed pixels."""
    held_out: Extracted | None = None

    @staticmethod
    def open(place: Bench, model: Model, groups: Sequence[Group], train: np.ndarray, val: np.ndarray) -> Feed:
        """Decide between prefix and pixels, and fill the cache with the prefix.

        A frozen prefix is fed from the cache, with as many views as the recipe asks for. Pixels are fed when nothing
        is frozen, when augmentation is asked for by name with one view only, and when the cache has no room.
        """
        cut, data = deepest_cut(model, groups), place.session.recipe.data
        if cut == 0 or (data.views == 1 and data.augment not in (None, "none")):
            return Feed(place, model, train, val, 0, place.augmented("standard"))
        try:
            views = [place.values(train, cut, place.plain())]
            views += [place.values(train, cut, place.augmented("standard"), view=view) for view in range(1, data.views)]
            held_out = place.values(val, cut, place.plain()) if len(val) else None
        except CacheError as error:
            log.warning("the frozen layers are computed again in every epoch: %s", error.problem)
            return Feed(place, model, train, val, 0, place.plain())
        return Feed(place, model, train, val, cut, place.plain(), tuple(views), held_out)

    @property
    def steps_per_epoch(self) -> int:
        """Count the batches of an epoch; the last one may be smaller."""
        return math.ceil(len(self.train) / self.place.session.recipe.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on."""
        import torch

        session, size = self.place.session, self.place.session.recipe.batch_size
        order = loading.epoch_order(len(self.train), seed=session.recipe.seed, epoch=epoch)
        picks = [order[at : at + size] for at in range(0, len(order), size)][start:]
        targets = self.place.data.targets
        if self.views:
            values = self.views[epoch % len(self.views)].values
            for pick in picks:
                rows = self.train[pick]
                yield _batch(torch.from_numpy(np.asarray(values[pick])), targets[rows], rows).to(session.device)
            return
        stream = loading.batches(
            self.place.data.dataset,
            (self.train[pick] for pick in picks),
            self.pixels,
            seed=session.recipe.seed,
            epoch=epoch,
            workers=session.workers,
        )
        for pixels, rows in stream:
            yield _batch(pixels, targets[rows], rows).to(session.device)

    def predict(self) -> Predictions:
        """Predict val with the model as it stands."""
        if not len(self.val):
            return predictions(self.place, self.val, np.zeros((0, self.place.data.task.num_outputs), np.float32))
        import torch

        self.model.eval()
        parts = [self.val[at : at + EVAL_BATCH] for at in range(0, len(self.val), EVAL_BATCH)]
        if self.held_out is not None:
            held = self.held_out.values
            stream: Iterator[torch.Tensor] = (
                torch.from_numpy(np.asarray(held[at : at + EVAL_BATCH])) for at in range(0, len(self.val), EVAL_BATCH)
            )
        else:
            workers = self.place.session.workers
            found = loading.batches(
                self.place.data.dataset, parts, self.place.plain(), seed=0, epoch=0, workers=workers
            )
            stream = (pixels for pixels, _ in found)
        device = self.place.session.device
        with torch.inference_mode():
            outputs = torch.cat([self.model(inputs.to(device), self.cut).float().cpu() for inputs in stream]).numpy()
        return predictions(self.place, self.val, outputs)


def predictions(place: Bench, rows: np.ndarray, outputs: np.ndarray) -> Predictions:
    """Turn the raw outputs for rows of the dataset into predictions with their targets."""
    dataset = place.data.dataset
    values = tasks.values(place.data.task, outputs)
    assert dataset.targets is not None
    groups = None if dataset.groups is None else dataset.groups[rows]
    return Predictions(outputs, values, rows, dataset.targets[rows], groups)


def _batch(inputs: torch.Tensor, targets: np.ndarray, rows: np.ndarray) -> Batch:
    import torch

    return Batch(inputs, torch.from_numpy(targets), torch.from_numpy(rows))
