"""Tokens of image and video latents: patches of a grid of any size, channels first."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ditmoe.modality import Tokens
from ditmoe.nn import Layout, from_host
from modalities.shared import patchify, unpatchify


class PatchTokens(Tokens):
    """Patches and their positions. Has no weights.

    Args:
        hidden_size: width of the position embedding.
        patch_size: cells of a token on each axis, which the grid must be multiples of.
        steps: distance between neighbouring tokens on each axis, in the units of the rotary embedding.
    """

    def __init__(self, hidden_size: int, patch_size: Sequence[int], steps: Sequence[float]) -> None:
        super().__init__()
        self.hidden_size, self.patch_size, self.steps = hidden_size, tuple(patch_size), tuple(steps)

    def patchify(self, x: Float[Tensor, "B C *size"], layout: Layout) -> Float[Tensor, "B N P"]:
        return patchify(x.movedim(1, -1), self.patch_size)

    def grid(self, x: Float[Tensor, "B C *size"]) -> tuple[int, ...]:
        """Raises ValueError for a sample with another number of axes than its patches."""
        size = tuple(x.shape[2:])
        if len(size) != len(self.patch_size):
            raise ValueError(f"the sample's size must have {len(self.patch_size)} axes, got {size}")
        return tuple(n // p for n, p in zip(size, self.patch_size, strict=True))

    def coordinates(self, layout: Layout) -> Float[Tensor, "N axes"]:
        return layout.cells * from_host(np.array(self.steps, np.float32), layout.device)

    def unpatchify(
        self,
        tokens: Float[Tensor, "B N Q"],
        layout: Layout,
        like: Float[Tensor, "B C *size"],
        t: Float[Tensor, "*t"],
        c: Float[Tensor, "*t D"],
    ) -> Float[Tensor, "B C2 *size"]:
        return unpatchify(tokens, like.shape[2:], self.patch_size).movedim(-1, 1)
