"""Which pictures there are: the built-in digits, folders of class folders, tars of shards."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ditmoe.outside import files_below, is_regular, printable
from modalities.image.data.pictures import SUFFIXES
from modalities.image.data.shards import (
    ARCHIVES,
    COMPRESSED,
    Member,
    member_bytes,
    read_archive,
    split_of_shard,
)
from modalities.latent import digits
from modalities.shared.datasets import SPLITS
from modalities.shared.labels import FILES, named_by, read_labels, read_names
from modalities.shared.layout import Parts, Place, arrange, draw, drawn_by_name, sources
from modalities.shared.provenance import Origin
from modalities.shared.understood import BESIDE, KIND, OUTSIDE, Ignored, Understood

SHARES = (0.9, 0.05)
"""Of train and val, where the data have no splits of their own; the rest is test."""


@dataclass(frozen=True)
class Picture:
    """One picture of a data set, not read yet."""

    name: str
    label: int
    source: Path | Member | np.ndarray

    def origin(self) -> Origin:
        """Where it lies, for `provenance`."""
        if isinstance(self.source, Path):
            return Origin((self.source,))
        if isinstance(self.source, Member):
            at = self.source
            part = f"{at.start} {at.size} {at.inflated} {at.deflated}"
            return Origin((at.tar,), part=part, read=partial(member_bytes, at))
        return Origin((), read=self.source.tobytes)


@dataclass(frozen=True)
class Listing:
    """The pictures of a data set: class names, the pictures of each split, and what was understood and ignored."""

    classes: list[str]
    pictures: dict[str, list[Picture]]
    origin: str
    ignored: Ignored = field(default_factory=Ignored)
    notes: list[str] = field(default_factory=list)

    def understood(self, root: Path | None) -> Understood:
        """In words."""
        labels = {split: [p.label for p in pictures] for split, pictures in self.pictures.items()}
        place, what = ("the built-in digits", "digit") if root is None else (root, "picture")
        if self.pictures["test"] is self.pictures["val"]:
            labels["val"] = []
        return Understood(place, what, self.classes, labels, self.origin, self.ignored, self.notes)


@dataclass
class Entry:
    """A picture before labels are numbers: its path by folders, what says its split and class, and where it lies."""

    name: str
    split: str | None
    label: str | None
    key: str
    source: Path | Member


def list_pictures(root: Path | None, size: tuple[int, int]) -> Listing:
    """Class names, and the pictures of each split.

    `root` is None for the built-in digits; a folder of class folders, split or not (see `layout.arrange`), or of
    pictures whose classes a dataset.json or metadata.jsonl beside them gives; a folder of .tar shards as webdataset has
    them, or of .zip files; or such a file. A picture without a class has the label `len(classes)`. Where there is no
    test split, val serves as both (ImageNet); where there is none at all, pictures are split by a hash of their names.

    Raises:
        ValueError: if there is nothing.
    """
    if root is None:
        return _digits(size)
    if not root.is_dir() and not (root.name.lower().endswith(ARCHIVES) and is_regular(root)):
        raise ValueError(f"modality.data.root must be a folder, got {printable(root)}")
    ignored, notes = Ignored(), list[str]()
    below: list[Parts] = [(root.name,)]
    if not root.is_dir():
        root = root.parent
    else:
        below = [file.parts[len(root.parts) :] for file in files_below(root, True, True, ignored.is_hidden)]
    shards = [parts for parts in below if parts[-1].lower().endswith(ARCHIVES)]
    found, origin = _shards(root, shards, ignored, notes) if shards else ([], "")
    if found:
        for parts in below:
            if not parts[-1].lower().endswith(ARCHIVES) and parts[-1] != "classes.txt":
                ignored.add("beside the archives", parts[-1])
    else:
        found, origin = _folders(root, below, ignored, notes)
    if not found:
        packed = [parts[-1] for parts in below if parts[-1].lower().endswith(COMPRESSED)]
        raise ValueError(
            f"{printable(root)} must hold pictures ({' '.join(SUFFIXES)}) in class folders, or .tar shards, got "
            + (
                f"{len(packed)} compressed ones: unpack them (gunzip), so that their pictures can be read one by one"
                if packed
                else "; ".join(["none", *ignored.lines(), *notes])
            )
        )
    return _listing(root, found, origin, ignored, notes)


def _listing(root: Path, found: list[Entry], origin: str, ignored: Ignored, notes: list[str]) -> Listing:
    """Labels as numbers, and a split for each picture."""
    names = {entry.label for entry in found if entry.label is not None}
    classes, labels = _classes(root, names, notes)
    if not classes:
        classes, labels = ["picture"], {}
    null = len(classes) if names else 0
    moved = 0
    splits = [entry.split or "train" for entry in found]
    if not any(entry.split for entry in found):
        keys = [entry.key for entry in found]
        splits, moved = draw(keys, SHARES, [entry.label for entry in found])
        pieces = sum(count for count in Counter(keys).values() if count > 1)
        origin = drawn_by_name(moved, pieces, SHARES)
    elif not all(entry.split for entry in found):
        notes.append("what says no split is for training")
    pictures: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for split, entry in zip(splits, found, strict=True):
        label = null if entry.label is None else labels[entry.label]
        pictures[split].append(Picture(entry.name, label, entry.source))
    if not pictures["test"] and pictures["val"]:
        pictures["test"] = pictures["val"]
        origin += "; val serves as test"
    return Listing(classes, pictures, origin, ignored, notes)


def _classes(root: Path, names: set[str], notes: list[str]) -> tuple[list[str], dict[str, int]]:
    """Class names, in the order of a classes.txt where there is one, and the label of each name.

    A classes.txt beside class folders only orders them, or names those that are numbers.
    """
    lines = read_names(root)
    if lines is None or not names:
        return named_by(None, names, root)
    return named_by(lines, names, root / "classes.txt")


def _digits(size: tuple[int, int]) -> Listing:
    """Digits three quarters as large as the picture, on black."""
    side = max(8, min(size) * 3 // 4)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    if min(size) < side:
        raise ValueError(f"modality.size must be at least 8 for the built-in digits, got {list(size)}")
    pictures = {}
    for split in SPLITS:
        ink, labels = digits.digits(split, side)
        canvas = np.zeros((len(ink), *size, 3), np.uint8)
        canvas[:, top : top + side, left : left + side] = ink[..., None]
        pictures[split] = [
            Picture(f"{digits.CLASSES[label]}-{split}-{i:04d}", int(label), image)
            for i, (image, label) in enumerate(zip(canvas, labels, strict=True))
        ]
    return Listing(list(digits.CLASSES), pictures, "as they are published")


def _folders(root: Path, below: list[Parts], ignored: Ignored, notes: list[str]) -> tuple[list[Entry], str]:
    """Pictures in class folders, or labelled by a file beside them."""
    files: list[Parts] = []
    for parts in below:
        if parts[-1].lower().endswith(SUFFIXES):
            files.append(parts)
        elif parts[-1] not in (*FILES, "classes.txt"):
            ignored.add(KIND, parts[-1])
    layout = arrange(files)
    listed = _listed(root, files, layout.places)
    categories = {place.category for place in layout.places if place} - {None}
    if len(categories) == 1 and listed is None and len({p[:2] for p in files if len(p) > 2}) > 1:
        (one,) = categories
        notes.append(f"all is of the class {one}; for its own folders as classes give root={root / str(one)}")
    kept: list[tuple[Parts, Place, str | None]] = []
    for i, (parts, place) in enumerate(zip(files, layout.places, strict=True)):
        if place is None:
            ignored.add(OUTSIDE, parts[-1])
        elif listed is None and categories and place.category is None:
            ignored.add(BESIDE, parts[-1])  # a read-me's picture, not data
        else:
            category = None if place.category is None else printable(place.category)
            kept.append((parts, place, category if listed is None else listed.get(i)))
    keys = sources([(*(() if p.category is None else (p.category,)), *p.parts) for _, p, _ in kept])
    return [
        Entry(printable("/".join(parts)), place.split, label, key, root.joinpath(*parts))
        for (parts, place, label), key in zip(kept, keys, strict=True)
    ], layout.origin


def _listed(root: Path, files: list[Parts], places: list[Place | None]) -> dict[int, str] | None:
    """Number of a file -> its class by a dataset.json or metadata.jsonl in the root or a split's folder."""
    tops: set[Parts] = {()}
    tops |= {
        parts[:1]
        for parts, place in zip(files, places, strict=True)
        if place and place.split and len(parts) > 1
    }
    found: dict[int, str] | None = None
    for top in sorted(tops):
        if (labels := read_labels(root.joinpath(*top))) is None:
            continue
        found = found or {}
        for i, parts in enumerate(files):
            if parts[: len(top)] == top and (label := labels.get("/".join(parts[len(top) :]))) is not None:
                found[i] = label
    return found


def _shards(root: Path, shards: list[Parts], ignored: Ignored, notes: list[str]) -> tuple[list[Entry], str]:
    """Members of all archives; where none has a label, folders in them are classes."""
    found = [
        entry for parts in shards for entry in read_archive(root.joinpath(*parts), parts, ignored, notes)
    ]
    said = any(entry.label is not None for entry in found)
    tops = {folder for entry in found if (folder := entry.folder.partition("/")[0])}
    folders = not said and len(tops) > 1
    keys = sources([(entry.name.rpartition("/")[0], f"{entry.name.rpartition('/')[2]}.x") for entry in found])
    kept = []
    for entry, key in zip(found, keys, strict=True):
        label = printable(entry.folder.partition("/")[0]) or None if folders else entry.label
        kept.append(Entry(entry.name, entry.split, label, key.removesuffix(".x"), entry.member))
    by_name = {printable("/".join(parts)): split for parts in shards if (split := split_of_shard(parts))}
    names = ", ".join(f"{name} ({split})" for name, split in list(by_name.items())[:3])
    return kept, f"from the archives {names}{', ...' if len(by_name) > 3 else ''}"
