"""Images at native sizes and proportions, packed into rows of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modalities.image.data.dataset import Pictures
from modalities.image.data.listing import Picture
from modalities.latent import Packing
from modalities.shared.captions import Labels


@dataclass(frozen=True)
class PackedPictures:
    """Reads the images of a packed row.

    Attributes:
        pictures: the packed images, each with the size it is resized to.
    """

    data: Pictures
    packing: Packing
    pictures: Sequence[tuple[Picture, tuple[int, int]]]

    def __call__(self, seed: int, row: int) -> tuple[list[np.ndarray], Labels]:
        """Images and labels of a row, or of the next one if nothing of it can be read."""
        for members in self.packing.rows_from(seed, row):
            chosen = [(*self.pictures[n % len(self.pictures)], seed, n) for n in members]
            images = self.data.read_wholes(chosen)
            each = zip(images, chosen, strict=True)
            kept = [(image, p, n) for image, (p, _, _, n) in each if image is not None]
            if kept:
                shown, readable, turns = zip(*kept, strict=True)
                return list(shown), self.data.said(readable, seed, turns)
        raise self.data.nothing_readable()
