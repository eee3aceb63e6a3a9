"""What there is of each kind, and which backbones to choose among, told from cards: no framework is imported."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from warmstart import plugins, runtime, sources
from warmstart.errors import RecipeError, SourceError, closest, listed
from warmstart.models import Card
from warmstart.sources import _here

log = logging.getLogger(__name__)
Licence = Literal["any", "permissive"]
KINDS = {f"{kind}s" if kind != "strategy" else "strategies": kind for kind in plugins.FOLDERS}
PERMISSIVE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "cc0-1.0", "pddl-1.0", "cc-by-4.0")
"""Licences, in lower case, that let anybody use weights for anything, attribution at most; an unknown one is none."""
DEFAULTS = {
    "image": (
        "package/mobilenet_v2",
        "package/efficientnet_lite0",
        "package/efficientnet_lite1",
        "package/efficientnet_lite2",
        "package/vit_small_dinov2_saliency",
        "timm/mobilenetv3_large_100.ra_in1k",
        "timm/mobilenetv4_conv_small.e2400_r224_in1k",
        "timm/efficientnet_b0.ra_in1k",
        "timm/tf_efficientnetv2_b0.in1k",
        "timm/mobilenetv4_conv_medium.e500_r256_in1k",
        "timm/resnet18.a1_in1k",
        "timm/resnet50.a1_in1k",
        "timm/convnext_atto.d2_in1k",
        "timm/convnext_nano.in12k_ft_in1k",
        "timm/convnext_tiny.in12k_ft_in1k",
        "timm/convnext_small.in12k_ft_in1k",
        "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
        "timm/vit_small_patch14_dinov2.lvd142m",
        "timm/vit_base_patch14_dinov2.lvd142m",
    )
}
"""Per modality: permissive, of many sizes, trained in different ways, each the best or the usual one of its size."""
MOST_FETCHED = 24
"""How many candidates of a pattern are brought from a server at most, best by `prior` first."""
FETCH_SECONDS = 30.0
"""Seconds of budget that each of them needs at least."""
MACS_PER_SECOND = {"cpu": 1e7, "cuda": 1e9, "mps": 1e8}
"""Multiply-adds of one picture that a second of budget allows: a thousand pictures then take a quarter of it, at 4e10 a
second on a modest processor. Measuring knows better; this only leaves out what could not even begin."""
LICENCES = ("any", "permissive")
COLUMNS = ("name", "params", "MACs", "size", "accuracy", "licence", "here", "trained on")
NUMBERS = ("params", "MACs", "size", "accuracy")
GLOBS = "*?["
SIZE_SLOPE, USUAL_PARAMS = 0.05, 25e6


def candidates(
    patterns: str | None,
    *,
    max_params: int | None = None,
    licence: Licence = "any",
    kind: str = "image",
    local_only: bool = False,
    budget_seconds: float | None = None,
) -> list[Card]:
    """Return the cards of the backbones to choose among, the cheapest forward pass first.

    Without patterns the default set of the modality: what is on this machine, and what a package brings when pip's
    index answers (one question of at most two seconds, and only when something is missing). Weights of a hub take part
    when they are on this machine, when their full name is given, or, unless `local_only`, when a pattern matches them
    and the hub answers; then at most `MOST_FETCHED` of them, those of the best prior. Nothing is loaded.

    Args:
        patterns: Comma list of names and globs, such as `timm/resnet50,package/*`; a name without tag is its default.
        max_params: Most parameters; a backbone whose number is unknown is left out.
        licence: "permissive" leaves out every licence that is not in `PERMISSIVE`, and unknown ones.
        kind: Modality, for the default set.
        local_only: Patterns take nothing from a hub.
        budget_seconds: Leaves out what cannot even begin in this time; never what was named in full.

    Raises:
        RecipeError: A pattern that matches nothing, or limits that leave nothing.
        SourceError: Nothing that matches is on this machine or within reach.
    """
    named, matched = _matching(patterns, kind)
    named, matched = _limited(named, matched, max_params, licence)
    found = {card.name: card for card in named}
    found |= {card.name: card for card in _obtainable(matched, patterns, local_only, budget_seconds, bool(named))}
    return sorted(found.values(), key=SORTS["macs"])


def check(patterns: str, *, max_params: int | None = None, licence: Licence = "any", kind: str = "image") -> None:
    """Refuse patterns that match nothing and limits that leave nothing, within a moment and without network.

    Raises:
        RecipeError: See `candidates`.
    """
    _limited(*_matching(patterns, kind), max_params, licence)


def prior(card: Card) -> float | None:
    """Estimate how well a backbone will transfer from published facts alone, in points of 0 to 100; higher is better.

    The published top-1 p, moved a little by the number of parameters n: logit(prior) = logit(p) + 0.05·log10(n / 25 M).
    Kornblith et al. 2019 (arXiv 1805.08974) found ImageNet accuracy to rank transfer almost alone; the slope is what
    remains of size in timm's tables at equal accuracy (docs/decisions/0320-prior.md).

    Returns:
        None when no accuracy is published; 0 for random weights, below every published one.

    Example:
        >>> round(prior(Card("timm/x", num_params=25_000_000, accuracy=80.0)), 3)
        80.0
    """
    if card.name.startswith("random/"):
        return 0.0
    if card.accuracy is None:
        return None
    size = SIZE_SLOPE * math.log10((card.num_params or USUAL_PARAMS) / USUAL_PARAMS)
    odds = card.accuracy / (100 - card.accuracy) * math.exp(size)
    return 100 * odds / (1 + odds)


def _down(value: float | None) -> float:
    return math.inf if value is None else -value


def _up(value: float | None) -> float:
    return math.inf if value is None else value


SORTS: Mapping[str, Callable[[Card], tuple[float, str]]] = {
    "name": lambda card: (0.0, card.name),
    "params": lambda card: (_up(card.num_params), card.name),
    "macs": lambda card: (_up(card.macs), card.name),
    "accuracy": lambda card: (_down(card.accuracy), card.name),
    "prior": lambda card: (_down(prior(card)), card.name),
}


def here(card: Card) -> bool:
    """Say whether the weights of a card are on this machine, without network and without loading them."""
    return _here.here(card)


def permissive(licence: str | None) -> bool:
    """Say whether a licence lets anybody use the weights for anything; an unknown one does not.

    Example:
        >>> permissive("Apache-2.0"), permissive("cc-by-nc-4.0"), permissive(None), permissive("mit AND gpl-3.0")
        (True, False, False, False)
    """
    return all(one in PERMISSIVE for one in (licence or "").lower().split(" and "))


def cards() -> tuple[Card, ...]:
    """Return the cards of every source, source by source."""
    return tuple(card for source in plugins.names("source") for card in plugins.load("source", source)().available())


def backbones(
    pattern: str = "",
    *,
    max_params: int | None = None,
    licence: str = "any",
    source: str | None = None,
    only_here: bool = False,
    sort: str = "name",
) -> list[Card]:
    """List the backbones of the sources.

    Args:
        pattern: A glob or a part of a name; upper and lower case alike.
        max_params: Most parameters; a backbone whose number is unknown is left out.
        licence: "any" or "permissive".
        source: Only those of this source.
        only_here: Only those whose weights are on this machine.
        sort: One of `SORTS`: small ones first, good ones first; those without the fact last.

    Raises:
        RecipeError: An unknown source, licence filter or sort key, or a pattern that matches nothing.
    """
    if sort not in SORTS:
        raise RecipeError(f"cannot sort backbones by {sort!r}", closest(sort, SORTS))
    if licence not in LICENCES:
        raise RecipeError(f"licence={licence!r} is no filter (expected any or permissive)", "--licence permissive")
    everything = cards() if source is None else plugins.load("source", source)().available()
    found = [card for card in everything if _matches(card, pattern)]
    if pattern and not found:
        raise _unmatched(pattern, (card.name for card in everything))
    kept = [
        card
        for card in found
        if (max_params is None or (card.num_params is not None and card.num_params <= max_params))
        and (licence == "any" or permissive(card.licence))
        and (not only_here or here(card))
    ]
    return sorted(kept, key=SORTS[sort])


def facts(card: Card) -> dict[str, object]:
    """Return what is known of a backbone, ready for JSON: its card, its prior, and whether its weights are here."""
    return {**card.to_json(), "prior": prior(card), "here": here(card)}


def table(found: Sequence[Card]) -> list[str]:
    """Write backbones as aligned lines under a heading."""
    if not found:
        return ["no backbone passes these filters"]
    rows = [COLUMNS, *(_row(card) for card in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_aligned(*cell) for cell in zip(row, widths, COLUMNS, strict=True)).rstrip() for row in rows]


def rows(kind: str, pattern: str = "") -> list[dict[str, object]]:
    """List the plug-ins of a kind: `name` and `about`.

    Raises:
        RecipeError: No such kind.
    """
    if kind not in KINDS:
        raise RecipeError(f"there are no {kind!r} to list", closest(kind, ["backbones", *KINDS]))
    singular = KINDS[kind]
    names = [name for name in plugins.names(singular) if pattern in name]
    return [{"name": name, "about": plugins.summary(plugins.load(singular, name))} for name in names]


def _matches(card: Card, pattern: str) -> bool:
    """A glob is about whole names, or names without tag where they mean these weights; else a part is enough."""
    name, pattern = card.name.lower(), pattern.lower()
    if not _is_glob(pattern):
        return pattern in name
    return fnmatchcase(name, pattern) or (card.default and fnmatchcase(_bare(card).lower(), pattern))


def _is_glob(pattern: str) -> bool:
    return any(mark in pattern for mark in GLOBS)


def _row(card: Card) -> tuple[str, ...]:
    accuracy = "" if card.accuracy is None else f"{card.accuracy:.1f}"
    known = (short(card.num_params), short(card.macs), str(card.spec.image_size), accuracy, card.licence or "unknown")
    return (card.name, *known, "yes" if here(card) else "", card.trained_on or "")


def _aligned(text: str, width: int, column: str) -> str:
    return text.rjust(width) if column in NUMBERS else text.ljust(width)


def short(count: int | None) -> str:
    """Write a count for people, nothing when it is unknown.

    Example:
        >>> short(25_557_032), short(4_089_184_256), short(None)
        ('25.6 M', '4.1 G', '')
    """
    if count is None:
        return ""
    return f"{count / 1e9:.1f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _matching(patterns: str | None, kind: str) -> tuple[list[Card], list[Card]]:
    """Split what the patterns mean into what was named in full and what a pattern, or the default set, brought.

    Raises:
        RecipeError: No default set for this modality, or a pattern that matches nothing.
    """
    known = cards()
    by_name = {card.name: card for card in known}
    if patterns is None:
        if kind not in DEFAULTS:
            raise RecipeError(f"there are no default candidates for {kind!r}", closest(kind, DEFAULTS))
        return [], [by_name[name] for name in DEFAULTS[kind] if name in by_name]
    by_name |= {_bare(card): card for card in known if card.default}
    named, matched = [], []
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        if _is_glob(pattern):
            some = [card for card in known if _matches(card, pattern)]
            if not some:
                raise _unmatched(pattern, by_name)
            matched += some
        else:
            named.append(by_name[pattern] if pattern in by_name else _unlisted(pattern, by_name))
    if not named and not matched:
        raise RecipeError(f"candidates={patterns!r} names no backbone", '--candidates "package/*,timm/resnet50"')
    return named, matched


def _bare(card: Card) -> str:
    """Return the name without its tag: `timm/resnet50` of `timm/resnet50.a1_in1k`."""
    source, _, rest = card.name.partition("/")
    return f"{source}/{rest.partition(':' if ':' in rest else '.')[0]}"


def _unlisted(name: str, known: Iterable[str]) -> Card:
    """Return the card of a folder or of random weights, which no list has.

    Raises:
        RecipeError: There is none either.
    """
    if name.startswith("random/") or Path(name).expanduser().exists():
        return sources.card(name)
    raise _unmatched(name, known)


def _unmatched(pattern: str, known: Iterable[str]) -> RecipeError:
    bare = pattern.translate(dict.fromkeys(map(ord, GLOBS + "]")))
    fix = closest(bare, known)
    return RecipeError(
        f"no backbone matches {pattern!r}", fix if fix.startswith("did you mean") else "warmstart list backbones"
    )


def _limited(
    named: Sequence[Card], matched: Sequence[Card], max_params: int | None, licence: Licence
) -> tuple[list[Card], list[Card]]:
    """Leave out what is too large or not permissively licensed.

    Raises:
        RecipeError: That leaves nothing.
    """
    everyone = {card.name: card for card in (*named, *matched)}
    kept = dict(everyone)
    if licence == "permissive":
        kept = {name: card for name, card in everyone.items() if permissive(card.licence)}
        if not kept:
            first = next(iter(everyone.values()))
            raise RecipeError(
                f"licence=permissive leaves none of {len(everyone)} candidates "
                f"(first: {first.name}, licence {first.licence or 'unknown'})",
                "--licence any, or other --candidates; warmstart list backbones --licence permissive",
            )
    if max_params is not None:
        before, kept = kept, {n: c for n, c in kept.items() if c.num_params is not None and c.num_params <= max_params}
        if not kept:
            raise _all_too_large(list(before.values()), max_params)
    if dropped := [card.name for card in named if card.name not in kept]:
        log.info("left out by max_params or licence: %s", listed(dropped))
    return [card for card in named if card.name in kept], [card for card in matched if card.name in kept]


def _all_too_large(found: Sequence[Card], max_params: int) -> RecipeError:
    sized = [(card.num_params, card.name) for card in found if card.num_params is not None]
    if not sized:
        names = listed([card.name for card in found], 3)
        return RecipeError(
            f"max_params={max_params:,}, but the number of parameters of no candidate is known ({names})",
            "leave out --max-params",
        )
    num_params, name = min(sized)
    return RecipeError(
        f"max_params={max_params:,} leaves none of {len(found)} candidates; "
        f"the smallest is {name} with {num_params:,} parameters",
        f"--max-params {math.ceil(num_params / 1e5) / 10:g}M, or other --candidates",
    )


def _obtainable(
    matched: Sequence[Card], patterns: str | None, local_only: bool, budget: float | None, named: bool
) -> list[Card]:
    """Keep what is here, and what may be fetched and can be.

    Raises:
        SourceError: Nothing remains, and nothing was named in full.
    """
    local = [card for card in matched if here(card)]
    present = {card.name for card in local}
    from_hubs = patterns is not None and not local_only
    missing = [c for c in matched if c.name not in present and (from_hubs or (c.url or "").startswith("pkg:"))]
    fetched = _best([card for card in missing if _here.within_reach(card)], budget)
    found = _affordable([*local, *fetched], budget)
    if matched and not found and not named:
        first = min(matched, key=lambda card: card.num_params or math.inf).name
        raise SourceError(
            f"no weights of {len(matched)} candidates are on this machine, and no network",
            f"run `warmstart fetch {first}` on a connected machine and copy its folder",
        )
    return found


def _best(found: Sequence[Card], budget: float | None) -> list[Card]:
    """Keep so many as are worth fetching, best by prior first."""
    most = MOST_FETCHED if budget is None else max(1, min(MOST_FETCHED, int(budget / FETCH_SECONDS)))
    if len(found) > most:
        log.info("%d candidates would have to be fetched; the best %d by published accuracy are", len(found), most)
    return sorted(found, key=SORTS["prior"])[:most]


def _affordable(found: Sequence[Card], budget: float | None) -> list[Card]:
    """Leave out what cannot even begin within the budget, but never the cheapest."""
    if budget is None or not found:
        return list(found)
    pace = MACS_PER_SECOND[runtime.pick_device("auto").type]
    most = max(budget * pace, min(card.macs or math.inf for card in found))
    return [card for card in found if (card.macs or math.inf) <= most]
