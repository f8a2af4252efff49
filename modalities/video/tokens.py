"""How a clip becomes tokens: spacetime patches of its latents, of any length, height and width (Sora, 2024)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.modality import Tokens
from ditmoe.nn import Layout
from modalities.shared import patchify, sincos, unpatchify


class SpacetimeTokens(Tokens):
    """Patches of frames, rows and columns, and where they lie in seconds and pixels. Owns no weights.

    A latent frame k shows k stride[0] frames after the first. Positions are sin-cos of time, row and column, a third of
    the width each, counted in `seconds` and `pixels`: another frame rate or size is another grid, not another
    model.

    Args:
        hidden_size: width of the position embedding.
        channels: C, of the latents.
        stride: frames and pixels per latent cell, of the codec.
        rate: frames per second.
        patch: latent cells per axis of a token.
        seconds, pixels: the units of time and place.
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
        super().__init__()
        if len(patch) != 3 or min(patch) < 1:
            raise ValueError(f"patch must be [frames, rows, columns] of latent cells, got {list(patch)}")
        if min(rate, seconds, pixels) <= 0:
            raise ValueError(f"rate, seconds and pixels must be above 0, got {rate}, {seconds} and {pixels}")
        self.hidden_size = hidden_size
        self.patch = self.patch_size = tuple(patch)
        self.in_features = self.out_features = channels * patch[0] * patch[1] * patch[2]
        steps = [patch[i] * stride[i] / unit for i, unit in enumerate((rate * seconds, pixels, pixels))]
        self.steps = tuple(steps)

    def patchify(self, x: Float[Tensor, "B C T H W"], layout: Layout) -> Float[Tensor, "B N P"]:
        return patchify(x.movedim(1, -1), self.patch)

    def grid(self, x: Float[Tensor, "B C T H W"]) -> tuple[int, ...]:
        return tuple(n // p for n, p in zip(x.shape[2:], self.patch, strict=True))

    def coordinates(self, layout: Layout) -> Float[Tensor, "N 3"]:
        return layout.cells * torch.tensor(self.steps, device=layout.device)

    def positions(self, layout: Layout) -> Float[Tensor, "N D"]:
        return sincos(self.coordinates(layout), self.hidden_size)

    def unpatchify(
        self,
        tokens: Float[Tensor, "B N P"],
        layout: Layout,
        like: Float[Tensor, "B C T H W"],
        t: Float[Tensor, " B"],
        c: Float[Tensor, "B D"],
    ) -> Float[Tensor, "B C T H W"]:
        return unpatchify(tokens, like.shape[2:], self.patch).movedim(-1, 1)
