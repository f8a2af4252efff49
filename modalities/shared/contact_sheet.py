"""Contact sheets: many images in one, each with its label."""

import os
import re
import sys
from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from ditmoe.checkpoint import replacing
from ditmoe.outside import OWN_PICTURE, check_ours, printable
from modalities.shared.lettering import Lettering

LONGEST = 500
"""Characters of a label that are used; prompts and class names of unknown origin have any length."""
_NO_NAME = re.compile(r"[\W\d_]*+")


def lay_out(
    tiles: Sequence[UInt8[np.ndarray, "h w 3"]],
    labels: Sequence[str],
    columns: int | None = None,
    title: str | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Lay out images of one size on a sheet, with a label under each.

    Args:
        tiles: at least one.
        labels: one per tile; "chair", "chair 12" and "chair_12" are one class.
        columns: tiles per row, in the given order. By default each class gets its own rows if that leaves few places
            empty; otherwise the sheet is a little wider than high.
        title: a line above the sheet.
    Returns:
        (H, W, 3) sRGB, with the size that `sheet_size` gives for its rows and columns.
    Raises:
        ValueError: if there is nothing to show or the lengths differ.
    """
    if not 0 < len(tiles) == len(labels):
        raise ValueError(f"labels must be one per picture, at least one; got {len(labels)} for {len(tiles)}")
    height, width = tiles[0].shape[:2]
    rows = _rows([class_of(label) for label in labels], columns, width / height)
    across = columns or max(map(len, rows))
    gap, line = _gap(height), _line(height)
    sheet = Image.new("RGB", sheet_size(len(rows), across, height, title is not None, width), "white")
    pen, lettering = ImageDraw.Draw(sheet), Lettering()
    top = gap
    if title is not None:
        top += 2 * line
        _write(pen, lettering, title, sheet.width / 2, gap + line * 0.75, sheet.width - 2 * gap, line)
    for i, row in enumerate(rows):
        for j, index in enumerate(row):
            x, y = gap + j * (width + gap), top + i * (height + line + gap)
            sheet.paste(Image.fromarray(tiles[index]), (x, y))
            _write(pen, lettering, labels[index], x + width / 2, y + height + line / 2, width, line * 0.72)
    return np.asarray(sheet)


def class_of(label: str) -> str:
    """The class named by a label or file name: "chair 12" and "chair_0012" are chairs."""
    behind = _NO_NAME.match(label[::-1])  # matched in reverse, since a search would be quadratic
    return label[: len(label) - (behind.end() if behind else 0)] or label


def sheet_size(
    rows: int, columns: int, height: int, title: bool = False, width: int | None = None
) -> tuple[int, int]:
    """Width and height in pixels of a sheet of tiles of this height and width, square by default."""
    gap, line = _gap(height), _line(height)
    across = gap + columns * ((width or height) + gap)
    return across, gap + rows * (height + line + gap) + (2 * line if title else 0)


def _gap(height: int) -> int:
    return max(4, height // 16)


def _line(height: int) -> int:
    return max(14, height // 9)


def _rows(classes: Sequence[str], columns: int | None, aspect: float = 1.0) -> list[list[int]]:
    """Indices of the images in each row of the sheet; aspect is a tile's width over its height."""
    everything = range(len(classes))
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    groups = [[i for i in everything if classes[i] == name] for name in dict.fromkeys(classes)]
    if columns is None and len(groups) > 1:
        width = min(int(np.ceil(10 / max(1.0, aspect))), max(map(len, groups)))
        rows = [group[i : i + width] for group in groups for i in range(0, len(group), width)]
        if len(classes) >= 0.6 * width * len(rows) and width > 1:
            # Let two groups share a row if the sheet would otherwise be very tall.
            if len(rows) > 6 and width * aspect <= 6 and {len(row) for row in rows} == {width}:
                rows = [list(chain(*rows[i : i + 2])) for i in range(0, len(rows), 2)]
            return rows
    width = columns or int(np.ceil(np.sqrt(1.4 * len(classes) / aspect)))
    return [list(everything[i : i + width]) for i in range(0, len(classes), width)]


def _write(
    pen: ImageDraw.ImageDraw,
    lettering: Lettering,
    text: str,
    x: float,
    y: float,
    width: float,
    height: float,
) -> None:
    """Draw one centred line, in a smaller font and then truncated if it is too wide."""
    face, text = lettering.choose(_cut(text, LONGEST))
    font = face.at(height)
    if (wide := pen.textlength(text, font)) > width:
        font = face.at(max(9.0, height * width / wide))
    if pen.textlength(text, font) > width:
        fits = bisect_left(
            range(len(text)), True, key=lambda letters: pen.textlength(_cut(text, letters), font) > width
        )
        text = _cut(text, fits - 1) if fits > 1 else ""
    pen.text((x, y), text, (70, 74, 82), font, anchor="mm")


def _cut(text: str, letters: int) -> str:
    """Truncate a text to a number of letters, with an ellipsis."""
    return text if len(text) <= letters else text[:letters].rstrip() + "..."


def enlarged(frames: UInt8[np.ndarray, "*T H W 3"]) -> UInt8[np.ndarray, "*T h w 3"]:
    """Enlarge small images by repeating pixels."""
    height, width = frames.shape[-3:-1]
    factor = max(1, min(64 // height, 1024 // width))
    return frames.repeat(factor, -3).repeat(factor, -2)


def save_png(path: str | Path, image: UInt8[np.ndarray, "H W 3"]) -> Path:
    """Write a PNG atomically, creating its folders. Returns the path."""
    path, about = Path(path), PngInfo()
    about.add_text("Software", "ditmoe")  # OWN_PICTURE
    with replacing(path) as stream:
        Image.fromarray(image).save(stream, "PNG", optimize=True, pnginfo=about)
    return path


def save_sheet(sheet: UInt8[np.ndarray, "H W 3"], out: Path | None, beside: Path) -> Path:
    """Write a sheet to `out`, else beside what it shows, where it replaces no picture of another program."""
    if out is None:
        check_ours(beside, "picture", OWN_PICTURE, "name the file to write with --out")
    return save_png(out or beside, sheet)


def show(sheet: UInt8[np.ndarray, "H W 3"], what: str, first: Path, out: Path | None) -> str:
    """Write a sheet, and open it if there is a display; returns one line that says so.

    Args:
        what: what the sheet shows.
        first: file or folder that it shows; by default the sheet is written beside it, and only then opened.
    """
    file = save_sheet(sheet, out, (first if first.is_dir() else first.parent) / "view.png")
    shown = f"{what} on {printable(file)}"
    if out is None and (os.environ.get("DISPLAY") or sys.platform in ("darwin", "win32")):
        Image.fromarray(sheet).show(title=str(file))
        return f"{shown}, opened in a window"
    return shown
