"""How an image becomes tokens: 2-D patches of its latents, of any height and width."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.modality import Tokens
from ditmoe.nn import Layout
from modalities.shared import patchify, sincos, unpatchify


class LatentTokens(Tokens):
    """DiT's tokens (arXiv 2212.09748): square patches of a grid, channels first. Owns no weights.

    Args:
        hidden_size: width of the position embedding.
        channels: C, of the latents.
        patch: cells per axis of a token; height and width must be multiples of it.
        learn_sigma: predict 2 C channels, the second half for the variance (arXiv 2102.09672).
        stride: pixels per latent cell, of the codec: rotary positions then count in `pixels`, not in tokens.
        pixels: their unit.
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
        super().__init__()
        for name, value in {"channels": channels, "patch": patch, "pixels": pixels}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.hidden_size, self.patch, self.patch_size = hidden_size, patch, (patch, patch)
        self.in_features = channels * patch**2
        self.steps = tuple(patch * s / pixels for s in stride) if stride else (1.0, 1.0)
        self.out_features = (2 if learn_sigma else 1) * self.in_features

    def patchify(self, x: Float[Tensor, "B C H W"], layout: Layout) -> Float[Tensor, "B N P"]:
        return patchify(x.movedim(1, -1), [self.patch] * 2)

    def grid(self, x: Float[Tensor, "B C H W"]) -> tuple[int, ...]:
        return x.shape[2] // self.patch, x.shape[3] // self.patch

    def positions(self, layout: Layout) -> Float[Tensor, "N D"]:
        return sincos(layout.cells.flip(-1), self.hidden_size)  # DiT lists the horizontal axis first

    def coordinates(self, layout: Layout) -> Float[Tensor, "N 2"]:
        return layout.cells * torch.tensor(self.steps, device=layout.device)

    def unpatchify(
        self,
        tokens: Float[Tensor, "B N Q"],
        layout: Layout,
        like: Float[Tensor, "B C H W"],
        t: Float[Tensor, " B"],
        c: Float[Tensor, "B D"],
    ) -> Float[Tensor, "B C2 H W"]:
        return unpatchify(tokens, like.shape[2:], [self.patch] * 2).movedim(-1, 1)
