"""Greedy soup: the mean of the weights of several fits that began alike, as one more candidate.

Wortsman et al., 2022, arXiv 2203.05482, recipe 1: fits in the order of their metric on val, each taken into the mean
when val does not get worse by it. The mean answers as fast as one fit. Where we differ: fits whose running statistics
moved (`batch_norm=adapt`) do not take part, since means of statistics are not statistics of means; and the soup is
compared with the best fit by the paired interval, as every candidate is. It was chosen on the val that it is compared
on, several times over, so its metric on val flatters it a little.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from warmstart import bench, config, pace, tune
from warmstart.bench import Bench, Feed
from warmstart.errors import CacheError
from warmstart.models import weights
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.strategies import Group, Strategy, deepest_cut, thaw
from warmstart.tasks import Predictions
from warmstart.trained import Frozen, TrainedModel
from warmstart.tune import Trial

if TYPE_CHECKING:
    from torch import Tensor

    from warmstart.models.model import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tasted:
    """What the soup of some fits comes to on val."""

    fits: tuple[Trial, ...]
    val: Predictions
    value: float


def greedy(session: Session, data: Prepared, trials: Sequence[Trial]) -> list[Trial]:
    """Average fits that began alike, best first, as long as val does not get worse.

    A pure function of the trials, but for whether the time suffices, which the run remembers.

    Args:
        session: The command at work.
        data: Val is looked at.
        trials: What was tried; fits of the same backbone, at the same size, from the same head take part.

    Returns:
        The soup; nothing where fewer than two fits belong together, none but the best is kept, or time is short. Fits
        of folds are not kept, so cross-validated trials give no soup.
    """
    fits = ingredients(data, trials)
    if len(fits) < 2 or not len(data.splits.val) or not _affordable(session, data, fits):
        return []
    begun = time.monotonic()
    with session.part("soup"), session.stage("soup") as advance:
        kitchen = _Kitchen.open(session, data, fits)
        best, told = Tasted(fits[:1], fits[0].val, tune.point(data, fits[0].val)), []
        for at, fit in enumerate(fits[1:], start=1):
            found = kitchen.taste((*best.fits, fit))
            taken = not _worse(data, found.value, best.value)
            told.append(f"{found.value:.4f}{'' if taken else ' (left out)'}")
            best = found if taken else best
            advance(at, len(fits) - 1)
    log.info("soup: %s from %.4f", ", ".join(told), tune.point(data, fits[0].val))
    if len(best.fits) < 2:
        return []
    details = {"fits averaged": f"{len(best.fits)} of {len(fits)}", "val as each was added": ", ".join(told)}
    candidate = replace(fits[0].candidate, soup=len(best.fits))
    return [Trial(candidate, kitchen.model(best.fits), best.val, time.monotonic() - begun, details=details)]


def ingredients(data: Prepared, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the fits that may be averaged with the best of all fits, that one first, best by val."""
    fits = [trial for trial in trials if not isinstance(trial.trained.held, Frozen) and trial.candidate.soup == 1]
    sign = 1.0 if data.task.metrics()[0].higher_is_better else -1.0
    ordered = sorted(fits, key=lambda trial: -sign * tune.point(data, trial.val))
    return tuple(trial for trial in ordered if _alike(trial, ordered[0]))


def mean(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of tensors by name, summed in double precision; integers are those of the first."""
    import torch

    found = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            found[name] = first.clone()
            continue
        total = torch.stack([state[name].double() for state in states]).mean(dim=0)
        found[name] = total.to(first.dtype)
    return found


def _alike(one: Trial, other: Trial) -> bool:
    """Say whether two fits began from the same backbone, size and head, and only parameters moved since."""
    import torch

    a, b = one.candidate, other.candidate
    if (a.backbone, a.image_size) != (b.backbone, b.image_size) or _head_start(one) != _head_start(other):
        return False
    shapes = [{name: each.shape for name, each in t.trained.model.state_dict().items()} for t in (one, other)]
    if shapes[0] != shapes[1]:
        return False
    still = dict(other.trained.model.named_buffers())
    return all(torch.equal(buffer, still[name]) for name, buffer in one.trained.model.named_buffers())


def _head_start(trial: Trial) -> str:
    strategy = config.plugin_of("strategy", trial.candidate.strategy)
    assert isinstance(strategy, Strategy)
    return strategy.head_start


def _worse(data: Prepared, value: float, best: float) -> bool:
    return not (value >= best if data.task.metrics()[0].higher_is_better else value <= best)


def _affordable(session: Session, data: Prepared, fits: Sequence[Trial]) -> bool:
    """Say whether there is time to predict val once for each fit but the best; remembered by the run."""

    def decide() -> tuple[bool, str]:
        speed = pace.measured(session, data, fits[0].candidate)
        seconds = pace.STARTING_SECONDS + (len(fits) - 1) * speed.num_val * speed.example / 3
        left = session.seconds_left() - session.closing_seconds
        return seconds <= left, f"{len(fits)} fits; averaging them would take {seconds:.0f} s of {left:.0f} s"

    return bool(session.remember("soup", decide)[0])


@dataclass(frozen=True)
class _Kitchen:
    """A model of the fits' kind that takes any mean of them, and val as it comes to the layers that differ."""

    place: Bench
    fits: tuple[Trial, ...]
    feed: Feed

    @staticmethod
    def open(session: Session, data: Prepared, fits: tuple[Trial, ...]) -> _Kitchen:
        """Build the model, and read the frozen values of val where all fits share the first layers."""
        import copy

        import torch

        first = fits[0]
        place = bench.load(session, data, first.candidate.backbone, first.candidate.image_size)
        model = copy.deepcopy(first.trained.model).eval()
        model.backbone.load_state_dict(place.backbone.state_dict())  # type: ignore[attr-defined]
        model.to(session.device).to(memory_format=torch.channels_last)
        cut = deepest_cut(model, _moved(model, fits))
        nobody, val = np.zeros(0, np.int64), data.splits.val
        feed = Feed(place, model, nobody, val, 0, place.plain())
        if cut == 0:
            return _Kitchen(place, fits, feed)
        try:
            held_out = place.values(val, cut, place.plain())
        except CacheError as error:
            log.warning("the frozen layers are computed again for each soup: %s", error.problem)
            return _Kitchen(place, fits, feed)
        return _Kitchen(place, fits, replace(feed, cut=cut, held_out=held_out))

    def taste(self, fits: Sequence[Trial]) -> Tasted:
        """Predict val by the mean of fits."""
        self._pour(fits)
        found = self.feed.predict()
        return Tasted(tuple(fits), found, tune.point(self.place.data, found))

    def model(self, fits: Sequence[Trial]) -> TrainedModel:
        """Return the mean of fits as a model."""
        model, data = self._pour(fits), self.place.data
        card = weights.completed(self.place.card, model.backbone)
        return TrainedModel(model, card, data.task, data.task_name, self.place.framing)

    def _pour(self, fits: Sequence[Trial]) -> Model:
        self.feed.model.load_state_dict(mean([fit.trained.model.state_dict() for fit in fits]))
        return self.feed.model.eval()


def _moved(model: Model, fits: Sequence[Trial]) -> tuple[Group, ...]:
    """Return the layer groups in which a fit differs from the weights that all began with, and the head."""
    import torch

    begun = model.layer_groups()
    ended = [fit.trained.model.layer_groups() for fit in fits]
    moved = [
        group
        for at, group in enumerate(begun[:-1])
        if any(
            not torch.equal(a, b) for fit in ended for a, b in zip(group.parameters, fit[at].parameters, strict=True)
        )
    ]
    return thaw((*moved, begun[-1]))
