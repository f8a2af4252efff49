"""Native sizes: the size each sample is resized to, and which samples are packed together.

NaViT (arXiv 2307.06304) for diffusion: no cropping and no padding. A sample keeps its proportions, large ones are
shrunk to a maximal area, and rows are filled up to a token budget.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from os import PathLike

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

_EPOCH = 7  # address of a random stream
OPEN = 64
"""Rows that are open for filling at a time."""


def native_size(size: Sequence[int], unit: Sequence[int], area: int) -> tuple[int, int]:
    """(H, W) that an image is resized to: its own or shrunk to an area, rounded to multiples of `unit` on each axis.

    Of the neighbouring multiples, at least one on each axis, the pair with the nearest aspect ratio is taken.

    Args:
        size: its own (H, W) in pixels.
        unit: pixels of a token on each axis.
        area: the most pixels, if that is at least one token.
    """
    scale = min(1.0, math.sqrt(area / (size[0] * size[1])))
    most = max(1, area // (unit[0] * unit[1]))
    wanted = [n * scale / u for n, u in zip(size, unit, strict=True)]
    if min(wanted) < 1:  # one token high or wide, and as long as the area allows
        wanted = [
            min(max(1.0, n / u), most) if w > 1 else 1.0 for n, u, w in zip(size, unit, wanted, strict=True)
        ]
    options = [
        (max(1, a), max(1, b))
        for a in (math.floor(wanted[0]), math.ceil(wanted[0]))
        for b in (math.floor(wanted[1]), math.ceil(wanted[1]))
    ]
    fitting = [o for o in options if o[0] * o[1] <= most]

    def off(option: tuple[int, int]) -> float:
        """Distance from the wanted size."""
        return sum(abs(math.log(n / w)) for n, w in zip(option, wanted, strict=True))

    best = min(fitting or [(1, 1)], key=off)
    return best[0] * unit[0], best[1] * unit[1]


def packed_rows(native: bool, rows: int, latents: str | PathLike | None) -> int:
    """Packed rows in a training batch, 0 if samples are resized to one size.

    Raises:
        ValueError: naming the option that does not fit.
    """
    if rows < 1:
        raise ValueError(f"modality.rows must be at least 1, got {rows}")
    if native and latents is not None:
        raise ValueError("modality.native takes samples as they are, and latents on disk are of one size")
    return rows if native else 0


class Packing:
    """Assignment of samples to rows, in a new order each epoch: best fit among `OPEN` open rows.

    If an epoch makes few rows, several epochs are packed together.

    Args:
        lengths: tokens of each sample.
        budget: the most tokens of a row.

    Raises:
        ValueError: if there are no samples, or one does not fit into the budget.
    """

    def __init__(self, lengths: Sequence[int], budget: int) -> None:
        if not lengths:
            raise ValueError("there must be readable samples of at least one token for train, got none")
        if max(lengths) > budget:
            raise ValueError(
                f"modality.budget must hold the largest sample, of {max(lengths)} tokens, got {budget}"
            )
        self.num, self.budget = len(lengths), budget
        self.lengths = tuple(lengths) * math.ceil(OPEN * budget / sum(lengths))
        self._firsts: dict[int, list[int]] = {}
        """First row of each epoch, by seed, as far as it is known."""

    def row(self, seed: int, number: int) -> list[int]:
        """Stream indices of the samples in a row, deterministic; index n is sample n mod the number of samples."""
        firsts = self._firsts.setdefault(seed, [0])
        while number >= firsts[-1]:
            rows = _pack(self.lengths, self.budget, seed, len(firsts) - 1)
            firsts.append(firsts[-1] + len(rows))
        epoch = bisect_right(firsts, number) - 1
        rows = _pack(self.lengths, self.budget, seed, epoch)
        return [epoch * len(self.lengths) + i for i in rows[number - firsts[epoch]]]

    def rows_from(self, seed: int, number: int) -> Iterator[list[int]]:
        """A row and those after it, one epoch in total: fallbacks for a row of which nothing can be read."""
        yield from (self.row(seed, number + i) for i in range(len(_pack(self.lengths, self.budget, seed, 0))))

    def told(self) -> str:
        """A line on how full the rows are."""
        bins = _pack(self.lengths, self.budget, 0, 0)
        return (
            f"{len(self.lengths) / len(bins):.1f} on average in a row of at most {self.budget} tokens, "
            f"{self.waste:.1%} of which stay empty"
        )

    @property
    def waste(self) -> float:
        """Unused fraction of the token budget, in the first epoch."""
        bins = _pack(self.lengths, self.budget, 0, 0)
        return 1 - sum(self.lengths) / (self.budget * len(bins))


def encode_all(
    samples: Sequence[UInt8[np.ndarray, "... 3"]], encode: Callable[[np.ndarray], Tensor]
) -> list[Float[Tensor, "L ..."]]:
    """Encode samples of different sizes; those of the same size are encoded in one batch."""
    found: list[Tensor] = [torch.empty(0)] * len(samples)
    for shape in dict.fromkeys(sample.shape for sample in samples):
        own = [i for i, sample in enumerate(samples) if sample.shape == shape]
        for i, z in zip(own, encode(np.stack([samples[i] for i in own])).cpu(), strict=True):
            found[i] = z
    return found


@lru_cache(maxsize=4)
def _pack(lengths: tuple[int, ...], budget: int, seed: int, epoch: int) -> tuple[tuple[int, ...], ...]:
    done: list[list[int]] = []
    filling: list[tuple[int, list[int]]] = []  # room, members
    for i in np.random.default_rng([seed, _EPOCH, epoch]).permutation(len(lengths)).tolist():
        fits = [(room, members) for room, members in filling if room >= lengths[i]]
        if fits:
            room, members = min(fits, key=lambda each: each[0])  # the fullest
            filling.remove((room, members))
        else:
            room, members = budget, []
            if len(filling) == OPEN:
                fullest = min(filling, key=lambda each: each[0])
                filling.remove(fullest)
                done.append(fullest[1])
        filling.append((room - lengths[i], [*members, i]))
    order = np.random.default_rng([seed, _EPOCH, epoch, 1]).permutation(len(filling)).tolist()
    return tuple(tuple(members) for members in [*done, *(filling[k][1] for k in order)])
