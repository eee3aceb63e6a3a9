"""Facts → README.md, a model card the way model hubs read it: YAML front matter, then Markdown for people."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable

from warmstart.reporting import render, words
from warmstart.reporting.facts import Facts
from warmstart.tasks import Metric

MOST_CLASSES = 50
SPDX = {  # licence names of model hubs are lower-case SPDX ids
    "apache-2.0": "apache-2.0",
    "apache license 2.0": "apache-2.0",
    "mit": "mit",
    "bsd": "bsd",
    "bsd-3-clause": "bsd-3-clause",
    "bsd-2-clause": "bsd-2-clause",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0": "cc-by-nc-sa-4.0",
    "cc0-1.0": "cc0-1.0",
}


def markdown(facts: Facts) -> str:
    """Write the model card.

    Returns:
        Markdown with YAML front matter (licence, base model, tags, metrics), intended use, training data, evaluation
        with intervals and counts, limits and use.
    """
    parts = [
        front_matter(facts),
        f"# {_text(facts.answer.run or facts.answer.data_name)}\n\n{_text(words.headline(facts.answer))}.",
        _use(facts),
        _training(facts),
        _evaluation(facts),
        _limits(facts),
        _origin(facts),
        _usage(facts),
        "The whole story is in [report.html](report.html), every number in [report.json](report.json).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(facts: Facts) -> str:
    """Write the YAML block; strings are JSON strings, which YAML reads as they are."""
    answer = facts.answer
    licence = str(facts.card.get("licence") or "")
    known = SPDX.get(licence.lower())
    lines = ["---", "library_name: warmstart", f"license: {known or 'other'}"]
    if not known:
        lines.append(f"license_name: {json.dumps(licence or 'unknown', ensure_ascii=False)}")
    pipeline = "image-classification" if answer.kind in ("single", "multi") else "image-feature-extraction"
    lines += [f"pipeline_tag: {pipeline}", "tags:", f"- {pipeline}"]
    lines += [f"- {json.dumps(tag, ensure_ascii=False)}" for tag in ("transfer-learning", answer.strategy, answer.kind)]
    lines += ["model-index:", f"- name: {json.dumps(answer.run or answer.data_name, ensure_ascii=False)}"]
    lines += ["  results:", "  - task:", f"      type: {pipeline}", "    dataset:"]
    lines += [f"      name: {json.dumps(answer.data_name, ensure_ascii=False)}", "      type: local"]
    lines += _index(_measured(facts))
    return "\n".join([*lines, "---"])


def _index(metrics: Iterable[Metric]) -> list[str]:
    rows = []
    for item in metrics:
        name = f"{words.metric(item.name).label} ({item.split}, n={item.n}, 95% {words.interval(item)})"
        rows += [f"    - type: {json.dumps(item.name)}", f"      value: {item.value:.6g}"]
        rows.append(f"      name: {json.dumps(name, ensure_ascii=False)}")
    return ["    metrics:", *rows] if rows else ["    metrics: []"]


def _measured(facts: Facts) -> list[Metric]:
    """Return the metrics of the answer's split; the answer's own one first."""
    first = facts.answer.metric
    if first is None:
        return []
    rest = [item for item in facts.metrics if item.split == first.split and item.name != first.name]
    return [item for item in (first, *rest) if math.isfinite(item.value)]


def _use(facts: Facts) -> str:
    answer = facts.answer
    size = f", at {answer.input_size} × {answer.input_size} pixels" if answer.input_size else ""
    names = [item.name for item in facts.data.classes]
    kind = "Targets" if answer.kind == "vector" else "Classes"
    shown = ", ".join(_text(name) for name in names[:MOST_CLASSES])
    more = f" and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else ""
    made = f"backbone `{_code(answer.backbone)}`, strategy `{_code(answer.strategy)}`{size}"
    lines = ["## Intended use", f"{_text(words.subject(answer))}: {made}."]
    return "\n\n".join(lines + ([f"{kind}: {shown}{more}."] if names else []))


def _training(facts: Facts) -> str:
    splits, data = facts.splits, facts.data
    lines = ["## Training data", f"{_text(facts.answer.data_name)}: {words.plural(data.num_examples, 'example')}."]
    if splits.train:
        counts = f"{splits.train:,} train, {splits.val:,} val, {splits.test:,} test"
        mark = f", fingerprint `{_code(splits.fingerprint)}`" if splits.fingerprint else ""
        lines.append(f"Splits: {counts}{mark}. {_text(splits.origin)}")
    lines.append(f"Licence of the data: {_text(data.licence or 'not known to warmstart')}.")
    found = [f"- {_text(x.name)}: {x.count:,}. {_text(x.text)}" for x in facts.audit.findings if x.count]
    return "\n\n".join([*lines, *(["What the audit found:\n\n" + "\n".join(found)] if found else [])])


def _evaluation(facts: Facts) -> str:
    if not facts.metrics:
        return ""
    rows = [
        f"| {_text(words.metric(m.name).label)} | {_text(m.split)} | {words.value(m)} | "
        f"{words.interval(m) if words.has_interval(m) else words.MISSING} | {m.n:,} |"
        for m in facts.metrics
    ]
    table = "\n".join(["| metric | split | value | 95 % interval | n |", "|---|---|---|---|---|", *rows])
    opened = words.openings(facts.answer.test_openings)
    after = f"Choices were made on val; test was {opened}."
    return "\n\n".join(
        ["## Evaluation", table, after, *([_text(facts.answer.verdict)] if facts.answer.verdict else [])]
    )


def _limits(facts: Facts) -> str:
    listed = [*words.cautions(facts), *words.limits(facts)]
    return "## Limits\n\n" + "\n".join(f"- {_text(limit)}" for limit in listed)


def _origin(facts: Facts) -> str:
    rows = [f"- {name}: {_text(known)}" for name, known in render.card_rows(facts.card)]
    return "## Where the weights come from\n\n" + "\n".join(rows) if rows else ""


def _usage(facts: Facts) -> str:
    blocks = [f"{_text(item.title)}:\n\n{_fence(item.code, item.language)}" for item in facts.usage]
    return "\n\n".join(["## How to use", *blocks]) if blocks else ""


def _fence(code: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def _text(words_: str) -> str:
    """Make names harmless in Markdown: no HTML, no table cells, no line breaks, no markup."""
    flat = " ".join(words_.split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", flat)


def _code(name: str) -> str:
    return " ".join(name.split()).replace("`", "'").replace("|", "/")
