"""Pictures in a folder per class, whole or already split into train, val and test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from warmstart.data import SPLITS, Dataset, SplitName, files
from warmstart.data.targets import single
from warmstart.errors import DataError, listed

SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class ImageFolder:
    """Reads CLASS/picture.jpg, or train|val|test/CLASS/picture.jpg; nested folders belong to their class.

    A folder that holds only pictures gives a dataset without targets, for prediction.
    """

    general: ClassVar[bool] = True
    """Any folder may be one of pictures, so a reader that recognises more goes first."""

    def matches(self, path: Path) -> bool:
        """Say whether this is a folder."""
        return path.is_dir()

    def read(self, path: Path) -> Dataset:
        """List the pictures; ids are paths relative to the folder, sorted.

        Raises:
            DataError: No pictures, or two folders that mean the same split.
        """
        listing = files.list_pictures(path)
        splits = _split_folders(path)
        names, classes, given, notes = _sorted_out(sorted(listing.names), splits)
        if listing.others:
            notes.append(f"{listing.others} files are no pictures by their suffix and are left out")
        if not names:
            raise _empty(path, listing)
        dataset = Dataset(
            names,
            files.Paths(path, names),
            given_split=np.array(given) if splits else None,
            name=path.resolve().name,
            quarantined=tuple(listing.unnamed),
            notes=tuple(notes),
        )
        if classes is None:
            return dataset
        found = single(classes)
        return replace(dataset, kind=found.kind, targets=found.values, class_names=found.class_names)


def _split_folders(path: Path) -> dict[str, SplitName]:
    """Map folders to splits when the folder is a split one: train together with val or test."""
    known = {name: SPLIT_FOLDERS[name.lower()] for name in files.folders(path) if name.lower() in SPLIT_FOLDERS}
    for split in SPLITS:
        same = [name for name, meaning in known.items() if meaning == split]
        if len(same) > 1:
            raise DataError(f"folders {listed(same)} in {path} both mean {split}", f"keep one of them, named {split}")
    return known if "train" in known.values() and len(known) > 1 else {}


def _sorted_out(
    names: list[str], splits: dict[str, SplitName]
) -> tuple[list[str], list[str] | None, list[str], list[str]]:
    """Sort names into (kept names, their classes, their splits, notes)."""
    depth = 2 if splits else 1
    if not splits and not any("/" in name for name in names):
        return names, None, [], ["no folder per class: pictures without targets"] if names else []
    kept, classes, given = [], [], []
    loose: dict[str, int] = {}
    for name in names:
        parts = name.split("/")
        if splits and parts[0] not in splits:
            loose[parts[0] if len(parts) > 1 else "."] = loose.get(parts[0] if len(parts) > 1 else ".", 0) + 1
        elif len(parts) <= depth:
            folder = "/".join(parts[:-1]) or "."
            loose[folder] = loose.get(folder, 0) + 1
        else:
            kept.append(name)
            classes.append(parts[depth - 1])
            given.append(splits.get(parts[0], ""))
    notes = [f"{count} pictures in {folder}/ belong to no class and are left out" for folder, count in loose.items()]
    return kept, classes, given, notes


def _empty(path: Path, listing: files.Listing) -> DataError:
    found = f"{listing.others} other files" if listing.others else "nothing"
    return DataError(
        f"no pictures for classes in {path} (found {found}), "
        "expected CLASS/picture.jpg or train|val|test/CLASS/picture.jpg",
        f"put the pictures of each class into a folder of its own: {path}/CLASS/",
    )


PLUGIN = ImageFolder
