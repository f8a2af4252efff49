"""Tokens of clips: spacetime patches of latents of any length, height and width (Sora, 2024)."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ditmoe.nn import Layout
from ditmoe.outside import check_number
from modalities.latent.tokens import PatchTokens
from modalities.shared import sincos

MOST_RATE = 1e4
"""Bound on the frame rate, the units in seconds and pixels, and their inverses, so that positions stay finite."""


class SpacetimeTokens(PatchTokens):
    """Patches over frames, rows and columns, with positions in seconds and pixels. Has no weights.

    Latent frame k is k stride[0] frames after the first. Positions are sin-cos of time, row and column, a third of the
    width each, in units of `seconds` and `pixels`: another frame rate or size is another grid, not another model.

    Args:
        hidden_size: width of the position embedding.
        channels: C, channels of the latents.
        stride: the codec's frames and pixels per latent cell.
        rate: frames per second.
        patch: latent cells per axis of a token.
        seconds, pixels: units of temporal and spatial positions.
    """

    axes = 3

    def __init__(
        self,
        hidden_size: int,
        channels: int,
        stride: Sequence[int] = (4, 4, 4),
        rate: float = 8.0,
        patch: Sequence[int] = (1, 2, 2),
        seconds: float = 0.5,
        pixels: float = 8.0,
    ) -> None:
        if len(patch) != 3 or min(patch) < 1:
            raise ValueError(f"patch must be [frames, rows, columns] of latent cells, got {list(patch)}")
        for name, value in {"rate": rate, "seconds": seconds, "pixels": pixels}.items():
            check_number(name, value, 1 / MOST_RATE, MOST_RATE)
        steps = [patch[i] * stride[i] / unit for i, unit in enumerate((rate * seconds, pixels, pixels))]
        super().__init__(hidden_size, patch, steps)
        self.in_features = self.out_features = channels * patch[0] * patch[1] * patch[2]

    def positions(self, layout: Layout) -> Float[Tensor, "N D"]:
        return sincos(self.coordinates(layout), self.hidden_size)
