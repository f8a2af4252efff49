"""The built-in handwritten digits: data for images and clips without a download."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8

from modalities.shared.datasets import check_split

FILE = Path(__file__).parent / "assets" / "digits.npz"
CLASSES = [str(digit) for digit in range(10)]
NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Class names."""
SPLITS = {"train": slice(0, 1297), "val": slice(1297, 1547), "test": slice(1547, 1797)}
"""Slices of a fixed permutation, so that every split has all writers and digits."""


def digits(split: str, size: int = 8) -> tuple[UInt8[np.ndarray, "S size size"], Int64[np.ndarray, " S"]]:
    """White digits on black, 0 to 255, enlarged from 8 x 8 by smooth interpolation, with their labels.

    Raises:
        ValueError: for another split than train, val and test, or a size below 8.
    """
    check_split(split)
    if size < 8:
        raise ValueError(f"size must be at least 8, the size of the built-in digits, got {size}")
    return _enlarged(size)[SPLITS[split]], _stored()[1][SPLITS[split]]


@lru_cache(maxsize=1)
def _stored() -> tuple[np.ndarray, np.ndarray]:
    with np.load(FILE, allow_pickle=False) as stored:
        images, labels = stored["images"], stored["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    return images[order], labels[order]


@lru_cache(maxsize=4)
def _enlarged(size: int) -> np.ndarray:
    ink = torch.from_numpy(_stored()[0])[:, None].float() * (255 / 16)
    large = F.interpolate(ink, (size, size), mode="bicubic", align_corners=False)
    return large[:, 0].round().clamp(0, 255).to(torch.uint8).numpy()
