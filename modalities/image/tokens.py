"""Tokens of images: 2-D patches of latents of any height and width."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ditmoe.nn import Layout
from ditmoe.outside import check_number
from modalities.latent.tokens import PatchTokens
from modalities.shared import sincos


class LatentTokens(PatchTokens):
    """DiT's tokens (arXiv 2212.09748): square patches of a grid, channels first. Has no weights.

    Args:
        hidden_size: width of the position embedding.
        channels: C, channels of the latents.
        patch: cells per axis of a token; height and width must be multiples of it.
        learn_sigma: predict 2 C channels, the second half for the variance (arXiv 2102.09672).
        stride: the codec's pixels per latent cell; if given, rotary positions count in `pixels` instead of tokens.
        pixels: unit of these positions, in pixels.
    """

    axes = 2

    def __init__(
        self,
        hidden_size: int,
        channels: int = 4,
        patch: int = 2,
        learn_sigma: bool = False,
        stride: Sequence[int] | None = None,
        pixels: float = 8.0,
    ) -> None:
        for name, value in {"channels": channels, "patch": patch, "pixels": pixels}.items():
            check_number(name, value, 1, 1e6)
        steps = [patch * s / pixels for s in stride] if stride else (1.0, 1.0)
        super().__init__(hidden_size, (patch, patch), steps)
        self.in_features = channels * patch**2
        self.out_features = (2 if learn_sigma else 1) * self.in_features

    def positions(self, layout: Layout) -> Float[Tensor, "N D"]:
        return sincos(layout.cells.flip(-1), self.hidden_size)  # DiT lists the horizontal axis first
