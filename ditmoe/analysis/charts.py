"""Heat maps and line plots, drawn with Pillow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from ditmoe.outside import printable

PAPER, INK, PALE, MISSING = (255, 255, 255), (32, 34, 40), (205, 208, 214), (236, 236, 236)
LINES = ((31, 100, 168), (200, 78, 38), (46, 134, 84), (134, 84, 160), (150, 116, 20), (90, 100, 112))
_LOW, _MIDDLE, _HIGH = np.array([33, 102, 172]), np.array([247, 247, 247]), np.array([178, 40, 43])
SIZE, LONGEST = 12, 22
"""Font size in pixels, and most characters of a label."""


@dataclass(frozen=True)
class Scale:
    """A colour scale: white at `middle`, blue from `middle - reach` down, red from `middle + reach` up."""

    middle: float
    reach: float

    def colours(self, values: Float[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n 3"]:
        """RGB colours of the values; grey where a value is not finite."""
        share = np.clip((values - self.middle) / max(self.reach, 1e-12), -1, 1)[..., None]
        mixed = _MIDDLE + np.abs(share) * (np.where(share < 0, _LOW, _HIGH) - _MIDDLE)
        return np.where(np.isfinite(share), np.nan_to_num(mixed), MISSING).round().astype(np.uint8)


def font(size: int = SIZE) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in font, which is the same on all machines."""
    return ImageFont.load_default(size=size)


def label(text: object) -> str:
    """The text in ASCII, which the built-in font can draw, shortened to `LONGEST` characters."""
    plain = printable(text).encode("ascii", "backslashreplace").decode()
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "~"


def heat(
    values: Float[np.ndarray, "rows columns"],
    scale: Scale,
    title: str = "",
    rows: Sequence[object] = (),
    columns: Sequence[object] = (),
    cell: tuple[int, int] = (24, 24),
) -> Image.Image:
    """A heat map with optional row and column labels.

    Args:
        cell: width and height of a cell, in pixels.
    """
    left = max([0, *(int(font().getlength(label(name))) for name in rows)]) + 8
    below = max([0, *(int(font().getlength(label(name))) for name in columns)]) + 8
    flat = all(font().getlength(label(name)) <= cell[0] - 2 for name in columns)
    below = 20 if columns and flat else below
    high, wide = values.shape[0] * cell[1], values.shape[1] * cell[0]
    top = 20 if title else 4
    picture = Image.new(
        "RGB", (max(left + wide + 8, int(font().getlength(title)) + 8), top + high + below), PAPER
    )
    draw = ImageDraw.Draw(picture)
    draw.text((4, 3), title, INK, font())
    colours = Image.fromarray(scale.colours(values)).resize((wide, high), Image.Resampling.NEAREST)
    picture.paste(colours, (left, top))
    draw.rectangle((left - 1, top - 1, left + wide, top + high), outline=PALE)
    for i, name in enumerate(rows):
        draw.text((left - 4, top + (i + 0.5) * cell[1]), label(name), INK, font(), anchor="rm")
    for i, name in enumerate(columns):
        middle = left + (i + 0.5) * cell[0]
        if flat:
            draw.text((middle, top + high + 3), label(name), INK, font(), anchor="mt")
        else:
            _upright(picture, label(name), middle, top + high + 4)
    return picture


def _upright(picture: Image.Image, text: str, x: float, y: int) -> None:
    width = int(font().getlength(text)) + 2
    turned = Image.new("RGB", (width, SIZE + 4), PAPER)
    ImageDraw.Draw(turned).text((0, 1), text, INK, font())
    turned = turned.rotate(90, expand=True)
    picture.paste(turned, (int(x - turned.width / 2), y))


