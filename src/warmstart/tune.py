"""One candidate: a backbone at an input size, fine-tuned by a strategy, with its predictions on val."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from warmstart import bench, config, evaluation, heads, runtime
from warmstart.bench import Bench, Feed
from warmstart.config import Choice
from warmstart.errors import RecipeError
from warmstart.extract import Extracted
from warmstart.heads import Solved
from warmstart.models import weights
from warmstart.prepare import Prepared
from warmstart.reporting.facts import Curve, Series
from warmstart.rundir import RunDir
from warmstart.session import Session
from warmstart.strategies import Group, Strategy, deepest_cut
from warmstart.tasks import Predictions, concatenate
from warmstart.trained import Frozen, TrainedModel

if TYPE_CHECKING:
    from warmstart.fit import FitConfig, FitResult
    from warmstart.fit import Progress as At
    from warmstart.models.model import LinearHead, Model

MAX_EPOCHS = 30


@dataclass(frozen=True)
class Candidate:
    """What may become the model: a backbone at an input size, fine-tuned by a strategy."""

    backbone: str
    image_size: int
    strategy: Choice
    settings: Mapping[str, object] = field(default_factory=dict)
    """Keys of the recipe that have their own values here, such as `epochs` and `optim.lr`."""
    soup: int = 1
    """How many fits its weights are the mean of; the best of them is described by the rest."""

    @property
    def name(self) -> str:
        """Name it for people: `probe`, `lp_ft`."""
        return f"{self.strategy.name or ''}{f' soup of {self.soup}' if self.soup > 1 else ''}"

    @property
    def fit_name(self) -> str:
        """Name its fit within the run; with settings it is one of several, and all that makes it is in the name."""
        if not self.settings:
            return "fit"
        return f"fit-{runtime.digest(json.dumps(asdict(self), sort_keys=True, default=str))[:8]}"


@dataclass(frozen=True)
class Trial:
    """A candidate that was trained, and what it says of val."""

    candidate: Candidate
    trained: TrainedModel
    val: Predictions
    """Predictions on val, or out-of-fold predictions of train when small data is cross-validated."""
    seconds: float
    curves: tuple[Curve, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    extracted: tuple[Extracted, ...] = ()


def tune(session: Session, data: Prepared, candidate: Candidate) -> Trial:
    """Fine-tune one candidate and predict val with it.

    On small data every fold is tuned by itself to predict what it has not seen, and the kept model learns from all
    of train.

    Raises:
        SourceError: The weights are not here.
        TrainingError: The loss is not a number, or a guard failed.
    """
    begun = time.monotonic()
    session = session.with_values(candidate.settings)
    if _strategy(candidate).head_start == "only":
        return _solved(session, data, candidate)
    ready = build(session, data, candidate)
    val, fits = _fit_all(ready, candidate) if ready.groups else (ready.head.val(ready.place), ())
    place, model, head = ready.place, ready.model.eval(), ready.head
    card = weights.completed(place.card, model.backbone) if ready.groups else place.card
    return Trial(
        candidate,
        TrainedModel(model, card, data.task, data.task_name, place.framing),
        val,
        time.monotonic() - begun,
        (*head.curves(), *(curve for fit in fits[-1:] for curve in _fit_curves(fit, data))),
        {**head.details(), **(_fit_details(fits[-1], ready.groups) if fits else {})},
        head.extracted,
    )


def _solved(session: Session, data: Prepared, candidate: Candidate) -> Trial:
    """Solve the head and leave the backbone as it is; it is built only where there are features to compute."""
    begun = time.monotonic()
    place = bench.load(session, data, candidate.backbone, candidate.image_size)
    head = solve_head(place)
    assert head.solved is not None
    model = TrainedModel(Frozen(place.lazy, head.solved), place.card, data.task, data.task_name, place.framing)
    val = head.val(place)
    seconds = time.monotonic() - begun
    return Trial(candidate, model, val, seconds, head.curves(), head.details(), head.extracted)


@dataclass(frozen=True)
class HeadStart:
    """The solved head; empty when the strategy starts fresh."""

    solved: Solved | None = None
    rows: np.ndarray | None = None
    """Which examples, in the order of `Solved.out_of_fold`."""
    extracted: tuple[Extracted, ...] = ()

    def val(self, place: Bench, folds: Sequence[heads.Fold] | None = None) -> Predictions:
        """Return what the head says of val, or of each fold that it has not seen."""
        assert self.solved is not None and self.rows is not None, "a strategy that trains nothing solves its head"
        rows = np.sort(np.concatenate([held_out for _, held_out in folds or place.data.folds]))
        return bench.predictions(place, rows, self.solved.out_of_fold[positions(self.rows, rows)])

    def curves(self) -> tuple[Curve, ...]:
        """Draw the regularisation path."""
        if self.solved is None or len(self.solved.path) < 2:
            return ()
        l2, loss = zip(*sorted(self.solved.path), strict=True)
        series = (Series("validation loss", l2, loss),)
        return (Curve("Head: choosing the regularisation", "l2", "loss", series, self.solved.l2, log_x=True),)

    def details(self) -> dict[str, str]:
        """Say how the head was chosen."""
        return {} if self.solved is None else {"head": "solved", "regularisation (l2)": f"{self.solved.l2:.3g}"}


def solve_head(place: Bench, folds: Sequence[heads.Fold] | None = None) -> HeadStart:
    """Solve the linear head on cached features of train, its regularisation chosen by val or by folds.

    Args:
        place: The backbone on the bench.
        folds: (train, val) rows, of which the first train is what the head learns from; those of the data, with all
            of its train, when not given.
    """
    data, num_views = place.data, place.session.recipe.data.views
    pairs, train = (data.folds, data.splits.train) if folds is None else (folds, folds[0][0])
    rows = np.unique(np.concatenate([train, *(part for pair in pairs for part in pair)]))
    last = place.num_groups
    found = [place.values(rows, last, place.plain())]
    found += [place.values(rows, last, place.augmented("standard"), view=view) for view in range(1, num_views)]
    features = [np.asarray(one.values) for one in found]

    def in_every_view(wanted: np.ndarray) -> np.ndarray:
        return np.concatenate([positions(rows, wanted) + view * len(rows) for view in range(num_views)])

    with place.session.stage("head"):
        solved = heads.solve(
            data.task.link,
            np.concatenate(features) if num_views > 1 else features[0],
            np.tile(data.task.soft_targets(data.targets[rows]), (num_views, 1)),
            train=in_every_view(train),
            folds=[(in_every_view(fit), positions(rows, val)) for fit, val in pairs],
            output_weights=data.task.output_weights,
        )
    return HeadStart(solved, rows, tuple(found))


@dataclass(frozen=True)
class Ready:
    """A model that is ready to be tuned: its head in place, its groups thawed."""

    strategy: Strategy
    place: Bench
    model: Model
    groups: tuple[Group, ...]
    head: HeadStart


def build(session: Session, data: Prepared, candidate: Candidate, folds: Sequence[heads.Fold] | None = None) -> Ready:
    """Load the backbone, give it the head that the strategy wants, and let the strategy thaw what learns.

    Args:
        session: The command at work.
        data: What to learn from.
        candidate: What to build.
        folds: (train, val) rows for a solved head; those of the data when not given.
    """
    import torch

    from warmstart.models.model import Model

    strategy = _strategy(candidate)
    place = bench.load(session, data, candidate.backbone, candidate.image_size)
    if place.card.parts:
        _refuse_thawing(place, candidate)
    head = solve_head(place, folds) if strategy.head_start in ("solved", "only") else HeadStart()
    model = Model(place.backbone, _head(place, strategy, head.solved))
    model.to(session.device).to(memory_format=torch.channels_last)  # the layout that convolutions are fastest in
    return Ready(strategy, place, model, tuple(strategy.prepare(model)), head)


def _refuse_thawing(place: Bench, candidate: Candidate) -> None:
    """Refuse to tune the backbones of a stack, before anything is computed for it.

    Raises:
        RecipeError: The strategy would let one of them learn.
    """
    from warmstart.models.model import Model

    strategy, head = _strategy(candidate), place.data.task.head(place.backbone.dim)
    model = Model(place.backbone, head)
    if deepest_cut(model, strategy.prepare(model)) < place.num_groups:
        raise RecipeError(
            f"strategy {candidate.name} would tune the backbones of {candidate.backbone}, and a stack is only probed",
            f"--strategy probe, or one of them: --backbone {place.card.parts[0].card.name}",
        )


def _strategy(candidate: Candidate) -> Strategy:
    strategy = config.plugin_of("strategy", candidate.strategy)
    assert isinstance(strategy, Strategy)
    return strategy


def _fit_all(ready: Ready, candidate: Candidate) -> tuple[Predictions, tuple[FitResult, ...]]:
    """Fit on train and predict val; on small data fit each fold too, and join what the folds say."""
    session, data = ready.place.session, ready.place.data
    splits = data.splits
    if not splits.folds:
        val, result = _fit(ready, splits.train, splits.val, candidate.fit_name, selecting=True)
        return val, (result,)
    parts, fits = [], []
    for number, (train, held_out) in enumerate(splits.folds):
        name = f"{candidate.fit_name}-fold{number}"
        part, result = _fit(
            build(session, data, candidate, [(train, held_out)]), train, held_out, name, selecting=False
        )
        parts.append(part)
        fits.append(result)
    _, result = _fit(ready, splits.train, splits.val, candidate.fit_name, selecting=False)
    return concatenate(parts), (*fits, result)


def held_out(
    session: Session, data: Prepared, candidate: Candidate, pairs: Sequence[heads.Fold], *, name: str
) -> Predictions:
    """Fit a candidate on each train of (train, val) rows, and return what it says of each val.

    Args:
        session: The command at work.
        data: What to learn from.
        candidate: What to fit; its last weights are used, so val stays honest.
        pairs: (train, val) rows; one pair, or folds.
        name: Of the fits within the run.
    """
    session, parts = session.with_values(candidate.settings), []
    for number, (train, val) in enumerate(pairs):
        ready = build(session, data, candidate, [(train, val)])
        parts.append(_fit(ready, train, val, f"{name}-{number}", selecting=False)[0])
    return concatenate(parts)


def _fit(
    ready: Ready, train: np.ndarray, val: np.ndarray, name: str, *, selecting: bool
) -> tuple[Predictions, FitResult]:
    """Run the loop once. Folds keep their last weights, since choosing the best epoch on them would flatter them.

    Asked to stop, a fit that validates ends with its best so far; without val, the trial is given up.
    """
    place = ready.place
    feed = Feed.open(place, ready.model, ready.groups, train, val)
    session = place.session
    config = loop_config(session, ready.strategy)

    def on_step(at: At) -> None:
        session.has_answer |= selecting
        advance(at.step, at.total_steps)

    with session.stage("fit", ends_itself=selecting) as advance:
        result = loop(
            ready,
            feed,
            config,
            session.folder,
            name=name,
            validate=(lambda: point(place.data, feed.predict())) if selecting else None,
            on_step=on_step,
            should_end=session.stop.should_end if selecting else None,
        )
        if result.stopped_because == "stopped":
            session.stop.resume()
        return feed.predict(), result


def loop(
    ready: Ready,
    feed: Feed,
    config: FitConfig,
    folder: RunDir | Path,
    *,
    name: str = "fit",
    validate: Callable[[], float] | None = None,
    on_step: Callable[[At], None] | None = None,
    should_end: Callable[[], bool] | None = None,
) -> FitResult:
    """Put a ready model through the loop."""
    from warmstart import fit

    task = ready.place.data.task
    return fit.fit(
        ready.model,
        ready.groups,
        forward=lambda module, batch: fit.Step(task.loss(module(batch.inputs, feed.cut), batch.targets)),
        batches=feed.batches,
        steps_per_epoch=feed.steps_per_epoch,
        config=config,
        folder=folder,
        name=name,
        validate=validate,
        higher_is_better=task.metrics()[0].higher_is_better,
        penalty=ready.strategy.penalty(ready.model),
        head=ready.model.head,
        on_progress=on_step,
        should_end=should_end,
    )


def point(data: Prepared, predictions: Predictions) -> float:
    """Return the task's first metric, without interval."""
    name = data.task.metrics()[0].name
    return evaluation.metrics(data.task, predictions, split="val", seed=0, resamples=2, only=(name,))[0].value


