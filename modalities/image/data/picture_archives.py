"""Lists the images in archives: webdataset .tar shards, and .zip files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from ditmoe.outside import Parts, printable
from modalities.image.data.archive_members import Member, Written
from modalities.image.data.archives import ARCHIVES, read_archive, split_of_shard, without_identities
from modalities.image.data.listing import SHARES, Listing, Picture, endings, labelled, with_test
from modalities.shared.datasets import SPLITS
from modalities.shared.hash_split import draw_numbers, drawn_by_name
from modalities.shared.layout import arrange_folders
from modalities.shared.sources import sources
from modalities.shared.understood import OUTSIDE, Ignored

_WORDNET = re.compile(r"n\d{8}")
"""ImageNet's classes, which it publishes as one tar each."""


@dataclass
class Entry:
    """An image in an archive before labels are numbered: its name, split and class as given, and its location."""

    name: str
    split: str | None
    label: str | None
    key: str
    source: Member
    captions: Sequence[str] | Written = ()


def list_archives(
    root: Path, below: list[tuple[Parts, list[str]]], ignored: Ignored, notes: list[str], captions: bool
) -> Listing | None:
    """List images in archives below a folder, ignoring all other files; None if there are no archives."""
    archives = [
        (*folder, name)
        for folder, names in below
        if not endings(names).isdisjoint(ARCHIVES)
        for name in names
        if name.lower().endswith(ARCHIVES)
    ]
    found, origin = _members(root, archives, ignored, notes, captions) if archives else ([], "")
    if not found:
        return None
    for _, names in below:
        for name in names:
            if not name.lower().endswith(ARCHIVES) and name != "classes.txt":
                ignored.add("beside the archives", name)
    return _numbered(root, found, archives, origin, ignored, notes)


def _numbered(
    root: Path, found: list[Entry], archives: list[Parts], origin: str, ignored: Ignored, notes: list[str]
) -> Listing:
    """Number the labels, and choose a split for each image."""
    names = {entry.label for entry in found if entry.label is not None}
    classes, labels, null = labelled(root, names, notes)
    splits = [entry.split or "train" for entry in found]
    if not any(entry.split for entry in found):
        keys = [entry.key for entry in found]
        drawn, moved, pieces = draw_numbers(keys, SHARES, [entry.label for entry in found])
        splits, origin = [SPLITS[i] for i in drawn.tolist()], drawn_by_name(moved, pieces, SHARES)
    elif origin:
        origin += " in the archives"
    else:
        by_name = {
            printable("/".join(parts)): split for parts in archives if (split := split_of_shard(parts))
        }
        told = ", ".join(f"{name} ({split})" for name, split in list(by_name.items())[:3])
        origin = f"from the archives {told}{', ...' if len(by_name) > 3 else ''}"
        if not all(entry.split for entry in found):
            notes.append("what says no split is for training")
    pictures: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for split, entry in zip(splits, found, strict=True):
        label = null if entry.label is None else labels[entry.label]
        pictures[split].append(Picture(entry.name, label, entry.source, entry.captions or ()))
    return with_test(classes, pictures, origin, ignored, notes)


def _members(
    root: Path, archives: list[Parts], ignored: Ignored, notes: list[str], captions: bool
) -> tuple[list[Entry], str]:
    """Members of all archives, and their splits by folder.

    If none has a label, folders are classes; if there are none, archives that are named as classes of ImageNet.
    """
    found = [
        entry
        for parts in archives
        for entry in read_archive(root.joinpath(*parts), parts, ignored, notes, captions)
    ]
    found = without_identities(found, notes)
    folders = {entry.folder: tuple(filter(None, entry.folder.split("/"))) for entry in found}
    # A folder that contains everything carries no information.
    shared = sum(takewhile(bool, (len({*at}) == 1 for at in zip(*folders.values(), strict=False))))
    layout = arrange_folders([folder[shared:] for folder in folders.values()])
    places = dict(zip(folders, layout.places, strict=True))
    said = any(entry.label is not None for entry in found)
    classes = not said and len({place.category for place in layout.places if place} - {None}) > 1
    stems = {entry.member.tar.stem for entry in found}
    named = not said and not classes and len(stems) > 1 and all(map(_WORDNET.fullmatch, stems))
    keys = sources([(entry.name.rpartition("/")[0], f"{entry.name.rpartition('/')[2]}.x") for entry in found])
    kept = []
    for entry, key in zip(found, keys, strict=True):
        if (place := places[entry.folder]) is None and entry.split is None:
            ignored.add(f"in archives, {OUTSIDE}", entry.folder, by_name=True)
            continue
        label = printable(place.category) if classes and place and place.category else entry.label
        label = entry.member.tar.stem if named else label
        split = entry.split or (place.split if place else None)
        kept.append(Entry(entry.name, split, label, key.removesuffix(".x"), entry.member, entry.captions))
    return kept, "" if any(entry.split for entry in found) else layout.origin
