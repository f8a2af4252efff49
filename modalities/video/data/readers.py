"""Readers of latent batches: what worker processes read, and how it is encoded in the main process."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ditmoe.modality import Asked, Reader
from modalities.latent.packing import encode_all
from modalities.shared.captions import Described, asked_of, with_classes
from modalities.shared.datasets import Noted
from modalities.video.data.batch_reader import BatchReader
from modalities.video.data.native_clips import NativeClips

Encode = Callable[[UInt8[np.ndarray, "B T H W 3"]], Float[Tensor, "B L t h w"]]
PictureLabels = Callable[[], Int[np.ndarray, " _"]]
"""Class of an image -> class of the model; called only if there are images."""


def even(batches: BatchReader, encode: Encode, picture_labels: PictureLabels) -> Reader:
    """The reader of batches of clips of one size, images or latents."""
    reading = Noted(batches, batches.left_out)

    def encoded(found: Any) -> tuple[Tensor, Asked]:
        kind, x, asked = reading.told(found)
        if kind == "latents":
            return x, asked
        labels = with_classes(asked, picture_labels()) if kind == "pictures" else asked
        return encode(x).cpu(), asked_of(labels)

    return Reader(reading, encoded, files=batches.reads_files)


def packed(
    batches: BatchReader, native: NativeClips, encode: Encode, picture_labels: PictureLabels
) -> Reader:
    """The reader of packed rows of clips and images of different lengths and sizes."""
    reading = Noted(native.batch, batches.left_out)

    def encoded(found: Any) -> tuple[list[Tensor], Asked]:
        clips, labels, of_pictures = reading.told(found)
        if of_pictures.any():
            own = labels.labels if isinstance(labels, Described) else labels
            own[of_pictures] = picture_labels()[own[of_pictures]]
        return encode_all(clips, encode), asked_of(labels)

    return Reader(reading, encoded, files=batches.reads_files)
