"""What there is of each kind, for `warmstart list`, without importing a framework where a table will do."""

from __future__ import annotations

from warmstart import plugins
from warmstart.errors import RecipeError, closest

KINDS = {f"{kind}s" if kind != "strategy" else "strategies": kind for kind in plugins.FOLDERS}


def rows(kind: str, pattern: str = "") -> list[dict[str, object]]:
    """List what there is of a kind: `name` and `about`, and for backbones their facts.

    Raises:
        RecipeError: No such kind.
    """
    if kind == "backbones":
        return _backbones(pattern)
    if kind not in KINDS:
        raise RecipeError(f"there are no {kind!r} to list", closest(kind, ["backbones", *KINDS]))
    singular = KINDS[kind]
    names = [name for name in plugins.names(singular) if pattern in name]
    return [{"name": name, "about": plugins.summary(plugins.load(singular, name))} for name in names]


def _backbones(pattern: str) -> list[dict[str, object]]:
    found = []
    for source in plugins.names("source"):
        for card in plugins.load("source", source)().available():
            if pattern in card.name:
                millions = "" if card.num_params is None else f"{card.num_params / 1e6:.1f} M"
                about = "  ".join(part for part in (millions, card.licence or "", card.trained_on or "") if part)
                found.append({**card.to_json(), "about": about})
    return found
