"""Which pictures there are: the built-in digits, folders of class folders, tars of shards."""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modalities import digits
from modalities.image.pictures import SUFFIXES

SPLITS = ("train", "val", "test")
FOLDERS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
SHARES = (0.9, 0.05)
"""Of train and val, where the data have no splits of their own; the rest is test."""


@dataclass(frozen=True)
class Member:
    """A file in a tar: `size` bytes from `start`."""

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
        raise ValueError(f"modality.data.root must be a folder, got {root}")
    shards = sorted(p for p in root.iterdir() if p.suffix == ".tar")
    classes, found = _shards(root, shards) if shards else _folders(root)
    pictures = {split: [p for own, p in found if own == split] for split in SPLITS}
    pictures["test"] = pictures["test"] or pictures["val"]
    if not any(pictures.values()):
        raise ValueError(
            f"{root} must hold pictures ({' '.join(SUFFIXES)}) in class folders, or .tar shards, got none"
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
    own = {split: root / name for name, split in FOLDERS.items() if (root / name).is_dir()}
    tops: list[tuple[str | None, Path]] = [*own.items()] if "train" in own else [(None, root)]
    files = [(split, top, file) for split, top in tops for file in _pictures_below(top)]
    names = {file.relative_to(top).parts[0] for _, top, file in files if file.parent != top}
    classes = sorted(names) or ["picture"]
    found = []
    for split, top, file in files:
        name = file.relative_to(top).as_posix()
        if names and "/" not in name:
            continue  # beside the class folders: a read-me's picture, not data
        label = classes.index(name.split("/")[0]) if names else 0
        found.append((split or _hashed(name), Picture(file.relative_to(root).as_posix(), label, file)))
    return classes, found


def _pictures_below(top: Path) -> list[Path]:
    found = (
        Path(folder, name)
        for folder, _, names in os.walk(top, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )
    return sorted(found)


def _split_named(name: str) -> str | None:
    """The split that a folder, or a shard such as train-000017, belongs to by its name."""
    word = re.search(r"(?:^|[-_.])(train|val|test)(?:idation|ing)?(?=$|[-_.\d])", name.lower())
    return word[1] if word else None


def _hashed(name: str) -> str:
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
    return SPLITS[int(np.searchsorted(np.cumsum(SHARES), place, side="right"))]


def _shards(root: Path, shards: list[Path]) -> tuple[list[str], list[tuple[str, Picture]]]:
    """Members of all shards; a sample is the files of one key, a picture and its class (.cls, or "label" in .json)."""
    found = [entry for shard in shards for entry in _members(shard)]
    labels = {picture.label for _, picture in found}
    names = root / "classes.txt"
    classes = (
        names.read_text().splitlines()
        if names.is_file()
        else [str(i) for i in range(max(labels, default=0) + 1)]
    )
    if labels and max(labels) >= len(classes):
        raise ValueError(f"{names} must name {max(labels) + 1} classes, got {len(classes)}")
    if not any(split for split, _ in found):
        return classes, [(_hashed(picture.name), picture) for _, picture in found]
    return classes, [(split or "train", picture) for split, picture in found]


def _members(shard: Path) -> Iterator[tuple[str | None, Picture]]:
    split = _split_named(shard.stem)
    pictures: dict[str, Member] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for entry in tar:
                key, _, ending = entry.name.rpartition("/")[2].partition(".")
                key = f"{entry.name.rpartition('/')[0]}/{key}".lstrip("/")
                if entry.isfile() and f".{ending.lower()}" in SUFFIXES:
                    pictures[key] = Member(shard, entry.offset_data, entry.size)
                elif entry.isfile() and ending in ("cls", "json"):
                    stream = tar.extractfile(entry)
                    if (label := _label(stream.read() if stream else b"", ending)) is not None:
                        labels[key] = label
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{shard} is no readable tar: {error}") from error
    for key, member in pictures.items():
        yield split, Picture(f"{shard.name}/{key}", labels.get(key, 0), member)


def _label(content: bytes, ending: str) -> int | None:
    """The class in a .cls or .json file, if there is one."""
    value = json.loads(content)
    if isinstance(value, dict) and ending == "json":
        value = next((value[name] for name in ("label", "cls", "class") if name in value), None)
    return value if isinstance(value, int) and value >= 0 else None
