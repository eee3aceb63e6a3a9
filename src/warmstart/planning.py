"""The plan: what every option costs before anything is trained, from a few seconds of measuring."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from warmstart import bench, catalogue, choosing, forecast, plugins, resources
from warmstart.config import Choice
from warmstart.errors import RecipeError, SourceError, WarmstartError
from warmstart.forecast import Cost, Load, Profile
from warmstart.models import Card
from warmstart.pace import REPORT_SECONDS, SPARE
from warmstart.prepare import Prepared
from warmstart.session import Session
from warmstart.spaces import size_text
from warmstart.tune import MAX_EPOCHS

log = logging.getLogger(__name__)

DEPTHS: dict[str, tuple[dict[str, object], ...]] = {"lp_ft": ({"depth": 2}, {"depth": 4}, {})}
"""Options of a strategy that get a row each."""
ORDER = ("probe", "last_k", "lp_ft", "gradual", "full", "l2_sp")
"""Cheap ones first, as they are read; strategies that are not named here follow."""
MEASURING_SECONDS = 16.0
"""What the steps of all backbones may take together; the more backbones, the fewer pictures each."""
MOST_SECONDS = 2.5
UNEVEN = 1.15
"""What a budget that is recommended has above what is needed: reading the data takes another time every time."""


@dataclass(frozen=True)
class Option:
    """One row of the plan: a backbone at an input size, a strategy, and its forecast."""

    backbone: str
    input_size: int | None
    strategy: str
    """Name and options: `lp_ft depth=2`."""
    cost: Cost | None
    """None when the backbone cannot be loaded."""
    seconds: float | None
    """Of the whole command with this option alone, in as many epochs as the budget allows."""
    fits: bool
    reason: str = ""
    """Why it does not fit."""
    prior: float | None = None
    rank: int | None = None
    """Expected place of the backbone among those of the plan, from published facts alone; 1 is best."""
    measured: bool = True
    """False when the forecast was scaled from another input size."""

    def to_json(self) -> dict[str, object]:
        """Return what `--json` prints of it."""
        cost = self.cost
        facts = {name: None if cost is None else getattr(cost, name) for name in COSTS}
        own = {name: getattr(self, name) for name in OWN}
        return {**own, **facts}


OWN = ("backbone", "input_size", "strategy", "seconds", "fits", "reason", "prior", "rank", "measured")
COSTS = (
    *("micro_batch", "accumulation", "epochs", "peak_bytes", "peak_stage", "disk_bytes"),
    *("fill_seconds", "epoch_seconds", "evaluate_seconds"),
)


@dataclass(frozen=True)
class Plan:
    """The table, and what it cost to make."""

    options: tuple[Option, ...]
    seconds: float
    """To measure and to make the table; reading the data left out."""
    budget: float | None
    memory_bytes: int
    disk_bytes: int

    def to_json(self) -> dict[str, object]:
        """Return what `--json` prints."""
        return {
            "options": [option.to_json() for option in self.options],
            "seconds": round(self.seconds, 2),
            "budget": self.budget,
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
        }

    def words(self) -> str:
        """Return the table."""
        lines = [_row("backbone", "px", "strategy", "epochs", "minutes", "memory", "disk", "batch", "rank", "fits")]
        for option in self.options:
            cost, rank = option.cost, "–" if option.rank is None else str(option.rank)
            size = "–" if option.input_size is None else f"{option.input_size}{'' if option.measured else '~'}"
            said = "yes" if option.fits else f"no: {option.reason}"
            if cost is None or option.seconds is None:
                lines.append(_row(option.backbone, size, *["–"] * 6, rank, said))
                continue
            micro = f"{cost.micro_batch}" + (f"×{cost.accumulation}" if cost.accumulation > 1 else "")
            epochs = str(cost.epochs) if cost.epochs else "–"
            minutes = f"{option.seconds / 60:.1f}"
            peak, disk = size_text(cost.peak_bytes), size_text(cost.disk_bytes)
            lines.append(_row(option.backbone, size, option.strategy, epochs, minutes, peak, disk, micro, rank, said))
        lines.append(f"made in {self.seconds:.1f} s; memory {size_text(self.memory_bytes)}, nothing was trained")
        return "\n".join(lines)


def _row(*cells: str) -> str:
    widths = (-36, 5, -14, 6, 8, 9, 9, 6, 4)
    parts = [
        f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False)
    ]
    return " ".join([*parts, f" {cells[-1]}"]).rstrip()


def plan(session: Session, data: Prepared) -> Plan:
    """Forecast every option: backbones × input sizes × strategies.

    Raises:
        RecipeError: Nothing fits; the smallest budget or memory that would do is named.
        SourceError: No candidate can be loaded.
    """
    begun, before = time.monotonic(), session.seconds()
    cards = choosing.cards(session)
    allowed = limits(session, spent=before)
    with session.stage("profile") as advance:
        profiles: list[Profile | WarmstartError] = []
        for number, card in enumerate(cards):
            profiles.append(_profile(session, data, card, min(MOST_SECONDS, MEASURING_SECONDS / len(cards))))
            advance(number + 1, len(cards))
    options = _ranked(
        [
            option
            for card, found in zip(cards, profiles, strict=True)
            for option in _rows(session, data, card, found, allowed)
        ]
    )
    _require_some(options, profiles, allowed)
    return Plan(tuple(options), time.monotonic() - begun, allowed.budget, allowed.memory, allowed.disk)


@dataclass(frozen=True)
class Limits:
    """What an option may take."""

    budget: float | None
    memory: int
    disk: int
    spent: float = 0.0
    """Seconds that reading and scanning the data took."""

    @property
    def closing(self) -> float:
        """Seconds that every option spends besides its own."""
        return self.spent + REPORT_SECONDS


def limits(session: Session, *, spent: float = 0.0) -> Limits:
    """Return what the recipe, the memory that is free and the disk allow."""
    memory = session.recipe.memory or resources.available_bytes(session.device) + resources.resident_bytes()
    disk = min(resources.free_disk_bytes(session.cache.root), session.cache.limit_bytes)
    return Limits(session.recipe.budget, memory, disk, spent)


def sizes(session: Session, card: Card) -> tuple[int, ...]:
    """Return the input sizes of the table, the measured one first: the smallest worth trying, and the weights' own."""
    given = session.recipe.data.image_size
    tried = choosing.sizes(card) if given is None else (given,)
    return tuple(dict.fromkeys((tried[0], tried[-1])))


