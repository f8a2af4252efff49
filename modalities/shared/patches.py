"""Patches, coordinates and sin-cos position embeddings of grids with any number of axes."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def patchify(x: Float[Tensor, "B *grid C"], patch: Sequence[int]) -> Float[Tensor, "B N P"]:
    """Cut a grid into patches; a token lists its cells in row-major order, channels last.

    Raises:
        ValueError: if an axis of the grid is not a multiple of its patch.
    """
    grid, channels = x.shape[1:-1], x.shape[-1]
    if len(grid) != len(patch) or any(g % p for g, p in zip(grid, patch, strict=True)):
        raise ValueError(f"the grid must be a multiple of the patch, got {tuple(grid)} and {tuple(patch)}")
    n = len(grid)
    split = [size for g, p in zip(grid, patch, strict=True) for size in (g // p, p)]
    x = x.reshape(len(x), *split, channels)
    x = x.permute(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    return x.reshape(len(x), math.prod(split[::2]), math.prod(patch) * channels)


def unpatchify(
    tokens: Float[Tensor, "B N P"], grid: Sequence[int], patch: Sequence[int]
) -> Float[Tensor, "B *grid C"]:
    """The inverse of `patchify` for a grid of the given size."""
    n = len(grid)
    counts = [g // p for g, p in zip(grid, patch, strict=True)]
    x = tokens.reshape(len(tokens), *counts, *patch, tokens.shape[-1] // math.prod(patch))
    x = x.permute(0, *(axis for i in range(n) for axis in (1 + i, 1 + n + i)), 2 * n + 1)
    return x.reshape(len(x), *grid, -1)


def sincos(coords: Shaped[Tensor, "N A"], hidden_size: int) -> Float[Tensor, "N D"]:
    """Fixed sin-cos embedding: D / A channels per axis, [sin | cos], frequencies 10000^(-2i / (D / A)).

    If D is not a multiple of 2A, the remaining channels are zero.
    """
    half = hidden_size // (2 * coords.shape[-1])
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=coords.device) / half)
    angles = coords.double()[..., None] * frequencies
    table = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2).float()
    return torch.nn.functional.pad(table, (0, hidden_size - table.shape[-1]))
