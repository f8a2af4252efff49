"""Image sets from other programs: folders, arrays, and statistics as ADM publishes them."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ditmoe.modality import Samples
from ditmoe.outside import Arrays, check_items, is_regular, printable, tell
from modalities.image.data import pictures
from modalities.shared.understood import Ignored


@dataclass(frozen=True)
class ReferenceFile(Samples):
    """A reference npz as published by ADM: statistics, with images or without."""

    file: Path = Path()


def read_set(path: Path) -> Samples:
    """Read an image set from another program, see `modalities.image.Image.read`.

    Raises:
        ValueError: with one line, if there is none.
    """
    if path.is_dir():
        images, names, unreadable = pictures.read_pictures(path, ignored := Ignored())
        for line in ignored.lines():
            tell(f"{path}: ignored {line}", sys.stdout)
        if unreadable:
            told = f"{path}: left out {len(unreadable)} unreadable pictures, the first: {unreadable[0]}"
            tell(told, sys.stdout)
        return Samples(images, None, names)
    if not is_regular(path):
        raise FileNotFoundError(f"{path} does not exist" + (" as a plain file" if path.exists() else ""))
    try:
        with Arrays(path) as stored:
            if "mu" in stored or "mu_s" in stored:
                return ReferenceFile(np.zeros((0, 1, 1, 3), np.uint8), file=path)
            name = "arr_0" if "arr_0" in stored else "images"
            if shape := stored.about(name)[0]:
                check_items(shape[0], path)
            images = stored[name]
            labels = _labels(stored["arr_1"], len(images)) if "arr_1" in stored else None
    except Exception as error:
        raise ValueError(
            f"{printable(path)} must be a folder of pictures or an npz with arr_0 (S, H, W, 3) uint8 or mu and sigma"
            f"{f': {error}' if isinstance(error, ValueError) else ''}"
        ) from error
    return Samples(images, labels)


def _labels(stored: np.ndarray, count: int) -> np.ndarray:
    """Labels of so many images; whole numbers in any type, since other programs write floats too."""
    numbers = stored.dtype.kind in "iuf" and stored.shape == (count,)
    if not numbers or not ((stored == np.floor(stored)) & (np.abs(stored) < 2**53)).all():
        raise ValueError(f"arr_1 must be {count} whole numbers, got {stored.dtype} of {stored.shape}")
    return stored.astype(np.int64)
