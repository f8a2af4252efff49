"""Lists the videos below a folder: names, classes and splits."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ditmoe.outside import Parts, folders_below, printable
from modalities.shared.datasets import SPLITS
from modalities.shared.folder_index import FolderIndex
from modalities.shared.hash_split import draw, drawn_by_name
from modalities.shared.labels import FILES, read_labels
from modalities.shared.layout import Place, arrange, only_class
from modalities.shared.provenance import Origin
from modalities.shared.sources import sources
from modalities.shared.understood import BESIDE, KIND, OUTSIDE, Ignored, Understood
from modalities.video.io.frame_folders import PICTURES, list_pictures

SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".qt", ".avi", ".divx", ".mkv", ".webm", ".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts",
    ".m2ts", ".m2t", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".3gp", ".3g2", ".mxf", ".dv", ".nut", ".ivf", ".y4m",
    ".h264", ".264", ".h265", ".265", ".hevc", ".mjpeg", ".mjpg", ".gif", ".apng", ".npy",
)  # fmt: skip
"""File suffixes of videos; a folder of images is a video too."""
ALONE = "video"
"""The class of videos outside class folders."""
DENSE = 4
"""Clips cut from one video, see `shared.sources`: short clips are numerous."""
MANY = 20
"""Least number of folders to be taken for the sources of their pieces, without splits as evidence."""
LEAST_FRAMES = 2
"""Least images in a folder that make a clip."""


@dataclass(frozen=True)
class Clip:
    """One video: its path below the root, which is its name, its class and its split."""

    name: str
    path: Path
    category: str
    split: str

    def origin(self) -> Origin:
        """Its location, for `provenance`: a file, or the images of a folder."""
        return Origin(tuple(list_pictures(self.path)) if self.path.is_dir() else (self.path,))


@dataclass(frozen=True)
class Listing:
    """The videos of a data set: class names, the videos by name, and notes on what was ignored."""

    classes: list[str]
    clips: list[Clip]
    origin: str
    ignored: Ignored = field(default_factory=Ignored)
    notes: list[str] = field(default_factory=list)

    def understood(self, root: Path) -> Understood:
        """The summary of the listing."""
        labels = {name: label for label, name in enumerate(self.classes)}
        each = {s: [labels[clip.category] for clip in self.clips if clip.split == s] for s in SPLITS}
        return Understood(root, "video", self.classes, each, self.origin, self.ignored, self.notes)


def list_all(root: Path, parts: Sequence[float] = (0.8, 0.1, 0.1), index: Path | None = None) -> Listing:
    """List the videos below a folder, sorted by name.

    If folders are named train, val or test (`layout.arrange`), these are the splits and the rest is left out;
    otherwise `parts` gives their shares, assigned by a hash of the relative path, independent of other files. Clips cut
    from one video (`shared.sources`), as `v_Name_g01_c02` in UCF-101, stay in one split. Below the splits, top-level
    folders are classes, unless a metadata.jsonl gives them.

    Raises:
        ValueError: if there is no such folder, no video in it, or `parts` are not valid shares.
    """
    if len(parts) != 3 or min(parts) < 0 or abs(sum(parts) - 1) > 1e-6:
        raise ValueError(f"parts must be three shares that sum to 1, got {list(parts)}")
    if not root.is_dir():
        raise ValueError(f"root must be a folder of videos, got {printable(root)}, which is {_what(root)}")
    ignored, notes = Ignored(), list[str]()
    paths = find_videos(root, ignored, index)
    if not paths:
        raise ValueError(
            f"root must hold videos ({' '.join(SUFFIXES)}) or folders of frames, got none in {printable(root)}"
            + "".join(f"; {line}" for line in ignored.lines())
        )
    below = [path.relative_to(root).parts for path in paths]
    layout, listed = arrange(below), read_labels(root)
    kept = _placed(paths, below, layout.places, listed, ignored)
    splits, origin = [video.split or "" for video in kept], layout.origin
    of_sources = listed is None and are_sources([(video.category, video.stem, video.split) for video in kept])
    if of_sources:
        folder, piece = kept[0].category, kept[0].path.name
        notes.append(f"folders such as {folder} hold pieces of one video ({piece}): sources, not classes")
    elif listed is None:
        folders = [place and replace(place, parts=place.parts[:-1]) for place in layout.places]
        homes = (own[:-1] for own in below)
        notes += only_class(root, zip(homes, folders, [1] * len(below), strict=True))
    if not origin:
        categories = [video.category for video in kept]
        keys = categories if of_sources else sources([video.below for video in kept], DENSE)
        splits, moved = draw(keys, parts, categories)
        pieces = sum(count for count in Counter(keys).values() if count > 1)
        origin = drawn_by_name(moved, pieces, parts)
    clips = [
        Clip(printable("/".join(video.below)), video.path, ALONE if of_sources else video.category, split)
        for video, split in zip(kept, splits, strict=True)
    ]
    return Listing(sorted({clip.category for clip in clips}), clips, origin, ignored, notes)


class _Placed(NamedTuple):
    """A video with its class and split by folders or by a list."""

    path: Path
    below: Parts
    category: str
    split: str | None

    @property
    def stem(self) -> str:
        """Its name; for a file without the suffix."""
        return self.path.stem if self.path.suffix.lower() in SUFFIXES else self.path.name


def _placed(
    paths: Sequence[Path],
    below: Sequence[Parts],
    places: Sequence[Place | None],
    listed: Mapping[str, str] | None,
    ignored: Ignored,
) -> list[_Placed]:
    """The videos inside the splits and classes; the others are ignored."""
    categories = {place.category for place in places if place} - {None}
    kept = []
    for path, own, place in zip(paths, below, places, strict=True):
        label = None if listed is None else listed.get("/".join(own))
        if place is None:
            ignored.add(OUTSIDE, path.name)
        elif listed is not None and label is None:
            ignored.add("without a class in the list", path.name)
        elif listed is None and categories and place.category is None:
            ignored.add(BESIDE, path.name)
        else:
            category = label or (ALONE if place.category is None else printable(place.category))
            kept.append(_Placed(path, own, category, place.split))
    return kept


def are_sources(items: Sequence[tuple[str, str, str | None]]) -> bool:
    """Whether folders are videos cut into pieces, as in SkyTimelapse (`ID1/ID1_1/`), rather than classes.

    All pieces must be named after their folder with a number; and no folder may be in two splits, or without splits,
    there must be many folders of few pieces.

    Args:
        items: folder, name and split of each piece.
    """
    folders, seen = {folder for folder, *_ in items}, {(folder, split) for folder, _, split in items}
    if not all(re.fullmatch(re.escape(folder) + r"[-_. ]\d+", name) for folder, name, _ in items):
        return False
    if len({split for *_, split in items} - {None}) > 1:
        return len(seen) == len(folders)
    return len(folders) >= MANY and len(items) <= DENSE * len(folders)


def find_videos(root: Path, ignored: Ignored | None = None, index: Path | None = None) -> list[Path]:
    """Video files and folders of images below a folder, sorted by name, without hidden ones.

    Links are followed, each folder is entered once. What is left out is counted in `ignored`; `index` is a folder in
    which to cache folder contents (`FolderIndex`).
    """
    ignored, known = Ignored() if ignored is None else ignored, FolderIndex(index, root)
    folders: dict[Parts, list[str]] = {}
    for folder, names in folders_below(root, True, ignored.visible, known.read):
        folders.setdefault(folder, []).extend(names)
    known.save()
    found: list[Parts] = []
    for folder, names in folders.items():
        videos = [name for name in names if name.lower().endswith(SUFFIXES)]
        pictures = sum(name.lower().endswith(PICTURES) for name in names)
        beside = videos or not folder or (pictures < LEAST_FRAMES and folder[:-1] in folders)
        for name in names:
            if name.lower().endswith(SUFFIXES) or name in FILES:
                continue
            if not name.lower().endswith(PICTURES):
                ignored.add(KIND, name)
            elif beside:  # thumbnails of the videos
                ignored.add("pictures beside videos", name)
        found += [(*folder, name) for name in videos] or ([folder] if pictures and not beside else [])
    return [root.joinpath(*parts) for parts in sorted(found, key="/".join)]


def _what(root: Path) -> str:
    return "a file" if root.exists() else "not there"
