"""One training batch: samples, noise and times of this process, and how it is counted over all of them."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ditmoe.conditioning import Condition
from ditmoe.distributed import Ranks
from ditmoe.nn import Layout

MOVED = ("x0", "noise", "each", "asked", "mask", "known", "further")


@dataclass(frozen=True)
class Batch:
    """What a forward pass sees: of this process its part, counted over all of them.

    Attributes:
        index: its number.
        x0: (B, *sample) samples of one size; or (T, P) the tokens of samples of different sizes, end to end.
        noise: like `x0`.
        t: times, in a shape of `ditmoe.nn.layout`.
        each: the same, shaped to multiply x0.
        asked: what is asked for, by some samples nothing.
        layout: of the tokens, where sizes differ.
        size: samples of all processes together.
        share: numbers of x0 that count, of all processes together, over the number of processes.
        mask: shaped to multiply x0, 1 where a number counts in the loss; None counts all.
        known: like `t`, which times are of places that are given; None: none.
        further: uniform numbers for each sample, drawn at its address, of which `Batches` was asked for so many.
    """

    index: int
    x0: Float[Tensor, "..."]
    noise: Float[Tensor, "..."]
    t: Float[Tensor, "*t"]
    each: Float[Tensor, "..."]
    asked: Condition
    layout: Layout | None
    size: int
    share: float
    mask: Float[Tensor, "..."] | None = None
    known: Bool[Tensor, "*t"] | None = None
    further: Float[Tensor, "B k"] | None = None

    def shaped(self, rows: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Rows like x0 as the model takes them and gives them back."""
        return rows if self.layout is None else rows[None]

    def only(self, mask: Float[Tensor, "..."], ranks: Ranks) -> "Batch":
        """The same, of which numbers count only where the mask is 1; all processes ask, each with its own."""
        counted = ranks.total(mask.expand_as(self.x0).sum(dtype=torch.float64)).item()
        return replace(self, mask=mask, share=max(counted, 1.0) / ranks.size)

    def to(self, device: torch.device, times_on_host: bool = False) -> "Batch":
        """The same on a device; but for the times, where the model reads them on the host (`DiTMoE.reads_times`)."""
        names = MOVED if times_on_host else (*MOVED, "t")
        tensors = {name: getattr(self, name) for name in names}
        moved = {
            name: _pinned(x, device).to(device, non_blocking=True)
            for name, x in tensors.items()
            if x is not None
        }
        return replace(self, **moved, layout=self.layout and replace(self.layout, device=device))


def _pinned(x: Any, device: torch.device) -> Any:
    """A tensor of the host's in memory that a GPU reads by itself, while the host goes on."""
    on_host = isinstance(x, Tensor) and x.device.type == "cpu" and device.type == "cuda"
    return x.pin_memory() if on_host else x
