"""Which tokens attend to each other: those of a sample, of a frame, of one position over time, or of a window."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ditmoe.nn.on_device import cached_property, from_host

WITHIN = ("all", "space", "time", "window", "shifted")
"""What a token may attend to: all tokens of its sample; those of its frame ("space", equal along the first axis); those
at its position in all frames ("time", equal along the other axes); those of its window of the grid; or those of a
window shifted by half its size (Swin, arXiv 2103.14030)."""


@dataclass(frozen=True)
class Groups:
    """A permutation of the tokens after which those that attend to each other are adjacent.

    Attributes:
        order: the permutation; None where it is the identity.
        back: its inverse.
        blocks: (n, L) for n groups of L tokens each, in the order of the permuted tokens.
    """

    order: Int[Tensor, " N"] | None
    back: Int[Tensor, " N"] | None
    blocks: tuple[tuple[int, int], ...]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each group."""
        return [length for n, length in self.blocks for _ in range(n)]

    def ends(self, device: torch.device) -> Int[Tensor, " n_1"]:
        """The start of each group, and the end of the last one; copied to a device once."""
        if device not in self._ends:
            ends = np.array([0, *itertools.accumulate(self.lengths)], np.int32)
            self._ends[device] = from_host(ends, device)
        return self._ends[device]

    @cached_property
    def _ends(self) -> dict[torch.device, Tensor]:
        return {}


Order = tuple[np.ndarray | None, np.ndarray | None, tuple[tuple[int, int], ...]]


def groups_of(
    cells: Int[np.ndarray, "N A"], sample: Int[np.ndarray, " N"], within: str, window: Sequence[int]
) -> Order:
    """`Groups.order`, `back` and `blocks`, computed on the host, which must know the sizes of the groups.

    Groups of equal size are adjacent, so that each size is one call of attention.

    Args:
        cells: of each token, its cell of the grid.
        sample: of each token, the index of its sample.
        within: one of `WITHIN` except "all".
        window: cells along each axis.
    """
    if within == "space":
        part = cells[:, :1]
    elif within == "time":
        part = cells[:, 1:]
    else:
        size = np.array(window)
        part = (cells + (size // 2 if within == "shifted" else 0)) // size
    key = sample
    for column in part.T:
        key = key * (column.max() + 1) + column
    _, group, sizes = np.unique(key, return_inverse=True, return_counts=True)
    order = np.lexsort((group, sizes[group]))
    lengths, number = np.unique(sizes, return_counts=True)
    blocks = tuple(zip(number.tolist(), lengths.tolist(), strict=True))
    if (order == np.arange(len(order))).all():
        return None, None, blocks
    return order, order.argsort(), blocks


@lru_cache(maxsize=64)
def groups_of_grid(grid: tuple[int, ...], within: str, window: tuple[int, ...]) -> Order:
    """The same for one sample in which every cell is a token."""
    all_cells = np.indices(grid).reshape(len(grid), -1).T
    return groups_of(all_cells, np.zeros(len(all_cells), np.int64), within, window)
