"""Lists the images of a folder: in class folders, or with a file that gives their classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ditmoe.outside import Parts, printable
from modalities.image.data.listing import SHARES, ListedPictures, Listing, endings, labelled, with_test
from modalities.image.data.pictures import SUFFIXES
from modalities.shared.datasets import SPLITS
from modalities.shared.file_table import FileTable
from modalities.shared.hash_split import draw_numbers, drawn_by_name
from modalities.shared.labels import FILES, read_labels
from modalities.shared.layout import Place, arrange_folders, only_class
from modalities.shared.sources import sources_in
from modalities.shared.understood import BESIDE, KIND, OUTSIDE, Ignored

_ENDINGS = frozenset(SUFFIXES)


@dataclass(frozen=True)
class Run:
    """Consecutive images of a folder: the folder, its place, and their names and listed classes."""

    folder: Parts
    place: Place
    names: Sequence[str]
    labels: Sequence[str | None] | None


def list_folders(
    root: Path, below: list[tuple[Parts, list[str]]], ignored: Ignored, notes: list[str]
) -> Listing | None:
    """List images in class folders, or labelled by a file beside them; None if there are none."""
    found = [(folder, kept) for folder, names in below if (kept := _pictures_of(names, ignored))]
    if found:
        below.clear()  # frees the names of millions of files
    runs, origin = _placed(root, found, ignored, notes)
    if not runs:
        return None
    said = {label for run in runs for label in run.labels or ()} | {
        run.place.category and printable(run.place.category) for run in runs if run.labels is None
    }
    classes, label_of, null = labelled(root, {name for name in said if name is not None}, notes)
    of_names = label_of | {None: null}
    labels = np.concatenate([
        np.full(len(run.names), of_names[run.place.category and printable(run.place.category)], np.int32)
        if run.labels is None
        else np.array([of_names[label] for label in run.labels], np.int32)
        for run in runs
    ])  # fmt: skip
    counts = [len(run.names) for run in runs]
    if origin:
        drawn = np.repeat(
            np.array([SPLITS.index(run.place.split or "train") for run in runs], np.int8), counts
        )
    else:
        drawn, moved, pieces = draw_numbers(_keys(runs), SHARES, labels)
        origin = drawn_by_name(moved, pieces, SHARES)
    files = FileTable([(run.folder, run.names) for run in runs])
    numbers = [np.flatnonzero(drawn == i).astype(np.int32) for i in range(len(SPLITS))]
    pictures = {s: ListedPictures(root, files, n, labels[n]) for s, n in zip(SPLITS, numbers, strict=True)}
    return with_test(classes, pictures, origin, ignored, notes)


def _pictures_of(names: list[str], ignored: Ignored) -> list[str]:
    """The names of images; the others are counted as ignored."""
    if endings(names) <= _ENDINGS:
        return names
    kept = []
    for name in names:
        if name.lower().endswith(SUFFIXES):
            kept.append(name)
        elif name not in (*FILES, "classes.txt"):
            ignored.add(KIND, name)
    return kept


def _placed(
    root: Path, found: list[tuple[Parts, list[str]]], ignored: Ignored, notes: list[str]
) -> tuple[list[Run], str]:
    """The images that belong to the data, by folder, with their listed classes; and the origin of the splits."""
    folders = list(dict.fromkeys(folder for folder, _ in found))
    layout = arrange_folders(folders)
    places = dict(zip(folders, layout.places, strict=True))
    lists = _lists(root, places)
    categories = {place.category for place in layout.places if place} - {None}
    if not lists:
        notes += only_class(root, ((folder, places[folder], len(names)) for folder, names in found))
    runs = []
    for folder, names in found:
        place = places[folder]
        reason = (
            OUTSIDE
            if place is None
            else BESIDE
            if categories and place.category is None and not lists
            else ""
        )
        if place is not None and not reason:
            runs.append(Run(folder, place, names, _listed(lists, folder, names) if lists else None))
        for name in names if reason else ():  # an image beside the class folders, such as a README's
            ignored.add(reason, name)
    if lists and not any(label is not None for run in runs for label in run.labels or ()):
        named = next((f", such as {printable(name)[:60]}" for of in lists.values() for name in of), "")
        notes.append(
            f"no picture has a class: the list of labels names {'others' if named else 'none'}{named}"
        )
    return runs, layout.origin


def _lists(root: Path, places: Mapping[Parts, Place | None]) -> dict[Parts, dict[str, str]]:
    """Folder -> path below it -> class, from a dataset.json or metadata.jsonl in the root or a split's folder."""
    tops: set[Parts] = {(), *(folder[:1] for folder, place in places.items() if place and place.split)}
    found = {top: read_labels(root.joinpath(*top)) for top in sorted(tops)}
    return {top: labels for top, labels in found.items() if labels is not None}


def _listed(
    lists: Mapping[Parts, Mapping[str, str]], folder: Parts, names: Sequence[str]
) -> list[str | None]:
    """The classes of files in a folder, each from the nearest list that has it."""
    found: list[str | None] = [None] * len(names)
    for top, labels in lists.items():
        if folder[: len(top)] == top:
            prefix = "".join(f"{part}/" for part in folder[len(top) :])
            found = [labels.get(prefix + name, known) for name, known in zip(names, found, strict=True)]
    return found


def _keys(runs: Sequence[Run]) -> list[str]:
    """The source of each image (see `shared.sources`)."""
    folders: dict[Parts, list[str]] = {}
    homes = [
        (*(() if run.place.category is None else (printable(run.place.category),)), *run.place.parts)
        for run in runs
    ]
    for home, run in zip(homes, runs, strict=True):
        folders.setdefault(home, []).extend(run.names)
    keys = {home: iter(found) for home, found in zip(folders, sources_in(folders), strict=True)}
    return [key for home, run in zip(homes, runs, strict=True) for key in islice(keys[home], len(run.names))]