def strategies(session: Session, num_groups: int) -> list[Choice]:
    """Return the strategies of the table: the recipe's own, or all of them at a few depths."""
    given = session.recipe.strategy
    if given.name is not None:
        return [given]
    names = [*ORDER, *(name for name in plugins.names("strategy") if name not in ORDER)]
    choices = [Choice(name, options) for name in names for options in DEPTHS.get(name, ({},))]
    return [choice for choice in choices if int(str(choice.options.get("depth", 0))) < num_groups]


def _profile(session: Session, data: Prepared, card: Card, seconds: float) -> Profile | WarmstartError:
    """Measure one backbone; what cannot be loaded, or takes no such pictures, is a row and no crash."""
    size = sizes(session, card)[0]
    try:
        with bench.taken(card.name, size):
            return forecast.profile(session, data, card.name, size, seconds=seconds)
    except WarmstartError as error:
        return error


def _rows(
    session: Session, data: Prepared, card: Card, found: Profile | WarmstartError, limits: Limits
) -> list[Option]:
    prior = catalogue.prior(card)
    if isinstance(found, WarmstartError):
        return [Option(card.name, None, "–", None, None, fits=False, reason=found.problem, prior=prior)]
    rows = []
    for size in sizes(session, card):
        profile = found if size == found.image_size else forecast.scaled(found, size)
        for choice in strategies(session, len(profile.network.parameters) - 1):
            cost, seconds, reason = affordable(profile, choice, load(session, data, limits), limits)
            name = " ".join((str(choice.name), *(f"{key}={value}" for key, value in choice.options.items())))
            rows.append(
                Option(card.name, size, name, cost, seconds, not reason, reason, prior, measured=profile is found)
            )
    return rows


def load(session: Session, data: Prepared, limits: Limits) -> Load:
    """Return how much this data and this recipe ask for."""
    recipe, splits = session.recipe, data.splits
    return Load(
        num_train=len(splits.train),
        num_val=len(splits.val),
        num_test=len(splits.test),
        epochs=recipe.epochs or MAX_EPOCHS,
        batch_size=recipe.batch_size,
        micro_batch=recipe.micro_batch,
        optimizer=recipe.optim.name,
        ema=recipe.ema is not None,
        views=recipe.data.views,
        augment=recipe.data.augment,
        num_fits=len(splits.folds) + 1,
        memory_bytes=limits.memory,
        disk_bytes=limits.disk,
    )