def loop_config(session: Session, strategy: Strategy) -> FitConfig:
    """Turn the recipe into the configuration of the loop, deciding what it leaves open."""
    from warmstart.fit import FitConfig

    name = session.recipe.optim.name
    session.decide("optim.lr", lambda: (strategy.lrs[name], f"usual for {type(strategy).__name__} with {name}"))
    session.decide("epochs", lambda: (10, "nothing was planned"))
    recipe = session.recipe
    assert recipe.epochs is not None
    return FitConfig(
        epochs=recipe.epochs,
        optim=recipe.optim,
        schedule=recipe.schedule,
        micro_batch=recipe.micro_batch,
        ema_decay=recipe.ema,
        early_stopping=recipe.early_stopping,
        on_nan=recipe.on_nan,
        precision=recipe.precision,
        seed=recipe.seed,
        deadline_seconds=None if recipe.budget is None else max(session.seconds_left() - session.closing_seconds, 1.0),
    )


def _head(place: Bench, strategy: Strategy, solved: Solved | None) -> LinearHead:
    if solved is not None:
        return solved.to_module()
    from warmstart.models.model import LinearHead

    head = place.data.task.head(place.backbone.dim, seed=place.session.recipe.seed)
    assert isinstance(head, LinearHead)
    if strategy.head_start == "own":
        _adopt(place, head)
    return head


