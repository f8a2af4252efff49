"""Curves over logarithmic axes, drawn with Pillow: panels with lines, intervals and a legend."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#000000",
    "#7f7f7f", "#1b9e77", "#a6761d", "#393b79", "#98df8a", "#ff9896", "#c5b0d5", "#b8860b",
)  # fmt: skip
WIDTH, HEIGHT, LEGEND, LINE, SCALE = 300, 230, 120, 12, 2
"""Of a panel, at least, of its legend at the right and of a line in that; drawn so many times as large, for smooth
lines."""


@dataclass(frozen=True)
class Curve:
    """Values over x, above zero; those that are no numbers leave a gap. `low` and `high` are ends of intervals."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    mark: int | None = None
    """Index of a point that is to be seen."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    across: str
    up: str
    curves: Sequence[Curve]

    @property
    def values(self) -> list[float]:
        """What is to be seen upwards: all points, and of intervals that lead far beyond these a part."""
        points = [y for c in self.curves for y in c.y if math.isfinite(y) and y > 0]
        ends = [y for c in self.curves for y in (*c.low, *c.high) if math.isfinite(y)]
        return points + [min(max(y, 0.9 * min(points)), 1.1 * max(points)) for y in ends]


class Axis:
    """Logarithms of values onto pixels."""

    def __init__(self, values: Sequence[float], first: float, last: float, least: float = 1.1) -> None:
        kept = [v for v in values if math.isfinite(v) and v > 0] or [1.0, 2.0]
        low, high = min(kept), max(kept)
        middle, half = math.sqrt(low * high), max(math.log(high / low), math.log(least)) / 2
        self.low, self.high = middle * math.exp(-1.06 * half), middle * math.exp(1.06 * half)
        self.first, self.last = first, last

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.first + share * (self.last - self.first)

    def ticks(self) -> list[float]:
        """Round numbers within, about five."""
        decades = range(math.floor(math.log10(self.low)) - 1, math.ceil(math.log10(self.high)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), [i / 10 for i in range(10, 100)]):
            found = [d * 10.0**e for e in decades for d in digits if self.low <= d * 10.0**e <= self.high]
            if len(found) >= 3:
                return found[:: max(1, len(found) // 5)]
        return [self.low, self.high]


def draw_panels(panels: Sequence[Panel], file: Path, columns: int) -> None:
    """Write a PNG of panels, row by row, all of one scale upwards; a name has one colour in all of them."""
    columns = min(columns, max(1, len(panels)))
    rows = -(-len(panels) // columns)
    height = max(HEIGHT, *(LINE * len(panel.curves) + 60 for panel in panels)) if panels else HEIGHT
    size = (columns * (WIDTH + LEGEND) * SCALE, rows * height * SCALE)
    image = Image.new("RGB", size, "white")
    values = [value for panel in panels for value in panel.values]
    names = dict.fromkeys(curve.name for panel in panels for curve in panel.curves)
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    for number, panel in enumerate(panels):
        left, top = number % columns * (WIDTH + LEGEND), number // columns * height
        _draw(ImageDraw.Draw(image), panel, values, colours, left, top, height)
    small = image.resize((size[0] // SCALE * 3 // 2, size[1] // SCALE * 3 // 2), Image.Resampling.LANCZOS)
    # Full colour: a palette of the most frequent colours mixes up thin lines.
    small.save(file, optimize=True)


def _draw(
    draw: ImageDraw.ImageDraw,
    panel: Panel,
    values: Sequence[float],
    colours: Mapping[str, str],
    left: int,
    top: int,
    height: int,
) -> None:
    font, small = (ImageFont.load_default(size=s * SCALE) for s in (11, 9))
    s = SCALE
    x0, x1 = (left + 46) * s, (left + WIDTH - 8) * s
    y0, y1 = (top + height - 36) * s, (top + 24) * s
    across = Axis([x for c in panel.curves for x in c.x], x0, x1)
    up = Axis(values, y0, y1)
    draw.text((x0, (top + 5) * s), f"{panel.title}: {panel.up}", "black", font)
    draw.text(((x0 + x1) / 2, y0 + 17 * s), panel.across, "black", small, "mt")
    xs = sorted({x for c in panel.curves for x in c.x})
    for x in xs if len(xs) < 9 else xs[::2]:
        draw.line([(across(x), y0), (across(x), y0 + 4 * s)], "black", s)
        draw.text((across(x), y0 + 6 * s), f"{x:g}", "black", small, "mt")
    for y in up.ticks():
        draw.line([(x0, up(y)), (x1, up(y))], "#dddddd", s)
        draw.text((x0 - 4 * s, up(y)), f"{y:g}", "black", small, "rm")
    draw.rectangle([x0, y1, x1, y0], outline="black", width=s)
    for number, curve in enumerate(panel.curves):
        colour = colours[curve.name]
        points = [
            (across(x), up(y)) if math.isfinite(y) and y > 0 else None
            for x, y in zip(curve.x, curve.y, strict=True)
        ]
        for a, b in pairwise(points):
            if a and b:
                draw.line([a, b], colour, 2 * s)
        for x, low, high in zip(curve.x, curve.low, curve.high, strict=False):
            if math.isfinite(low) and math.isfinite(high):
                ends = [min(max(up(y), y1), y0) if y > 0 else y0 for y in (low, high)]
                draw.line([(across(x), end) for end in ends], colour, s)
        for index, point in enumerate(points):
            if point:
                r = (5 if index == curve.mark else 2) * s
                draw.ellipse(
                    [point[0] - r, point[1] - r, point[0] + r, point[1] + r],
                    colour if r < 5 * s else None,
                    colour,
                    s,
                )
        y = (top + 30 + LINE * number) * s
        draw.line([(x1 + 8 * s, y), (x1 + 22 * s, y)], colour, 2 * s)
        draw.text((x1 + 26 * s, y), curve.name, "black", small, "lm")