def affordable(profile: Profile, choice: Choice, load: Load, limits: Limits) -> tuple[Cost, float, str]:
    """Forecast an option in as many epochs as the budget allows, at most as many as are asked for.

    Returns:
        Its cost, the seconds of the whole command, and why it does not fit, or nothing.
    """
    most, least = load.epochs, 1
    cost = forecast.cost(profile, choice, load)
    if limits.budget is None or not cost.epochs:
        return _judged(cost, limits)
    while _judged(cost, limits)[2].startswith("budget") and most > least:
        room = SPARE * (limits.budget - limits.closing) - cost.fill_seconds - cost.evaluate_seconds
        most = max(least, min(most - 1, int(room / (cost.num_fits * cost.epoch_seconds))))
        cost = forecast.cost(profile, choice, replace(load, epochs=most))
    return _judged(cost, limits)


def _judged(cost: Cost, limits: Limits) -> tuple[Cost, float, str]:
    seconds = limits.closing + cost.seconds
    if not cost.fits:
        return cost, seconds, cost.reason
    if limits.budget is not None and limits.closing + cost.seconds / SPARE > limits.budget:
        what = "one epoch takes" if cost.epochs else "it takes"
        return cost, seconds, f"budget: {what} {_minutes(limits.closing + cost.seconds / SPARE)}"
    return cost, seconds, ""


def _ranked(options: Sequence[Option]) -> list[Option]:
    """Number the backbones by their prior, best first."""
    priors = sorted({option.prior for option in options if option.prior is not None}, reverse=True)
    places = {prior: place + 1 for place, prior in enumerate(priors)}
    return [replace(option, rank=None if option.prior is None else places[option.prior]) for option in options]


def _require_some(options: Sequence[Option], profiles: Sequence[Profile | WarmstartError], limits: Limits) -> None:
    """Refuse a plan without anything that fits, and say what would do.

    Raises:
        RecipeError, SourceError: See `plan`.
    """
    if any(option.fits for option in options):
        return
    failed = [found for found in profiles if isinstance(found, WarmstartError)]
    if len(failed) == len(profiles):
        raise SourceError(
            f"none of {len(profiles)} candidates can be loaded (first: {failed[0].problem})", failed[0].fix
        )
    late = [option for option in options if option.reason.startswith("budget")]
    if late:
        needed, first = min((_needed_seconds(option, limits), option) for option in late)
        raise RecipeError(
            f"no option fits budget={_minutes(limits.budget or 0.0)}; the quickest is {_name(first)} "
            f"in {_minutes(needed)}",
            f"--budget {_minutes(needed, up=True)}",
        )
    costed = [option for option in options if option.cost is not None]
    least = min(costed, key=lambda option: option.cost.peak_bytes if option.cost else 0)
    assert least.cost is not None
    bytes_needed = forecast.SAFETY * least.cost.peak_bytes
    if bytes_needed > limits.memory:
        raise RecipeError(
            f"no option fits memory={size_text(limits.memory)}; the smallest is {_name(least)} "
            f"with {size_text(round(bytes_needed))}",
            f"--memory {-(-bytes_needed // 10**7) / 100:g}GB",
        )
    leanest = min(option.cost.disk_bytes for option in costed if option.cost is not None)
    raise RecipeError(
        f"no option fits the {size_text(limits.disk)} of disk that the cache may use; the smallest needs "
        f"{size_text(leanest)}",
        "--cache-limit, or WARMSTART_CACHE on a larger disk",
    )


def _needed_seconds(option: Option, limits: Limits) -> float:
    assert option.cost is not None
    return limits.closing + option.cost.seconds / SPARE


def _name(option: Option) -> str:
    return f"{option.strategy} on {option.backbone} at {option.input_size} px"


def _minutes(seconds: float, *, up: bool = False) -> str:
    """Write a duration as the command line takes it."""
    whole = int(-(-UNEVEN * seconds // 5)) * 5 if up else round(seconds)
    return f"{whole}s" if whole < 120 else f"{-(-whole // 60) if up else round(whole / 60)}m"
