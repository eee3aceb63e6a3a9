"""Write docs/reference from the plug-ins themselves: `python docs/build_reference.py`; a test says when to do so."""
# ruff: noqa: INP001 - a script, not a package

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from pathlib import Path

from warmstart import plugins

FOLDER = Path(__file__).parent / "reference"
TITLES = {"strategy": "Strategies", "task": "Tasks", "reader": "Readers", "source": "Sources", "score": "Scores"}
FOLDERS = {kind: title.lower() for kind, title in TITLES.items()}
EXAMPLES = {
    "strategy": "warmstart finetune photos/ --strategy {name}",
    "task": "warmstart run labels.csv --task {name}",
    "reader": "warmstart audit DATA --reader {name}",
    "source": "warmstart run photos/ --backbone {example}",
}
BACKBONES = {
    "local": "local/NAME",
    "package": "package/efficientnet_lite0",
    "random": "random/resnet18",
    "stack": "stack/package/efficientnet_lite0@224+package/mobilenet_v2@160",
    "timm": "timm/resnet50",
    "torchvision": "torchvision/resnet50",
}
SCORING = """\
```python
from sklearn.datasets import load_digits

{imports}from warmstart.scores import Evidence, measure

digits = load_digits()
{before}evidence = Evidence(digits.target[:200], {evidence})
value = measure("{name}", evidence)
```"""
EVIDENCE = {
    "features": "features=digits.data[:200]",
    "source_probabilities": "source_probabilities=said",
    "card": 'card=Card("package/mobilenet_v2", accuracy=71.9)',
}
SAID = "said = digits.data[:200] / digits.data[:200].sum(1, keepdims=True)\n"
"""Stands for the probabilities of the weights' own classes."""
SECTIONS = ("Needs", "Relations", "Cost", "Example", "Notes")


def pages() -> dict[str, str]:
    """Return every page by its path below docs/reference."""
    found = {"README.md": _index()}
    for kind, folder in FOLDERS.items():
        for name in plugins.names(kind):
            found[f"{folder}/{name}.md"] = page(kind, name)
    return found


def page(kind: str, name: str) -> str:
    """Return the page of one plug-in: what it is, when to use it, its options, an example, its background."""
    plugin = plugins.load(kind, name)
    module = inspect.getdoc(inspect.getmodule(plugin)) or ""
    told = inspect.getdoc(plugin) or ""
    parts = [f"# {name}", _prose(told), *_options(kind, plugin), *_example(kind, name)]
    background = module.partition("\n")[2].strip()
    if background:
        parts += ["## Background", background]
    return "\n\n".join(parts) + "\n"


def _index() -> str:
    lines = ["# Reference", "", "One page per plug-in, written from its source by `python docs/build_reference.py`."]
    for kind, folder in FOLDERS.items():
        lines += ["", f"## {TITLES[kind]}", ""]
        for name in plugins.names(kind):
            lines.append(f"- [{name}]({folder}/{name}.md): {plugins.summary(plugins.load(kind, name))}")
    return "\n".join(lines) + "\n"


def _prose(told: str) -> str:
    """Turn the sections of a docstring into headings."""
    lines: list[str] = []
    for line in told.splitlines():
        title = line.removesuffix(":")
        if line.endswith(":") and title in SECTIONS:
            lines += [f"## {title}", ""]
        else:
            lines.append(re.sub(r"^ {4}", "", line))
    return "\n".join(lines).strip()


def _options(kind: str, plugin: type) -> list[str]:
    found = plugins.options(plugin)
    if not found:
        return ["## Options", "None."]
    hints = plugins.option_types(plugin)
    prefix = f"{kind}." if kind in ("strategy", "task") else ""
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for option in found:
        default = "open" if option.default is None else f"`{_plain(option.default)}`"
        cells = (f"`{prefix}{option.name}`", _type(hints[option.name]), default, option.description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return ["## Options", "\n".join(rows)]


def _type(hint: object) -> str:
    """Write a type for people: the words of a Literal, or the type's name; None goes without saying."""
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{word}`" for word in parts)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return ", ".join(_type(part) for part in parts)
    return f"`{hint.__name__}`" if isinstance(hint, type) and not parts else f"`{hint}`"


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _example(kind: str, name: str) -> tuple[str, str]:
    if kind == "score":
        needs = plugins.load(kind, name).needs  # type: ignore[attr-defined]
        evidence = ", ".join(EVIDENCE[need] for need in needs)
        imports = "from warmstart.models import Card\n" if "card" in needs else ""
        before = SAID if "source_probabilities" in needs else ""
        return "## In Python", SCORING.format(name=name, imports=imports, evidence=evidence, before=before)
    example = EXAMPLES[kind].format(name=name, example=BACKBONES.get(name, f"{name}/NAME"))
    return "## On the command line", f"```\n{example}\n```"


def main() -> None:
    """Write the pages and remove those of plug-ins that are gone."""
    wanted = pages()
    for old in FOLDER.rglob("*.md"):
        if str(old.relative_to(FOLDER)) not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(text, encoding="utf-8")
    sys.stdout.write(f"{len(wanted)} pages in {FOLDER}\n")


if __name__ == "__main__":
    main()
