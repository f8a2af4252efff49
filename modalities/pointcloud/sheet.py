"""Contact sheets: many clouds in one labelled picture."""

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, ImageDraw, ImageFont

from ditmoe.checkpoint import replacing
from modalities.pointcloud.render import RGB, class_color, finite, render


def contact_sheet(
    clouds: Sequence[Num[np.ndarray, "_ 3"]],
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    cell: int = 160,
    title: str | None = None,
    colors: Sequence[RGB] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw many clouds on one labelled sheet.

    Args:
        clouds: 1 to 200 arrays (N, 3); N may differ, and may be 0.
        labels: one string per cloud, drawn under it; "chair", "chair 12" and "chair_12" are one class.
        columns: cells per row, in the order given. By default each class gets its own rows where that
            leaves few cells empty, and a sheet a little wider than high otherwise.
        cell: pixels along the edge of one picture.
        title: a line above the sheet.
        colors: one per cloud; by default one per class, by order of appearance.
    Returns:
        (H, W, 3) sRGB, whose size is `sheet_size` of the rows and columns.
    Raises:
        ValueError: where there is nothing to draw or the lengths differ.
    """
    labels = [""] * len(clouds) if labels is None else [str(label) for label in labels]
    for name, given in (("clouds", clouds), ("labels", labels), ("colors", colors or clouds)):
        if not 0 < len(given) == len(clouds):
            raise ValueError(
                f"{name} must be one per cloud, at least one; got {len(given)} for {len(clouds)}"
            )
    classes = [class_of(label) for label in labels]
    order = list(dict.fromkeys(classes))
    rows = _rows(classes, columns)
    width = columns or max(map(len, rows))
    gap, line = _gap(cell), _line(cell)
    sheet = Image.new("RGB", sheet_size(len(rows), width, cell, title is not None), "white")
    pen = ImageDraw.Draw(sheet)
    top = gap
    if title is not None:
        top += 2 * line
        _write(pen, title, sheet.width / 2, gap + line * 0.75, sheet.width - 2 * gap, line)
    for i, row in enumerate(rows):
        for j, index in enumerate(row):
            x, y = gap + j * (cell + gap), top + i * (cell + line + gap)
            color = colors[index] if colors is not None else class_color(order.index(classes[index]))
            kept = finite(clouds[index])
            sheet.paste(Image.fromarray(render(kept, cell, color=color)), (x, y))
            label = _label(labels[index], len(clouds[index]), len(kept))
            _write(pen, label, x + cell / 2, y + cell + line / 2, cell, line * 0.72)
    return np.asarray(sheet)


def class_of(label: str) -> str:
    """The class that a label or a file name speaks of: "chair 12" and "chair_0012" are chairs."""
    return re.sub(r"[\W\d_]+$", "", label) or label


def sheet_size(rows: int, columns: int, cell: int, title: bool = False) -> tuple[int, int]:
    """Width and height of a contact sheet in pixels."""
    gap, line = _gap(cell), _line(cell)
    return gap + columns * (cell + gap), gap + rows * (cell + line + gap) + (2 * line if title else 0)


def _gap(cell: int) -> int:
    return max(4, cell // 16)


def _line(cell: int) -> int:
    return max(14, cell // 9)


def _rows(classes: Sequence[str], columns: int | None) -> list[list[int]]:
    """Indices of the clouds in each row of the sheet."""
    everything = range(len(classes))
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    groups = [[i for i in everything if classes[i] == name] for name in dict.fromkeys(classes)]
    if columns is None and len(groups) > 1:
        width = min(10, max(map(len, groups)))
        rows = [group[i : i + width] for group in groups for i in range(0, len(group), width)]
        if len(classes) >= 0.6 * width * len(rows) and width > 1:
            if (
                len(rows) > 6 and width <= 6 and {len(row) for row in rows} == {width}
            ):  # else the sheet is a tower
                rows = [list(chain(*rows[i : i + 2])) for i in range(0, len(rows), 2)]
            return rows
    width = columns or int(np.ceil(np.sqrt(1.4 * len(classes))))
    return [list(everything[i : i + width]) for i in range(0, len(classes), width)]


def _label(label: str, given: int, kept: int) -> str:
    """The label, with a word on what is not in the picture."""
    if kept == given:
        return label if given else f"{label} (empty)".strip()
    return f"{label} ({given - kept if kept else 'all'} not finite)".strip()


def _write(pen: ImageDraw.ImageDraw, text: str, x: float, y: float, width: float, height: float) -> None:
    """Write one centred line, smaller and then shorter where it is too wide."""
    font = ImageFont.load_default(size=height)
    if (wide := pen.textlength(text, font)) > width:
        font = ImageFont.load_default(size=max(9.0, height * width / wide))
    while text and pen.textlength(text, font) > width:
        text = text.removesuffix("...")[:-1].rstrip() + ("..." if len(text) > 4 else "")
    pen.text((x, y), text, (70, 74, 82), font, anchor="mm")


def save_png(path: str | Path, image: UInt8[np.ndarray, "H W 3"]) -> Path:
    """Write a PNG whole or not at all; folders are made. Returns the path."""
    path = Path(path)
    with replacing(path) as stream:
        Image.fromarray(image).save(stream, "PNG", optimize=True)
    return path
