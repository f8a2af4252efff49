"""Which pictures there are: the built-in digits, folders of class folders, tars of shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import SupportsIndex, overload

import numpy as np
from jaxtyping import Int32

from ditmoe.outside import Parts, folders_below, is_regular, printable
from modalities.image.data.described import describe
from modalities.image.data.pictures import SUFFIXES
from modalities.image.data.shards import (
    ARCHIVES,
    COMPRESSED,
    Member,
    Written,
    member_bytes,
    read_archive,
    split_of_shard,
    without_identities,
)
from modalities.latent import digits
from modalities.shared.datasets import SPLITS
from modalities.shared.file_table import FileTable
from modalities.shared.folder_index import FolderIndex
from modalities.shared.hash_split import draw_numbers, drawn_by_name
from modalities.shared.labels import FILES, named_by, read_labels, read_names
from modalities.shared.layout import Place, arrange_folders
from modalities.shared.provenance import Origin
from modalities.shared.sources import sources, sources_in
from modalities.shared.understood import BESIDE, KIND, OUTSIDE, Ignored, Understood

SHARES = (0.9, 0.05)
"""Of train and val, where the data have no splits of their own; the rest is test."""
_ENDINGS = frozenset(SUFFIXES)


@dataclass(frozen=True)
class Picture:
    """One picture of a data set, not read yet."""

    name: str
    label: int
    source: Path | Member | np.ndarray
    captions: Sequence[str] | Written = ()
    """Of a built-in one, or where they lie in an archive; those of a file lie beside it."""

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
    pictures: Mapping[str, Sequence[Picture]]
    origin: str
    ignored: Ignored = field(default_factory=Ignored)
    notes: list[str] = field(default_factory=list)

    def understood(self, root: Path | None) -> Understood:
        """In words."""
        labels = {split: labels_of(pictures) for split, pictures in self.pictures.items()}
        place, what = ("the built-in digits", "digit") if root is None else (root, "picture")
        if self.pictures["test"] is self.pictures["val"]:
            labels["val"] = []
        return Understood(place, what, self.classes, labels, self.origin, self.ignored, self.notes)


def labels_of(pictures: Sequence[Picture]) -> list[int]:
    """Labels of pictures, none of which is made for it where they are only listed."""
    if isinstance(pictures, ListedPictures):
        return pictures.labels.tolist()
    return [picture.label for picture in pictures]


class ListedPictures(Sequence[Picture]):
    """Pictures in a folder, each made when it is asked for.

    Args:
        root: the folder.
        files: all paths below it.
        numbers: which of them these are.
        labels: of these.
    """

    def __init__(
        self, root: Path, files: FileTable, numbers: Int32[np.ndarray, " P"], labels: Int32[np.ndarray, " P"]
    ) -> None:
        self.root, self.files, self.numbers, self.labels = root, files, numbers, labels

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, at: SupportsIndex) -> Picture: ...
    @overload
    def __getitem__(self, at: slice) -> list[Picture]: ...
    def __getitem__(self, at: SupportsIndex | slice) -> Picture | list[Picture]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        parts = self.files[int(self.numbers[at])]
        return Picture(printable("/".join(parts)), int(self.labels[at]), self.root.joinpath(*parts))


@dataclass
class Entry:
    """A picture of an archive before labels are numbers: its name, what says its split and class, where it lies."""

    name: str
    split: str | None
    label: str | None
    key: str
    source: Member
    captions: Sequence[str] | Written = ()


@dataclass(frozen=True)
class Run:
    """Pictures of a folder, one after the other: the folder, its place, their names and what a list says of each."""

    folder: Parts
    place: Place
    names: Sequence[str]
    labels: Sequence[str | None] | None


def list_pictures(
    root: Path | None, size: tuple[int, int], index: Path | None = None, captions: bool = False
) -> Listing:
    """Class names, and the pictures of each split.

    `root` is None for the built-in digits; a folder of class folders, split or not (see `layout.arrange`), or of
    pictures whose classes a dataset.json or metadata.jsonl beside them gives; a folder of .tar shards as webdataset has
    them, or of .zip files; or such a file. A picture without a class has the label `len(classes)`. Where there is no
    test split, val serves as both (ImageNet); where there is none at all, pictures are split by a hash of their names.

    Raises:
        ValueError: if there is nothing.
    """
    if root is None:
        return _digits(size, captions)
    if not root.is_dir() and not (root.name.lower().endswith(ARCHIVES) and is_regular(root)):
        raise ValueError(f"modality.data.root must be a folder, got {printable(root)}")
    ignored, notes = Ignored(), list[str]()
    if root.is_dir():
        known = FolderIndex(index, root)
        below = list(folders_below(root, True, ignored.visible, known.read))
        known.save()
    else:
        root, below = root.parent, [((), [root.name])]
    shards = [
        (*folder, name)
        for folder, names in below
        if not _endings(names).isdisjoint(ARCHIVES)
        for name in names
        if name.lower().endswith(ARCHIVES)
    ]
    found, origin = _shards(root, shards, ignored, notes, captions) if shards else ([], "")
    if found:
        for _, names in below:
            for name in names:
                if not name.lower().endswith(ARCHIVES) and name != "classes.txt":
                    ignored.add("beside the archives", name)
        return _of_archives(root, found, shards, origin, ignored, notes)
    if (listing := _of_folders(root, below, ignored, notes)) is not None:
        return listing
    packed = [name for _, names in below for name in names if name.lower().endswith(COMPRESSED)]
    raise ValueError(
        f"{printable(root)} must hold pictures ({' '.join(SUFFIXES)}) in class folders, or .tar shards, got "
        + (
            f"{len(packed)} compressed ones: unpack them (gunzip), so that their pictures can be read one by one"
            if packed
            else "; ".join(["none", *ignored.lines(), *notes])
        )
    )


def _of_archives(
    root: Path, found: list[Entry], shards: list[Parts], origin: str, ignored: Ignored, notes: list[str]
) -> Listing:
    """Labels as numbers, and a split for each picture."""
    names = {entry.label for entry in found if entry.label is not None}
    classes, labels, null = _labelled(root, names, notes)
    splits = [entry.split or "train" for entry in found]
    if not any(entry.split for entry in found):
        keys = [entry.key for entry in found]
        drawn, moved, pieces = draw_numbers(keys, SHARES, [entry.label for entry in found])
        splits, origin = [SPLITS[i] for i in drawn.tolist()], drawn_by_name(moved, pieces, SHARES)
    elif origin:
        origin += " in the archives"
    else:
        by_name = {printable("/".join(parts)): split for parts in shards if (split := split_of_shard(parts))}
        told = ", ".join(f"{name} ({split})" for name, split in list(by_name.items())[:3])
        origin = f"from the archives {told}{', ...' if len(by_name) > 3 else ''}"
        if not all(entry.split for entry in found):
            notes.append("what says no split is for training")
    pictures: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for split, entry in zip(splits, found, strict=True):
        label = null if entry.label is None else labels[entry.label]
        pictures[split].append(Picture(entry.name, label, entry.source, entry.captions or ()))
    return _listing(classes, pictures, origin, ignored, notes)


def _listing(
    classes: list[str],
    pictures: Mapping[str, Sequence[Picture]],
    origin: str,
    ignored: Ignored,
    notes: list[str],
) -> Listing:
    if not len(pictures["test"]) and len(pictures["val"]):
        pictures = {**pictures, "test": pictures["val"]}
        origin += "; val serves as test"
    return Listing(classes, pictures, origin, ignored, notes)


def _labelled(root: Path, names: set[str], notes: list[str]) -> tuple[list[str], dict[str, int], int]:
    """Class names, the label of each name, and that of what has no class."""
    classes, labels = _classes(root, names, notes)
    return (classes, labels, len(classes) if names else 0) if classes else (["picture"], {}, 0)


def _classes(root: Path, names: set[str], notes: list[str]) -> tuple[list[str], dict[str, int]]:
    """Class names, in the order of a classes.txt where there is one, and the label of each name.

    A classes.txt beside class folders only orders them, or names those that are numbers.
    """
    lines = read_names(root)
    if lines is None or not names:
        return named_by(None, names, root)
    return named_by(lines, names, root / "classes.txt")


def _digits(size: tuple[int, int], captions: bool) -> Listing:
    """Digits three quarters as large as the picture, on black; in words if these are wanted."""
    side = max(8, min(size) * 3 // 4)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    if min(size) < side:
        raise ValueError(f"modality.size must be at least 8 for the built-in digits, got {list(size)}")
    pictures = {}
    for split in SPLITS:
        ink, labels = digits.digits(split, side)
        canvas = np.zeros((len(ink), *size, 3), np.uint8)
        canvas[:, top : top + side, left : left + side] = ink[..., None]
        said = describe(ink, labels) if captions else [()] * len(labels)
        pictures[split] = [
            Picture(f"{digits.CLASSES[label]}-{split}-{i:04d}", int(label), image, told)
            for i, (image, label, told) in enumerate(zip(canvas, labels, said, strict=True))
        ]
    return Listing(list(digits.CLASSES), pictures, "as they are published")


def _of_folders(
    root: Path, below: list[tuple[Parts, list[str]]], ignored: Ignored, notes: list[str]
) -> Listing | None:
    """Pictures in class folders, or labelled by a file beside them; None where there are none."""
    found = [(folder, kept) for folder, names in below if (kept := _pictures_of(names, ignored))]
    if found:
        below.clear()  # names of millions of files
    runs, origin = _placed(root, found, ignored, notes)
    if not runs:
        return None
    said = {label for run in runs for label in run.labels or ()} | {
        run.place.category and printable(run.place.category) for run in runs if run.labels is None
    }
    classes, label_of, null = _labelled(root, {name for name in said if name is not None}, notes)
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
    return _listing(classes, pictures, origin, ignored, notes)


def _endings(names: Sequence[str]) -> set[str]:
    """Suffixes of names in small letters, with their dots; of names without one the last letter."""
    return {ending.lower() for ending in {name[name.rfind(".") :] for name in names}}


def _pictures_of(names: list[str], ignored: Ignored) -> list[str]:
    """Those that are pictures; the others are counted."""
    if _endings(names) <= _ENDINGS:
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
    """The pictures that are data, by folder, with what a list says of their classes; and from what the splits come."""
    folders = list(dict.fromkeys(folder for folder, _ in found))
    layout = arrange_folders(folders)
    places = dict(zip(folders, layout.places, strict=True))
    lists = _lists(root, places)
    categories = {place.category for place in layout.places if place} - {None}
    if len(categories) == 1 and not lists and len({f[:2] for f in folders if len(f) > 1}) > 1:
        (one,) = categories
        notes.append(f"all is of the class {one}; for its own folders as classes give root={root / str(one)}")
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
        for name in names if reason else ():  # beside the class folders, a read-me's picture
            ignored.add(reason, name)
    return runs, layout.origin


def _lists(root: Path, places: Mapping[Parts, Place | None]) -> dict[Parts, dict[str, str]]:
    """Folder -> path below it -> class, of a dataset.json or metadata.jsonl in the root or a split's folder."""
    tops: set[Parts] = {(), *(folder[:1] for folder, place in places.items() if place and place.split)}
    found = {top: read_labels(root.joinpath(*top)) for top in sorted(tops)}
    return {top: labels for top, labels in found.items() if labels is not None}


