"""Opens pictures for a person: the system's viewer, or a sheet on disk where there is no display."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from modalities.image.pictures import SUFFIXES, fitted, open_picture
from modalities.sheet import lay_out, save_png

MAX_PICTURES = 200


def view(paths: Sequence[Path], out: Path | None = None) -> str:
    """Show the pictures of files and folders on one sheet; returns one line that says how.

    Args:
        out: where the sheet goes; by default a file `view.png` beside the first path, opened if there is a display.

    Raises:
        ValueError: if none can be read.
    """
    files = [f for path in paths for f in ([path] if path.is_file() else sorted(path.rglob("*")))]
    files = [f for f in files if f.suffix.lower() in SUFFIXES and f.name not in ("samples.png", "view.png")]
    tiles, names, unreadable = [], [], 0
    for file in files[:MAX_PICTURES]:
        try:
            image = open_picture(file)
        except ValueError as error:
            unreadable += 1
            print(error, file=sys.stderr)
            continue
        side = max(64, min(256, image.height))
        factor = max(1, side // image.height)
        enlarged = np.asarray(image).repeat(factor, 0).repeat(factor, 1)
        tiles.append(Image.fromarray(enlarged))
        names.append(file.stem)
    if not tiles:
        raise ValueError(f"nothing to view in {', '.join(map(str, paths))}: no picture could be read")
    size = tiles[0].height, tiles[0].width
    sheet = lay_out([fitted(tile, size) for tile in tiles], names)
    file = save_png(out or _beside(paths[0]), sheet)
    shown = f"{len(tiles)} pictures on {file}" + (f", {unreadable} unreadable" if unreadable else "")
    if out is None and (os.environ.get("DISPLAY") or sys.platform in ("darwin", "win32")):
        Image.fromarray(sheet).show(title=str(file))
        return f"{shown}, opened in a window"
    return shown


def _beside(path: Path) -> Path:
    return (path if path.is_dir() else path.parent) / "view.png"