def _adopt(place: Bench, head: LinearHead) -> None:
    """Copy the classifier that came with the weights into the head.

    Raises:
        RecipeError: The weights came without one, or it has another number of classes.
    """
    own = getattr(place.backbone, "classifier", None)
    if own is None or own.weight.shape != head.linear.weight.shape:
        has = "none" if own is None else f"{own.weight.shape[0]} classes"
        raise RecipeError(
            f"strategy.head='own', but {place.card.name} has {has} and the data has {head.linear.weight.shape[0]}",
            "strategy.head=fresh",
        )
    import torch

    with torch.no_grad():
        head.linear.weight.copy_(own.weight)
        head.linear.bias.copy_(own.bias)


def positions(sorted_rows: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return where rows stand in a sorted array of rows."""
    return np.searchsorted(sorted_rows, rows)


def _fit_curves(result: FitResult, data: Prepared) -> tuple[Curve, ...]:
    epochs = tuple(float(record.epoch + 1) for record in result.history)
    loss = Series("train loss", epochs, tuple(_number(record.train_loss) for record in result.history))
    curves = [Curve("Training loss", "epoch", "loss", (loss,))]
    if any(record.metric is not None for record in result.history):
        name = data.task.metrics()[0].name
        metric = Series(f"val {name}", epochs, tuple(_number(record.metric) for record in result.history))
        curves.append(Curve("Validation", "epoch", name, (metric,), chosen_x=float(result.best_epoch + 1)))
    return tuple(curves)


def _fit_details(result: FitResult, groups: Sequence[Group]) -> dict[str, str]:
    learning = sum(parameter.numel() for group in groups for parameter in group.parameters)
    return {
        "epochs": str(len(result.history)),
        "steps": f"{result.steps:,}",
        "learning rate": f"{result.lr:.3g}",
        "trained parameters": f"{learning:,}",
        "ended because": str(result.stopped_because),
        **({"skipped batches": str(result.skipped_batches)} if result.skipped_batches else {}),
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else value
