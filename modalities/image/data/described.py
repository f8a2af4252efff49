"""Captions of the built-in digits, from measurements of their pixels."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8

from modalities.shared.digits import NUMERALS, digits

CLEAR = 0.3
"""Fraction of a class's training digits at either end called thin or thick, leaning left or right."""


def thickness(ink: UInt8[np.ndarray, "S H W"]) -> Float[np.ndarray, " S"]:
    """Stroke width in pixels: twice the ink over the length of its edges, the latter as total variation."""
    x = np.pad(ink.astype(np.float64) / 255, ((0, 0), (1, 1), (1, 1)))
    across, down = np.diff(x, axis=2)[:, 1:], np.diff(x, axis=1)[:, :, 1:]
    return 2 * x.sum((1, 2)) / np.maximum(np.hypot(across, down).sum((1, 2)), 1e-9)


def lean(ink: UInt8[np.ndarray, "S H W"]) -> Float[np.ndarray, " S"]:
    """Slant of a digit to the right: columns per row upwards, by its second moments."""
    x = ink.astype(np.float64)
    rows, columns = np.indices(x.shape[1:])
    weight = np.maximum(x.sum((1, 2)), 1e-9)[:, None, None]
    dy = rows - (x * rows).sum((1, 2), keepdims=True) / weight
    dx = columns - (x * columns).sum((1, 2), keepdims=True) / weight
    return -(x * dx * dy).sum((1, 2)) / np.maximum((x * dy * dy).sum((1, 2)), 1e-9)


def describe(ink: UInt8[np.ndarray, "S H W"], labels: np.ndarray) -> list[list[str]]:
    """Captions of digits, such as "a thick seven leaning left"; unclear attributes are left out."""
    size, said = ink.shape[1], []
    thick, leaning = thickness(ink), lean(ink)
    for label, t, s in zip(labels.tolist(), thick, leaning, strict=True):
        low, high = bounds(size, label)
        first = "thin" if t < low[0] else "thick" if t > high[0] else ""
        last = "left" if s < low[1] else "right" if s > high[1] else ""
        noun = NUMERALS[label]
        leans = f"leaning {last}" if last else ""
        short = " ".join(filter(None, [first, noun, leans]))
        listed = ", ".join(filter(None, [f"a handwritten {noun}", first, leans]))
        said.append([("an " if short[0] == "e" else "a ") + short, listed])
    return said


@lru_cache(maxsize=64)
def bounds(size: int, label: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Lower and upper thresholds of thickness and lean beyond which a digit of a class has the attribute."""
    ink, labels = digits("train", size)
    own = ink[labels == label]
    low, high = (
        tuple(float(np.quantile(of, share)) for of in (thickness(own), lean(own)))
        for share in (CLEAR, 1 - CLEAR)
    )
    return low, high  # type: ignore[return-value]
