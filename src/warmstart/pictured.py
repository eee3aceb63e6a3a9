"""The pictures of a report: examples per class, cases of the audit, mistakes, and where the model looked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL.Image import Image

from warmstart import evaluation
from warmstart.data import SPLITS, images
from warmstart.judge import Judged
from warmstart.prepare import Prepared
from warmstart.reporting import facts as f
from warmstart.reporting import pictures

PER_CLASS = 4
MAX_CLASSES = 40
NUM_EXPLAINED = 6
CASES = 6


def classes(data: Prepared) -> dict[int, tuple[str, ...]]:
    """Return thumbnails of a few training examples of each class."""
    targets = data.dataset.targets
    assert targets is not None
    train = data.splits.train
    found = {}
    for at in range(min(data.task.num_outputs, MAX_CLASSES)):
        member = train[targets[train][:, at] if data.task.kind == "multi" else targets[train] == at]
        found[at] = _thumbnails(data, member[:PER_CLASS])
    return found


def some(data: Prepared) -> tuple[str, ...]:
    """Return thumbnails of a few training examples."""
    return _thumbnails(data, data.splits.train[: 2 * PER_CLASS])


def mistakes(data: Prepared, judged: Judged, limit: int) -> tuple[f.Mistake, ...]:
    """Show the most confidently wrong predictions, or the largest errors of a regression."""
    seen = judged.predictions
    told = []
    for at in evaluation.worst(data.task, seen, limit=limit):
        row = int(seen.index[at])
        values = seen.values[at]
        told.append(
            f.Mistake(
                id=str(data.dataset.ids[row]),
                true=_say(data.dataset[row].target),
                predicted=_say(judged.model.word(values)),
                picture=_thumbnail(data, row),
                confidence=float(values.max()) if data.task.kind == "single" else None,
            )
        )
    return tuple(told)


def explanations(data: Prepared, judged: Judged) -> tuple[tuple[f.Explanation, ...], str]:
    """Show where the model looked, half of them mistakes, half of them right; and say by which method.

    Nothing is shown of a network that was not built: on known features, building it would take most of the time.
    """
    if data.task.kind != "single" or not len(judged.predictions.index) or not judged.model.built:
        return (), ""
    import torch

    from warmstart.reporting import explain

    seen = judged.predictions
    wrong = evaluation.worst(data.task, seen, limit=NUM_EXPLAINED // 2)
    right = np.flatnonzero(seen.values.argmax(1) == seen.targets)[: NUM_EXPLAINED - len(wrong)]
    picks = np.concatenate([wrong, right]).astype(int)
    transform = judged.model.transform()
    squares = torch.stack([transform(_picture(data, int(seen.index[at]))) for at in picks])
    said = seen.values[picks].argmax(1)
    heat = explain.explain(judged.model.model, squares, torch.from_numpy(said))
    if heat is None:
        return (), ""
    told = tuple(
        f.Explanation(
            id=str(data.dataset.ids[int(seen.index[at])]),
            picture=pictures.thumbnail(_square(square), 224),
            overlay=pictures.overlay(_square(square), map_),
            predicted=data.task.class_names[int(name)],
            true=_say(data.dataset[int(seen.index[at])].target),
            confidence=float(seen.values[at].max()),
        )
        for at, square, name, map_ in zip(picks, squares, said, np.asarray(heat), strict=True)
    )
    return told, explain.method(judged.model.model, squares)


def audit(data: Prepared, seconds: float) -> f.AuditFacts:
    """Show what the audit found, with pictures of a few cases."""
    report = data.report
    findings = tuple(
        f.Finding(
            name=found.name,
            status=found.status,
            count=found.count,
            text=found.text,
            across=found.across,
            cases=cases(data, found.cases),
            names=found.names[:20],
        )
        for found in report.findings
    )
    return f.AuditFacts(findings, len(data.dataset) + len(report.quarantined), seconds, report.to_json())


def shown(data: Prepared, row: int) -> f.Shown:
    """Show one example with its label and split."""
    split = next((name for name in SPLITS if row in data.splits.rows(name)), "")
    return f.Shown(str(data.dataset.ids[row]), _thumbnail(data, row), _say(data.dataset[row].target), split)


def cases(data: Prepared, groups: Iterable[Sequence[int]]) -> tuple[tuple[f.Shown, ...], ...]:
    """Show a few groups of rows that belong together."""
    return tuple(tuple(shown(data, int(row)) for row in group[:4]) for group in list(groups)[:CASES])


def _thumbnails(data: Prepared, rows: np.ndarray) -> tuple[str, ...]:
    return tuple(found for row in rows if (found := _thumbnail(data, int(row))))


def _thumbnail(data: Prepared, row: int) -> str:
    try:
        return pictures.thumbnail(_picture(data, row))
    except images.Unreadable:
        return ""


def _picture(data: Prepared, row: int) -> Image:
    return images.open_picture(data.dataset.inputs[row])


def _square(pixels: object) -> Image:
    import PIL.Image

    return PIL.Image.fromarray(np.moveaxis(np.asarray(pixels), 0, -1))


def _say(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(_say(part) for part in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
