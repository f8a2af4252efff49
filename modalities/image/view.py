"""Shows images to the user: in the system's viewer, or as a sheet on disk without a display."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ditmoe.modality import Shown
from ditmoe.outside import files_below, patiently, printable, tell
from modalities.image.data.pictures import SUFFIXES, fitted, open_picture
from modalities.shared import enlarged, lay_out, show

MAX_PICTURES = 200
LARGEST = 4096
"""Most pixels per side of a single image shown; several share this total."""
SHOWN = 1024
"""Most pixels per side of an image on a page."""
MOST_ON_A_PAGE = 2**23
"""Most pixels of an image decoded for a page, which shows many: more than 3840 x 2160."""


def view(paths: Sequence[Path], out: Path | None = None) -> str:
    """Show the images of files and folders on one sheet; returns one line that says how.

    Args:
        out: where the sheet goes; by default a file `view.png` beside the first path, opened if there is a display.

    Raises:
        ValueError: if none can be read.
    """
    files = [f for path in paths for f in (files_below(path, special=True) if path.is_dir() else [path])]
    files = [f for f in files if f.suffix.lower() in SUFFIXES and f.name not in ("samples.png", "view.png")]
    tiles, names, unreadable = [], [], 0
    most = int(LARGEST / max(1, min(len(files), MAX_PICTURES)) ** 0.5)
    for file in patiently(files[:MAX_PICTURES]):
        try:
            image = open_picture(file, None, lambda picture: _drawn(picture, most))
        except ValueError as error:
            unreadable += 1
            tell(error)
            continue
        tiles.append(image)
        names.append(printable(file.stem))
    if not tiles:
        raise ValueError(f"nothing to view in {', '.join(map(printable, paths))}: no picture could be read")
    size = tiles[0].height, tiles[0].width
    sheet = lay_out([fitted(tile, size) for tile in tiles], names)
    shown = show(sheet, f"{len(tiles)} pictures", paths[0], out)
    return f"{shown}, {unreadable} unreadable" if unreadable else shown


def show_one(file: Path) -> Shown:
    """Prepare an image for a page."""
    return Shown(
        picture=open_picture(file, None, lambda picture: np.array(_smaller(picture, SHOWN)), MOST_ON_A_PAGE)
    )


def _smaller(image: Image.Image, most: int) -> Image.Image:
    image.thumbnail((most, most))
    return image


def _drawn(image: Image.Image, most: int) -> Image.Image:
    """Scale for display: enlarge small images, and limit the sides of large ones."""
    return Image.fromarray(enlarged(np.asarray(_smaller(image, most))))
