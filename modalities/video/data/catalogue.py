"""What videos there are below a folder: their names, classes and splits."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ditmoe.outside import files_below, printable
from modalities.shared.datasets import SPLITS, split_of
from modalities.video.io.frame_folders import PICTURES

SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".3gp",
    ".gif", ".npy",
)  # fmt: skip
"""File endings of videos in a folder; a folder with pictures in it is a video too."""
ALONE = "video"
"""The class of videos that lie in no class folder."""


@dataclass(frozen=True)
class Clip:
    """One video: its path below the root, which is its name, its class and its split."""

    name: str
    path: Path
    category: str
    split: str


def list_videos(root: Path, parts: Sequence[float] = (0.8, 0.1, 0.1)) -> list[Clip]:
    """List the videos below a folder, sorted by name.

    Where the folder has train, val or test in it, these are the splits and the rest is left out; otherwise
    `parts` gives the share of each, taken by a hash of the relative path, so that other files do not change
    it. (Clips that were cut from one video, `v_Name_g01_c02` in UCF-101, stay on one side.) Below that,
    folders of the first level are classes.

    Raises:
        ValueError: if there is no such folder, no video in it, or `parts` are no shares.
    """
    if len(parts) != 3 or min(parts) < 0 or abs(sum(parts) - 1) > 1e-6:
        raise ValueError(f"parts must be three shares that sum to 1, got {list(parts)}")
    if not root.is_dir():
        raise ValueError(f"root must be a folder of videos, got {printable(root)}, which is {_what(root)}")
    paths = find_videos(root)
    if not paths:
        raise ValueError(
            f"root must hold videos ({' '.join(SUFFIXES)}) or folders of frames, got none in {printable(root)}"
        )
    split = any(_parts(path, root)[0] in SPLITS and len(_parts(path, root)) > 1 for path in paths)
    clips = [_clip(path, root, split, parts) for path in paths]
    return [clip for clip in clips if clip.split]


def find_videos(root: Path) -> list[Path]:
    """Video files, and folders with pictures in them, below a folder and by name, without hidden ones.

    Links are followed, each folder is entered once.
    """
    folders: dict[Path, list[Path]] = {}
    for file in files_below(root, special=True):
        folders.setdefault(file.parent, []).append(file)
    found: list[Path] = []
    for folder, files in folders.items():
        videos = [file for file in files if file.name.lower().endswith(SUFFIXES)]
        pictures = any(file.name.lower().endswith(PICTURES) for file in files)
        if pictures and not videos and folder != root:  # pictures beside videos are their thumbnails
            videos = [folder]
        found += videos
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _clip(path: Path, root: Path, split: bool, parts: Sequence[float]) -> Clip:
    names = _parts(path, root)
    if split:
        side, names = names[0] if names[0] in SPLITS else "", names[1:]
    else:
        whole = re.sub(r"_c\d+(?=(\.\w+)?$)", "", "/".join(names))  # the video that a clip was cut from
        side = split_of(whole, parts)
    category = printable(names[0]) if len(names) > 1 else ALONE
    return Clip(printable(path.relative_to(root).as_posix()), path, category, side)


def _parts(path: Path, root: Path) -> tuple[str, ...]:
    return path.relative_to(root).parts


def _what(root: Path) -> str:
    return "a file" if root.exists() else "not there"
