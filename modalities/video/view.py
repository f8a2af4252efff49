"""Shows clips to a person: frames of each on one sheet, in a window where there is a display."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from modalities.sheet import lay_out, save_png
from modalities.video.container import Unreadable
from modalities.video.data import fit
from modalities.video.reader import read_clip, read_index
from modalities.video.sets import one_each
from modalities.video.writer import SUFFIXES

MAX_CLIPS = 40
SHOWN = 6
"""Frames of a clip on a sheet."""


def view(paths: Sequence[Path], out: Path | None = None) -> str:
    """Draw clips of files and folders on one sheet; returns one line that says how.

    Args:
        out: where the sheet goes; by default a file `view.png` beside the first path, opened if there is a display.

    Raises:
        ValueError: if none can be read.
    """
    found = [f for path in paths for f in ([path] if path.is_file() else sorted(path.rglob("*")))]
    files = one_each([f for f in found if f.suffix.lower() in (*SUFFIXES, ".avi", ".mov", ".webm")])
    strips: list[np.ndarray] = []
    names: list[str] = []
    for file in files[:MAX_CLIPS]:
        try:
            clip = read_clip(file, 0, len(read_index(file)))
        except Unreadable as error:
            print(error, file=sys.stderr)
            continue
        size = strips[0].shape[:2] if strips else None
        drawn = strip(clip)
        strips.append(drawn if size in (None, drawn.shape[:2]) else fit(drawn[None], size)[0])
        names.append(file.stem)
    if not strips:
        raise ValueError(f"nothing to view in {', '.join(map(str, paths))}: no video could be read")
    sheet = lay_out(strips, names)
    place = out or (paths[0] if paths[0].is_dir() else paths[0].parent) / "view.png"
    shown = f"{len(strips)} clips on {save_png(place, sheet)}"
    if out is None and (os.environ.get("DISPLAY") or sys.platform in ("darwin", "win32")):
        Image.fromarray(sheet).show(title=str(place))
        return f"{shown}, opened in a window"
    return shown


def strip(clip: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A few frames of a clip side by side, from the first to the last."""
    at = np.linspace(0, len(clip) - 1, min(SHOWN, len(clip))).round().astype(int)
    return np.concatenate(list(enlarged(clip[at])), axis=1)


def enlarged(clip: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "T h w 3"]:
    """A small clip with each pixel drawn larger."""
    factor = max(1, 64 // clip.shape[1])
    return clip.repeat(factor, 1).repeat(factor, 2)
