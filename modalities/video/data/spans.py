"""Clips whose first frame lies further back than the rest, as a later turn of a long clip sees its beginning."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from modalities.latent import Codec

SHARE = 0.3
"""Of the batches: those of such clips."""
_GAP = 5  # address of a random stream
LatentClips = Float[Tensor, "B L _ h w"]


@dataclass(frozen=True)
class Span:
    """How far the first frame of a training clip lies before the rest that the model sees.

    A clip that is longer than the model's is drawn in turns. Each of them sees the first latent frame of all beside
    those just before its own, so that what was given stays in sight (as the anchor frame of StreamingT2V does,
    arXiv 2403.14773, there by a network of its own).

    Args:
        frames: that the model sees.
        span: frames of the clips that are read.
        group: frames by which lengths may differ.
        per_cell: frames of a latent frame after the first.

    Raises:
        ValueError: for numbers that do not fit each other.
    """

    frames: int
    span: int
    group: int
    per_cell: int

    def __post_init__(self) -> None:
        if self.span <= self.frames or (self.span - self.frames) % self.group:
            raise ValueError(
                f"modality.span must be modality.frames, {self.frames}, and a multiple of {self.group} more, such as "
                f"{self.frames + 8 * self.group}, got {self.span}"
            )
        if self.cells < 4:
            raise ValueError(
                f"modality.frames must be at least {1 + 3 * self.per_cell} with modality.span, got {self.frames}"
            )

    @property
    def cells(self) -> int:
        """Latent frames that the model sees."""
        return 1 + (self.frames - 1) // self.per_cell

    def gap(self, seed: int, step: int) -> int:
        """Groups of frames between the first and the rest in a training batch, 0 in most; for all ranks alike."""
        rng = np.random.default_rng([seed, step, _GAP])
        most = (self.span - self.frames) // self.group
        return int(rng.integers(1, most + 1)) if rng.random() < SHARE else 0

    def frames_of(self, gap: int) -> int:
        """Frames of a clip with that gap."""
        return self.frames + gap * self.group

    def cells_of(self, gap: int) -> int:
        """Latent frames of it."""
        return self.cells + gap * (self.group // self.per_cell)

    def seen(self, x: LatentClips) -> LatentClips:
        """The latent frames that the model sees of those of a clip with a gap, or of a single one."""
        return x if x.shape[2] <= self.cells else first_and_last(x, self.cells)


def group_of(codec: Codec) -> int:
    """Frames by which the lengths of a codec's clips may differ."""
    return int(getattr(codec, "group", codec.stride[0]))


def first_and_last(x: LatentClips, num: int) -> LatentClips:
    """The first latent frame and the last `num` - 1."""
    return torch.cat([x[:, :, :1], x[:, :, x.shape[2] - num + 1 :]], dim=2)