@dataclass(frozen=True)
class Line:
    """A series of a plot, with optional intervals from `low` to `high`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def plot(
    lines: Sequence[Line],
    title: str,
    x_title: str = "",
    ticks: Sequence[tuple[float, object]] = (),
    joined: bool = True,
    size: tuple[int, int] = (460, 280),
) -> Image.Image:
    """A plot of curves with their intervals and a line at zero.

    Args:
        ticks: positions on the x axis and their labels.
        joined: whether the points of a series are connected.
        size: width and height in pixels.
    """
    key = sum(1 for line in lines if line.name)
    left, top, right, below = 74, 26, 12, 40 + 16 * -(-key // 2)
    every = [
        v for line in lines for of in (line.y, line.low or (), line.high or ()) for v in of if np.isfinite(v)
    ]
    low, high = min([0.0, *every]), max([0.0, *every])
    room = 0.06 * ((high - low) or 1.0)
    low, high = low - room, high + room
    xs = [*(v for line in lines for v in line.x), *(x for x, _ in ticks)] or [0.0, 1.0]
    first, last = min(xs), max(xs)
    margin = 0.04 * ((last - first) or 1.0)
    wide, tall = size[0] - left - right, size[1] - top - below

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - first + margin) / (last - first + 2 * margin)
        return left + wide * across, top + tall * (high - y) / (high - low)

    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((6, 5), title, INK, font())
    for y in _steps(low, high):
        draw.line([(left, at(first, y)[1]), (left + wide, at(first, y)[1])], INK if y == 0 else PALE, 1)
        draw.text((left - 5, at(first, y)[1]), f"{y:g}", INK, font(11), anchor="rm")
    for x, name in ticks:
        draw.text((at(x, low)[0], top + tall + 4), label(name), INK, font(11), anchor="mt")
    draw.text((left + wide / 2, top + tall + 19), x_title, INK, font(11), anchor="mt")
    number = 0
    for line, colour in zip(lines, [*LINES] * (1 + len(lines) // len(LINES)), strict=False):
        points = [at(x, y) if np.isfinite(y) else None for x, y in zip(line.x, line.y, strict=True)]
        for i, (x, point) in enumerate(zip(line.x, points, strict=True)):
            if point and line.low is not None and line.high is not None and np.isfinite(line.low[i]):
                draw.line([at(x, line.low[i]), at(x, line.high[i])], colour, 1)
            if point:
                draw.ellipse((point[0] - 2.5, point[1] - 2.5, point[0] + 2.5, point[1] + 2.5), fill=colour)
        there = [point for point in points if point]
        if joined and len(there) > 1:
            draw.line(there, colour, 2)
        if line.name:
            x, y = left + (number % 2) * wide // 2, top + tall + 36 + 16 * (number // 2)
            draw.rectangle((x, y + 2, x + 9, y + 11), fill=colour)
            draw.text((x + 14, y), label(line.name), INK, font(11))
            number += 1
    return picture


def _steps(low: float, high: float) -> list[float]:
    """About five round numbers between two limits."""
    raw = (high - low) / 5
    power = 10 ** np.floor(np.log10(raw))
    step = float(min(n for n in (power, 2 * power, 5 * power, 10 * power) if n >= raw))
    first = int(np.ceil(low / step))
    return [float(f"{n * step:.12g}") for n in range(first, int(np.floor(high / step)) + 1)]


def stacked(
    pictures: Sequence[Sequence[Image.Image]], title: str, foot: str = ""
) -> UInt8[np.ndarray, "H W 3"]:
    """Rows of pictures below each other, with a title and a legend `foot`."""
    rows = [row for row in pictures if row]
    words = int(max(font(15).getlength(title), font(11).getlength(foot))) + 16
    wide = max([words, *(sum(p.width + 10 for p in row) + 6 for row in rows)])
    tall = 30 + sum(max(p.height for p in row) + 8 for row in rows) + (22 if foot else 4)
    sheet = Image.new("RGB", (wide, tall), PAPER)
    draw, y = ImageDraw.Draw(sheet), 30
    draw.text((8, 6), title, INK, font(15))
    for row in rows:
        x = 8
        for each in row:
            sheet.paste(each, (x, y))
            x += each.width + 10
        y += max(p.height for p in row) + 8
    draw.text((8, y + 2), foot, INK, font(11))
    return np.asarray(sheet)