def _listed(
    lists: Mapping[Parts, Mapping[str, str]], folder: Parts, names: Sequence[str]
) -> list[str | None]:
    """The classes of files in a folder, by the list nearest to them that has each."""
    found: list[str | None] = [None] * len(names)
    for top, labels in lists.items():
        if folder[: len(top)] == top:
            prefix = "".join(f"{part}/" for part in folder[len(top) :])
            found = [labels.get(prefix + name, known) for name, known in zip(names, found, strict=True)]
    return found


def _keys(runs: Sequence[Run]) -> list[str]:
    """What each picture is a piece of."""
    folders: dict[Parts, list[str]] = {}
    homes = [
        (*(() if run.place.category is None else (printable(run.place.category),)), *run.place.parts)
        for run in runs
    ]
    for home, run in zip(homes, runs, strict=True):
        folders.setdefault(home, []).extend(run.names)
    keys = {home: iter(found) for home, found in zip(folders, sources_in(folders), strict=True)}
    return [key for home, run in zip(homes, runs, strict=True) for key in islice(keys[home], len(run.names))]


def _shards(
    root: Path, shards: list[Parts], ignored: Ignored, notes: list[str], captions: bool
) -> tuple[list[Entry], str]:
    """Members of all archives, and what their folders say of splits; where none has a label, these are classes."""
    found = [
        entry
        for parts in shards
        for entry in read_archive(root.joinpath(*parts), parts, ignored, notes, captions)
    ]
    found = without_identities(found, notes)
    folders = {entry.folder: tuple(filter(None, entry.folder.split("/"))) for entry in found}
    # What all lies in is a wrapping that says nothing.
    shared = sum(takewhile(bool, (len({*at}) == 1 for at in zip(*folders.values(), strict=False))))
    layout = arrange_folders([folder[shared:] for folder in folders.values()])
    places = dict(zip(folders, layout.places, strict=True))
    said = any(entry.label is not None for entry in found)
    classes = not said and len({place.category for place in layout.places if place} - {None}) > 1
    keys = sources([(entry.name.rpartition("/")[0], f"{entry.name.rpartition('/')[2]}.x") for entry in found])
    kept = []
    for entry, key in zip(found, keys, strict=True):
        if (place := places[entry.folder]) is None and entry.split is None:
            ignored.add(f"in archives, {OUTSIDE}", entry.folder, by_name=True)
            continue
        label = printable(place.category) if classes and place and place.category else entry.label
        split = entry.split or (place.split if place else None)
        kept.append(Entry(entry.name, split, label, key.removesuffix(".x"), entry.member, entry.captions))
    return kept, "" if any(entry.split for entry in found) else layout.origin
