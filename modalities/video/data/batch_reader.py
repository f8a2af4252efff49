"""What is read for a training batch of clips, before it is encoded."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from modalities.latent.latent_cache import Latents
from modalities.shared.datasets import LeftOut
from modalities.video.data.dataset import Clips


@dataclass(frozen=True)
class BatchReader:
    """Reads batches of clips, or of pictures among them; can be sent to other processes.

    Attributes:
        data: the clips; None where there are latents.
        pictures: those that are clips of one frame; None where these are first frames of clips.
        cached: latents on a disk, in place of clips.
        images: share of the batches that are clips of one frame.
    """

    data: Any
    pictures: Any
    cached: Latents | None
    images: float

    def __call__(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[str, Any, Any]:
        """Of which kind it is ("clips", "pictures", "latents"), the samples, and what they are."""
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
        """Where what cannot be read is noted."""
        clips = [self.data.unreadable, self.data.salvaged] if isinstance(self.data, Clips) else []
        return [*clips, *([] if self.pictures is None else [self.pictures.unreadable])]

    @property
    def reads_files(self) -> bool:
        """Whether batches are read from a person's files, other than latents on disk."""
        return self.pictures is not None or isinstance(self.data, Clips)


def shows_images(share: float, seed: int, step: int) -> bool:
    """Whether a batch is of clips of one frame, for all ranks alike."""
    return bool(share and np.random.default_rng([seed, step]).random() < share)
