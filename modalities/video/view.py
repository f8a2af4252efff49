"""Shows clips to the user: frames of each on one sheet, opened if there is a display."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from ditmoe.modality import Shown
from ditmoe.outside import files_below, patiently, printable, tell
from modalities.shared import enlarged, lay_out, show
from modalities.video.data.clip_folders import one_each
from modalities.video.data.clip_reader import fit, resized
from modalities.video.io.container import Unreadable, Work
from modalities.video.io.reader import read_clip, read_index, read_numbers
from modalities.video.io.writer import SUFFIXES

MAX_CLIPS = 40
LARGEST = 2048
"""Most pixels per side of the frames of a single clip shown; several share this total."""
MOST_FRAMES, MOST_READ, SIDE = 256, 2**26, 512
"""Limits of a clip on a page: its frames, their total pixels when read, and pixels per side."""
SHOWN = 6
"""Frames of a clip on a sheet."""


def view(paths: Sequence[Path], out: Path | None = None) -> str:
    """Draw clips of files and folders on one sheet; returns one line that says how.

    Args:
        out: where the sheet goes; by default a file `view.png` beside the first path, opened if there is a display.

    Raises:
        ValueError: if none can be read.
    """
    found = [f for path in paths for f in (files_below(path, special=True) if path.is_dir() else [path])]
    files = one_each([f for f in found if f.suffix.lower() in (*SUFFIXES, ".avi", ".mov", ".webm")])
    strips: list[np.ndarray] = []
    names: list[str] = []
    most = int(LARGEST / max(1, min(len(files), MAX_CLIPS)) ** 0.5)
    for file in patiently(files[:MAX_CLIPS]):
        try:
            drawn = strip(_shown(file, most))
        except Unreadable as error:
            tell(error)
            continue
        size = strips[0].shape[:2] if strips else None
        strips.append(drawn if size in (None, drawn.shape[:2]) else fit(drawn[None], size)[0])
        names.append(printable(file.stem))
    if not strips:
        raise ValueError(f"nothing to view in {', '.join(map(printable, paths))}: no video could be read")
    return show(lay_out(strips, names), f"{len(strips)} clips", paths[0], out)


def _shown(file: Path, most: int) -> UInt8[np.ndarray, "F h w 3"]:
    """A few frames of a clip, of at most so many pixels a side, of which one is in memory as it is.

    Raises:
        Unreadable: if it is no clip, or its frames lie too far from each other to be decoded.
    """
    index, work, frames = read_index(file), Work(file), []
    for at in _places(len(index)):
        frame = read_clip(file, int(at), 1, index=index, work=work)
        if frame.shape[1:3] != (index.height, index.width):
            raise Unreadable(file, "damaged", "frames differ in size")
        frames.append(_smaller(frame, most))
    return np.concatenate(frames)


def show_one(files: Sequence[Path]) -> Shown:
    """A clip for a page, of files that differ in their ending: the lossless one, at most so many frames of it."""
    file = one_each(list(files))[-1]
    index = read_index(file)
    most = max(1, min(MOST_FRAMES, len(index), MOST_READ // max(1, index.height * index.width)))
    numbers = np.linspace(0, len(index) - 1, most).round().astype(np.int64)
    frames = read_numbers(file, numbers, index=index)
    rate = (index.rate or 8.0) * len(numbers) / len(index)
    return Shown(frames=_smaller(frames, SIDE), rate=rate)


def strip(clip: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A few frames of a clip side by side, from the first to the last."""
    return np.concatenate(list(enlarged(clip[_places(len(clip))])), axis=1)


def _places(length: int) -> Int64[np.ndarray, " F"]:
    return np.linspace(0, length - 1, min(SHOWN, length)).round().astype(np.int64)


def _smaller(frames: UInt8[np.ndarray, "T H W 3"], most: int) -> UInt8[np.ndarray, "T h w 3"]:
    height, width = frames.shape[1:3]
    if (side := max(height, width)) <= most:
        return frames
    return resized(frames, (max(1, height * most // side), max(1, width * most // side)))
