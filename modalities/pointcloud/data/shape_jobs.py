"""The shapes to make from the user's files: names, classes and splits."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditmoe.outside import is_regular, printable
from modalities.pointcloud.data.channels import Channels
from modalities.pointcloud.data.formats import count_shapes
from modalities.pointcloud.data.labelled_sets import SUFFIXES as LABELLED
from modalities.pointcloud.data.labelled_sets import classes_within, splits_by_name
from modalities.pointcloud.data.pieces import SCANS, Pieces
from modalities.shared.datasets import SPLITS
from modalities.shared.hash_split import draw, drawn_by_name
from modalities.shared.layout import arrange
from modalities.shared.provenance import digest_of
from modalities.shared.sources import sources
from modalities.shared.understood import OUTSIDE, Ignored

ONE = "one"
"""Recorded for a file with a single shape, in place of the number of shapes of a set."""
ARRANGED = ("source", "split", "views")
"""Options that affect only the paths of files, not their content."""
GENERAL = re.compile("(?i)(model|mesh|object|shape|points?|point_?cloud|scan)s?(_normalized|_watertight)?")
"""Generic file names; such shapes are named after their folder, as with ShapeNet's ids."""


@dataclass(frozen=True)
class Job:
    """One shape to sample: its source, the hash of its inputs (`key`), its target, class and split."""

    source: Path
    staged: Path
    target: str
    name: str
    key: str
    category: str
    split: str
    num_points: int
    seed: int
    item: int | None
    up: str
    min_points: int
    channels: Channels
    views: int

    @property
    def scans(self) -> dict[str, str]:
        """The partial views to make, target -> key."""
        stem = self.target.removesuffix(".npy")
        return {f"{SCANS}/{stem}-{n}.npy": digest_of(self.key, "view", n) for n in range(self.views)}


def places_of(
    files: list[Path], source: Path, shares: Sequence[float], seed: int, ignored: Ignored
) -> tuple[dict[Path, tuple[str, str]], str]:
    """Class and split of each data file, and the origin of the splits."""
    names = [name_in(path, source) for path in files]
    layout = arrange([tuple(name.split("/")) for name in names])
    kept: list[tuple[Path, str, str | None]] = []
    for path, place in zip(files, layout.places, strict=True):
        if place is None:
            ignored.add(OUTSIDE, path.name)
        else:
            kept.append((path, place.category or "shape", place.split))
    origin = layout.origin
    splits = [split or "" for *_, split in kept]
    if not origin:
        every = [path for path, *_ in kept]
        named = splits_by_name(path for path in every if path.suffix.lower() in LABELLED)
        named = named or splits_by_name(every)
        others = [(path, category) for path, category, _ in kept if path not in named]
        own = sources([tuple(name_in(path, source).split("/")) for path, _ in others])
        keys = [f"{seed}:{key}" for key in own]
        drawn, moved = draw(keys, shares, [category for _, category in others])
        origin = drawn_by_name(moved, sum(n for n in Counter(keys).values() if n > 1), shares)
        if named:
            by_name = f"from the names of {len(named)} files"
            origin = f"{by_name}, others {origin}" if others else by_name
        found = named | {path: split for (path, _), split in zip(others, drawn, strict=True)}
        splits = [found[path] for path, *_ in kept]
    return {path: (category, split) for (path, category, _), split in zip(kept, splits, strict=True)}, origin


def items_of(path: Path, known: str, place: tuple[str, str]) -> list[tuple[int | None, tuple[str, str]]]:
    """The indices of the shapes of a file, None for a single one, each with class and split.

    Args:
        known: their recorded number, which must not be exceeded.
    """
    if known == ONE:
        return [(None, place)]
    count: int | None = number_of(known)
    if not (is_regular(path) and count and count <= path.stat().st_size):
        count = count_shapes(path)
    if not count:  # an empty set is reported when it is read
        return [(None, place)]
    classes = classes_within(path, count) or [place[0]] * count
    return [(item, (category, place[1])) for item, category in enumerate(classes)]


def make_job(
    path: Path,
    source: Path,
    pieces: Pieces,
    setting: dict[str, Any],
    place: tuple[str, str],
    content: str,
    item: int | None,
    channels: Channels,
    views: int,
) -> Job:
    """Make a job whose seed and key follow from the content, independent of other files and of names."""
    (category, part), name = place, name_in(path, source)
    *folders, _ = name.split("/")
    name += "" if item is None else f"/{item:04d}"
    made_by = [f"{word} {value}" for word, value in setting.items() if word not in ARRANGED]
    key = digest_of(*made_by, content or name, item)
    own = [folder for folder in folders[1:] if folder.lower() not in ("models", *SPLITS)]
    stem = own[-1] if own and GENERAL.fullmatch(path.stem) else path.stem
    stem = re.sub(r"[^\w.-]+", "_", stem)[:80] + ("" if item is None else f"-{item:04d}")
    return Job(
        path,
        pieces.staged(key),
        f"{category}/{part}/{stem}-{key[:12]}.npy",
        as_told(name),
        key,
        as_told(category),
        part,
        setting["num_points"],
        int(digest_of(setting["seed"], content, item)[:16], 16),
        item,
        setting["up"],
        setting["min_points"],
        channels,
        views,
    )


def number_of(known: str) -> int:
    """The recorded number of shapes of a file; 0 if unknown."""
    return int(known) if known.isdecimal() and len(known) < 10 else int(known == ONE)


def name_in(path: Path, source: Path) -> str:
    """Path of a file relative to the source folder."""
    return path.relative_to(source).as_posix()


def as_told(name: str) -> str:
    r"""A name for reports, on one line and unique: backslashes are doubled, undecodable bytes become \xe9."""
    return "".join(
        # otherwise an undecodable byte 0x85 would look like the character U+0085
        f"\\u{ord(c):04x}" if "\x80" <= c <= "\xff" and printable(c) != c else printable(c)
        for c in name.replace("\\", "\\\\")
    )
