"""Reads training batches of clips, before encoding."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from modalities.latent.latent_cache import Latents
from modalities.shared.datasets import LeftOut
from modalities.video.data.dataset import Clips


@dataclass(frozen=True)
class BatchReader:
    """Reads batches of clips or of images; picklable, for worker processes.

    Attributes:
        data: the clips; None if latents are used.
        pictures: images used as clips of one frame; None if first frames of clips are used.
        cached: latents on disk, in place of clips.
        images: fraction of the batches that are clips of one frame.
    """

    data: Any
    pictures: Any
    cached: Latents | None
    images: float

    def __call__(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[str, Any, Any]:
        """Read a batch: its kind ("clips", "pictures", "latents"), the samples, and their labels."""
        one_frame = shows_images(self.images, seed, step)
        if one_frame and self.pictures is not None:
            images, labels = self.pictures.batch(size, seed, step, rank, world)
            return "pictures", images[:, None], labels
        if self.cached is not None:
            x, asked = self.cached.batch(size, seed, step, rank, world)
            return "latents", x[:, :, :1] if one_frame else x, asked
        clips, labels = self.data.batch(size, seed, step, rank, world)
        return "clips", clips[:, :1] if one_frame else clips, labels

    @property
    def left_out(self) -> list[LeftOut]:
        """The records of unreadable items."""
        clips = [self.data.unreadable, self.data.salvaged] if isinstance(self.data, Clips) else []
        return [*clips, *([] if self.pictures is None else [self.pictures.unreadable])]

    @property
    def reads_files(self) -> bool:
        """Whether batches are read from the user's files rather than latents on disk or built-in data."""
        return self.pictures is not None or isinstance(self.data, Clips)


def shows_images(share: float, seed: int, step: int) -> bool:
    """Whether a batch consists of clips of one frame, the same on all ranks."""
    return bool(share and np.random.default_rng([seed, step]).random() < share)
