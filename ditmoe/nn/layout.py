"""The layout of a batch's tokens: one grid per sample, complete or partial, sample after sample.

Samples of one size keep a batch axis, tokens (B, N, D). Samples of different sizes, or of which only some cells are
tokens, are packed end to end on one row, tokens (1, T, D), and the layout tells them apart (NaViT, arXiv 2307.06304).
Shapes are written (R, N, D) for both cases: R is B, or 1. Layers that treat all tokens alike need not know which.

Times, and vectors derived from them, have a shape (B, *f), where f is empty or one number:

    (B,)      one per sample;
    (B, n)    samples of one grid: one for each of n runs of N / n cells in row-major order, where n divides N;
              n = F, the length of the first axis, is a time per frame, n = N one per token;
    (1, T)    on packed rows: one per cell, sample after sample.

Cells that are not tokens (empty patches of a cloud, tokens dropped by masked training) are included, so that the
position of a time does not depend on which cells are tokens.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ditmoe.nn.attention_groups import Groups, Order, groups_of, groups_of_grid
from ditmoe.nn.on_device import cached_property, from_host


@dataclass(frozen=True)
class Layout:
    """The grids of a batch's samples, and which of their cells are tokens.

    Attributes:
        grids: tokens along each axis, of each sample.
        device: of the tokens.
        packed: whether they are on one row.
        kept: if not all cells are tokens, the grid coordinates of those that are, (T, A), sample after sample, in
            row-major order within each.
        counts: then, the number of tokens of each sample.
    """

    grids: tuple[tuple[int, ...], ...]
    device: torch.device
    packed: bool = False
    kept: Int[Tensor, "T A"] | None = None
    counts: tuple[int, ...] | None = None

    @staticmethod
    def even(grid: Sequence[int], size: int, device: torch.device) -> "Layout":
        """`size` samples of one grid in which every cell is a token."""
        return Layout((tuple(grid),) * size, device)

    @staticmethod
    def pack(grids: Sequence[Sequence[int]], device: torch.device) -> "Layout":
        """Samples of any grids in which every cell is a token."""
        return Layout(tuple(tuple(grid) for grid in grids), device, packed=True)

    @staticmethod
    def partly(grid: Sequence[int], kept: Int[Tensor, "T A"], counts: Sequence[int]) -> "Layout":
        """Samples of one grid of which some cells are tokens.

        Raises:
            ValueError: if a sample has none.
        """
        if min(counts) < 1:
            raise ValueError(
                f"sample {list(counts).index(min(counts))} of the batch has no token: it occupies nothing"
            )
        return Layout((tuple(grid),) * len(counts), kept.device, True, kept, tuple(counts))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sample."""
        return self.counts or tuple(torch.Size(grid).numel() for grid in self.grids)

    @cached_property
    def sample(self) -> Int[Tensor, " T"]:
        """The sample index of each token in the batch."""
        return from_host(np.arange(len(self.grids)).repeat(self.lengths), self.device)

    @cached_property
    def cells(self) -> Int[Tensor, "N A"]:
        """The grid coordinates of each token: of one sample if there is a batch axis, else of all."""
        if self.kept is not None:
            return self.kept
        grids = self.grids if self.packed else self.grids[:1]
        return torch.cat([cells(grid, self.device) for grid in grids])

    def sample_of(self, token: Int[Tensor, " A"]) -> Int[Tensor, " A"]:
        """The sample indices of tokens."""
        return self.sample[token] if self.packed else token // self.lengths[0]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Cells of each sample."""
        return tuple(torch.Size(grid).numel() for grid in self.grids)

    @cached_property
    def cell(self) -> Int[Tensor, " T"]:
        """The index of each token's cell among all cells of the batch."""
        if self.kept is None:
            return torch.arange(sum(self.lengths), device=self.device)
        number = torch.zeros_like(self.sample)
        grids = from_host(np.array(self.grids), self.device)[self.sample]
        for size, column in zip(grids.unbind(-1), self.kept.unbind(-1), strict=True):
            number = number * size + column
        first = np.array([0, *itertools.accumulate(self.sizes)])
        return number + from_host(first, self.device)[self.sample]

    def cells_per_time(self, shape: Sequence[int]) -> int:
        """The number of cells that share a time, for times of this shape; 0 for one per sample.

        Raises:
            ValueError: unless it is one of the shapes at the top of this file.
        """
        shape, size, total = tuple(shape), len(self.grids), sum(self.sizes)
        alike = len(set(self.grids)) == 1
        if shape == (size,):
            return 0
        if self.packed and shape == (1, total):
            return 1
        if alike and len(shape) == 2 and shape[0] == size and shape[1] and self.sizes[0] % shape[1] == 0:
            return self.sizes[0] // shape[1]
        several = f"({size}, n) with n dividing {self.sizes[0]}" if alike else f"(1, {total}), one per token"
        raise ValueError(f"times must be ({size},), one per sample, or {several}, got {shape}")

    def row_of(self, token: Int[Tensor, " A"], shape: Sequence[int]) -> Int[Tensor, " A"]:
        """The index of each token's time in the flattened times of this shape."""
        each = self.cells_per_time(shape)
        if not each:
            return self.sample_of(token)
        cell = token if self.kept is None else self.cell[token]
        return cell if each == 1 else cell // each

    def rows_on_host(self, shape: Sequence[int]) -> Int[np.ndarray, " T"]:
        """The same for every token, on the host; synchronises if there are times per cell and not all are tokens."""
        each = self.cells_per_time(shape)
        if not each:
            return np.arange(len(self.grids)).repeat(self.lengths)
        cell = np.arange(sum(self.lengths)) if self.kept is None else self.cell.cpu().numpy()
        return cell // each

    def spread(self, vectors: Float[Tensor, "*t D"]) -> Float[Tensor, "R _ D"]:
        """One vector per time, shaped to broadcast to tokens: (B, 1, D) for one per sample, else (R, N, D)."""
        if vectors.ndim == 2:
            return vectors.index_select(0, self.sample)[None] if self.packed else vectors[:, None]
        each = self.cells_per_time(vectors.shape[:-1])
        if self.kept is not None:
            return vectors.flatten(0, 1).index_select(0, self.cell if each == 1 else self.cell // each)[None]
        if each > 1:
            vectors = vectors.repeat_interleave(each, dim=1)
        return vectors.reshape(1, -1, vectors.shape[-1]) if self.packed else vectors

    def beside_times(self, vectors: Float[Tensor, "B D"], shape: Sequence[int]) -> Float[Tensor, "*f D"]:
        """One vector per sample, shaped to be added to one per time of this shape."""
        if not self.cells_per_time(shape):
            return vectors
        if shape[0] == len(vectors):
            return vectors[:, None]
        sample = np.arange(len(self.sizes)).repeat(self.sizes)
        return vectors.index_select(0, from_host(sample, self.device))[None]

    def blocks(self, rows: Shaped[Tensor, "T *n"]) -> list[Shaped[Tensor, "b N *n"]]:
        """Split rows, one per token of the batch, into stacks of equally long samples; omits samples without tokens."""
        if not self.packed:
            return [rows.unflatten(0, (len(self.grids), self.lengths[0]))]
        return [part[None] for part in rows.split(self.lengths) if len(part)]

    def take(self, samples: Sequence[int]) -> "Layout":
        """The layout of selected samples."""
        grids = tuple(self.grids[i] for i in samples)
        if self.kept is None:
            return Layout(grids, self.device, self.packed)
        parts = self.kept.split(self.lengths)
        kept = torch.cat([self.kept[:0], *(parts[i] for i in samples)])
        return Layout(grids, self.device, True, kept, tuple(self.lengths[i] for i in samples))

    def only(self, tokens: Int[Tensor, " T"], counts: Sequence[int]) -> "Layout":
        """The layout of selected tokens: ascending indices in the batch, `counts` per sample."""
        every = self.cells if self.packed else self.cells.repeat(len(self.grids), 1)
        return Layout(self.grids, self.device, True, every[tokens], tuple(counts))

    def groups(self, within: str, window: Sequence[int] = ()) -> Groups | None:
        """Which tokens attend to each other, see `attention_groups.WITHIN`; None if those are the rows of the batch.

        Args:
            window: cells along each axis.
        """
        if within == "all" and not self.packed:
            return None
        key = (within, tuple(window))
        if key not in self._known:
            if within == "all":
                found: Order = None, None, tuple((1, length) for length in self.lengths)
            elif self.packed:
                sample = np.arange(len(self.grids)).repeat(self.lengths)
                found = groups_of(self._cells_on_host(), sample, *key)
            else:
                found = groups_of_grid(self.grids[0], *key)
            order, back = (None if i is None else from_host(i, self.device) for i in found[:2])
            self._known[key] = Groups(order, back, found[2])
        return self._known[key]

    def pairs(self, within: str, window: Sequence[int] = ()) -> int:
        """The number of pairs of tokens that attend to each other."""
        groups = self.groups(within, window)
        return sum(n * length**2 for n, length in groups.blocks) if groups else sum(self.lengths) ** 2

    def _cells_on_host(self) -> Int[np.ndarray, "T A"]:
        """`cells` of packed samples; synchronises if only the device knows which cells are tokens."""
        if self.kept is not None:
            return self.kept.cpu().numpy()
        return np.concatenate([np.indices(grid).reshape(len(grid), -1).T for grid in self.grids])

    def neighbours(self, kernel: int) -> list[Int[Tensor, " T"]]:
        """For each of kernel^A offsets in row-major order, the neighbour of each token at it; T if there is none."""
        key = ("neighbours", kernel)
        if key not in self._known:
            reach = kernel // 2
            sizes = [max(sizes) + 2 * reach for sizes in zip(*self.grids, strict=True)]
            own = _numbered(self.sample, self.cells + reach, sizes)  # ascending
            found = []
            for offset in itertools.product(range(-reach, reach + 1), repeat=len(sizes)):
                shift = from_host(np.array(offset), self.device)
                wanted = _numbered(self.sample, self.cells + reach + shift, sizes)
                token = torch.searchsorted(own, wanted).clamp(max=len(own) - 1)
                found.append(torch.where(own[token] == wanted, token, len(own)))
            self._known[key] = found
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple, Any]:
        return {}


def _numbered(
    sample: Int[Tensor, " T"], cells: Int[Tensor, "T A"], sizes: Sequence[int]
) -> Int[Tensor, " T"]:
    key = sample
    for size, column in zip(sizes, cells.unbind(-1), strict=True):
        key = key * size + column
    return key


def cells(grid: Sequence[int], device: torch.device | None = None) -> Int[Tensor, "N A"]:
    """All cells of a grid in row-major order."""
    axes = [torch.arange(n, device=device) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
