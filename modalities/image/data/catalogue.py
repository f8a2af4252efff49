"""Which pictures there are: the built-in digits, folders of class folders, tars of shards."""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ditmoe.outside import files_below, open_regular, printable, read_regular
from modalities.image.data.pictures import SUFFIXES
from modalities.latent import digits
from modalities.shared.datasets import SPLITS, split_of

FOLDERS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
SHARES = (0.9, 0.05)
"""Of train and val, where the data have no splits of their own; the rest is test."""
MOST_TEXT = 2**24
"""Bytes of a list of classes, or of what a tar says beside a picture."""


@dataclass(frozen=True)
class Member:
    """A file in a tar: `size` bytes from `start`; -1 where it does not lie there as it is (sparse)."""

    tar: Path
    start: int
    size: int


@dataclass(frozen=True)
class Picture:
    """One picture of a data set, not read yet."""

    name: str
    label: int
    source: Path | Member | np.ndarray


Listing = tuple[list[str], dict[str, list[Picture]]]


def list_pictures(root: Path | None, size: tuple[int, int]) -> Listing:
    """Class names, and the pictures of each split.

    `root` is None for the built-in digits; a folder of .tar shards as webdataset has them; or a folder of class
    folders, itself split into train, val (or validation) and test or not. Where there is no test split, val serves
    as both (ImageNet); where there is none at all, pictures are split by a hash of their names.

    Raises:
        ValueError: if there is nothing.
    """
    if root is None:
        return _digits(size)
    if not root.is_dir():
        raise ValueError(f"modality.data.root must be a folder, got {printable(root)}")
    shards = sorted(p for p in root.iterdir() if p.suffix == ".tar")
    classes, found = _shards(root, shards) if shards else _folders(root)
    pictures = {split: [p for own, p in found if own == split] for split in SPLITS}
    pictures["test"] = pictures["test"] or pictures["val"]
    if not any(pictures.values()):
        raise ValueError(
            f"{printable(root)} must hold pictures ({' '.join(SUFFIXES)}) in class folders, or .tar shards, got none"
        )
    return classes, pictures


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
    return digits.CLASSES, pictures


def _folders(root: Path) -> tuple[list[str], list[tuple[str, Picture]]]:
    own = {split: name for name, split in FOLDERS.items() if (root / name).is_dir()}
    tops = {name: split for split, name in own.items()} if "train" in own else {}
    files: dict[str, list[tuple[tuple[str, ...], Path]]] = {top: [] for top in tops or [""]}
    above = len(root.parts)
    for file in files_below(root, special=True):
        if file.name.lower().endswith(SUFFIXES):
            parts = file.parts[above:]
            top, parts = (parts[0], parts[1:]) if tops else ("", parts)
            if parts and top in files:
                files[top].append((parts, file))
    names = {printable(parts[0]) for those in files.values() for parts, _ in those if len(parts) > 1}
    classes = sorted(names) or ["picture"]
    labels = {name: label for label, name in enumerate(classes)}
    found = []
    for top, those in files.items():
        for parts, file in those:
            if names and len(parts) == 1:
                continue  # beside the class folders: a read-me's picture, not data
            label = labels[printable(parts[0])] if names else 0
            shown = printable("/".join((top, *parts) if top else parts))
            found.append((tops.get(top) or split_of("/".join(parts), SHARES), Picture(shown, label, file)))
    return classes, found


def _split_named(name: str) -> str | None:
    """The split that a folder, or a shard such as train-000017, belongs to by its name."""
    word = re.search(r"(?:^|[-_.])(train|val|test)(?:idation|ing)?(?=$|[-_.\d])", name.lower())
    return word[1] if word else None


def _shards(root: Path, shards: list[Path]) -> tuple[list[str], list[tuple[str, Picture]]]:
    """Members of all shards; a sample is the files of one key, a picture and its class (.cls, or "label" in .json)."""
    found = [entry for shard in shards for entry in _members(shard)]
    labels = {picture.label for _, picture in found}
    names, most = root / "classes.txt", max(labels, default=0)
    if names.exists():
        lines = read_regular(names, MOST_TEXT).decode(errors="surrogateescape").splitlines()
        classes = [printable(line) for line in lines]
    elif most > 10 * len(labels) + 1000:
        raise ValueError(
            f"{printable(root)} must have a classes.txt for labels of up to {most}, of which {len(labels)} are used"
        )
    else:
        classes = [str(i) for i in range(most + 1)]
    if labels and most >= len(classes):
        raise ValueError(f"{printable(names)} must name {most + 1} classes, got {len(classes)}")
    if not any(split for split, _ in found):
        return classes, [(split_of(picture.name, SHARES), picture) for _, picture in found]
    return classes, [(split or "train", picture) for split, picture in found]


def _members(shard: Path) -> Iterator[tuple[str | None, Picture]]:
    split = _split_named(shard.stem)
    pictures: dict[str, Member] = {}
    labels: dict[str, int] = {}
    try:
        with open_regular(shard) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for entry in tar:
                if not entry.offset < entry.offset_data <= tar.offset:
                    # A size below zero leads back, to the same member for ever (CVE-2025-8194 of Python).
                    raise ValueError(f"{printable(entry.name)[:60]} ends before it begins")
                folder, _, name = entry.name.rpartition("/")
                key, _, ending = name.partition(".")
                key = f"{folder}/{key}".lstrip("/")
                if not entry.isfile():
                    continue
                if f".{ending.lower()}" in SUFFIXES:
                    pictures[key] = Member(shard, entry.offset_data, -1 if entry.issparse() else entry.size)
                elif ending in ("cls", "json") and not entry.issparse() and entry.size <= MOST_TEXT:
                    stream.seek(entry.offset_data)
                    if (label := _label(stream.read(entry.size), ending)) is not None:
                        labels[key] = label
    except (tarfile.TarError, OSError, ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"{printable(shard)} is no readable tar: {printable(error)}") from error
    for key, member in pictures.items():
        yield split, Picture(printable(f"{shard.name}/{key}"), labels.get(key, 0), member)


def _label(content: bytes, ending: str) -> int | None:
    """The class in a .cls or .json file, if there is one."""
    value = json.loads(content)
    if isinstance(value, dict) and ending == "json":
        value = next((value[name] for name in ("label", "cls", "class") if name in value), None)
    return value if isinstance(value, int) and value >= 0 else None
