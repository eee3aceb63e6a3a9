"""ImageNet's folders (ILSVRC 2012): train/<wnid>, and val either the same way or flat with a solution file."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from warmstart.data import Dataset, files
from warmstart.errors import DataError, listed

WNID = re.compile(r"n\d{8}")
NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt")
SOLUTION = "LOC_val_solution.csv"
KAGGLE = Path("ILSVRC/Data/CLS-LOC")


@dataclass(frozen=True)
class Imagenet:
    """Reads train/<wnid>/*.JPEG with classes in the order of their WordNet ids, as published models have them."""

    def matches(self, path: Path) -> bool:
        """Say whether train/ holds folders named by WordNet ids."""
        train = _root(path) / "train"
        return train.is_dir() and any(WNID.fullmatch(name) for name in files.folders(train))

    def read(self, path: Path) -> Dataset:
        """List train and val; class names come from LOC_synset_mapping.txt or synset_words.txt where there is one.

        Raises:
            DataError: No pictures, or a class in val that train does not have.
        """
        root = _root(path)
        wnids = [name for name in files.folders(root / "train") if WNID.fullmatch(name)]
        solution = _solution(path, root)
        ids, targets = [], []
        notes: list[str] = []
        unknown: Counter[str] = Counter()
        number = {wnid: at for at, wnid in enumerate(wnids)}
        names = [
            name
            for part in ("train", "val")
            if (root / part).is_dir()
            for name in sorted(files.list_pictures(root / part, f"{part}/").names)
        ]
        for name in names:
            parts = name.split("/")
            wnid = parts[1] if len(parts) > 2 else solution.get(Path(parts[-1]).stem, f"{parts[0]}/ without a class")
            if wnid in number:
                ids.append(name)
                targets.append(number[wnid])
            else:
                unknown[wnid] += 1
        _note_unknown(unknown, wnids, notes)
        if not ids:
            raise DataError(f"no pictures in {root / 'train'}", "unpack the archive of each class into its folder")
        return Dataset(
            ids,
            files.Paths(root, ids),
            "single",
            np.array(targets, np.int64),
            _class_names(path, root, wnids),
            given_split=np.array([name.partition("/")[0] for name in ids]),
            name=path.resolve().name,
            notes=tuple(notes),
        )


def _root(path: Path) -> Path:
    return path / KAGGLE if (path / KAGGLE / "train").is_dir() else path


def _note_unknown(unknown: Counter[str], wnids: list[str], notes: list[str]) -> None:
    strangers = sorted(wnid for wnid in unknown if WNID.fullmatch(wnid))
    if strangers:
        raise DataError(
            f"{len(strangers)} classes of val are not among the {len(wnids)} of train ({listed(strangers)})",
            "add them to train, or remove them from val",
        )
    notes += [f"{count} pictures in {where} are left out" for where, count in unknown.items()]


def _solution(path: Path, root: Path) -> dict[str, str]:
    """Read which class each picture of a flat val/ shows: `ILSVRC2012_val_00048981,n03995372 85 1 499 272`."""
    for folder in (path, root):
        if (folder / SOLUTION).is_file():
            with (folder / SOLUTION).open(newline="", encoding="utf-8") as file:
                return {row[0]: row[1].split()[0] for row in csv.reader(file) if len(row) > 1 and row[1].strip()}
    return {}


def _class_names(path: Path, root: Path, wnids: list[str]) -> tuple[str, ...]:
    """Return the first word for each class, with its WordNet id where two classes share the word."""
    words = _words(path, root)
    names = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    count = Counter(names)
    return tuple(name if count[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True))


def _words(path: Path, root: Path) -> dict[str, str]:
    for folder in (path, root):
        for name in NAME_FILES:
            if (folder / name).is_file():
                lines = (folder / name).read_text("utf-8").splitlines()
                return {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines if " " in line}
    return {}


PLUGIN = Imagenet
