"""One training batch: this process's samples, noise and times, and the normalisation over all processes."""

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
    """This process's part of a batch for one forward pass.

    Attributes:
        index: of the batch.
        x0: (B, *sample) samples of one size; or (T, P) the tokens of samples of different sizes, end to end.
        noise: like `x0`.
        t: times, in a shape of `ditmoe.nn.layout`.
        each: the same, broadcastable to x0.
        asked: conditions, some of them null.
        layout: of the tokens, if sizes differ.
        size: samples over all processes.
        share: number of unmasked values of x0 over all processes, divided by the number of processes.
        mask: broadcastable to x0, 1 for values that count in the loss; None: all count.
        known: like `t`, mask of the times of given places; None: none.
        further: additional uniform numbers per sample, as many as `Batches` was asked for.
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
        """Reshape rows like x0 to the model's input and output shape."""
        return rows if self.layout is None else rows[None]

    def only(self, mask: Float[Tensor, "..."], ranks: Ranks) -> "Batch":
        """A copy with a loss mask; collective: all processes call it, each with its own mask."""
        counted = ranks.total(mask.expand_as(self.x0).sum(dtype=torch.float64)).item()
        return replace(self, mask=mask, share=max(counted, 1.0) / ranks.size)

    def to(self, device: torch.device, times_on_host: bool = False) -> "Batch":
        """Copy to a device, except for the times if the model reads them on the host (`DiTMoE.reads_times`)."""
        names = MOVED if times_on_host else (*MOVED, "t")
        tensors = {name: getattr(self, name) for name in names}
        moved = {
            name: _pinned(x, device).to(device, non_blocking=True)
            for name, x in tensors.items()
            if x is not None
        }
        return replace(self, **moved, layout=self.layout and replace(self.layout, device=device))


def _pinned(x: Any, device: torch.device) -> Any:
    """Pin a host tensor for asynchronous transfer to a GPU."""
    on_host = isinstance(x, Tensor) and x.device.type == "cpu" and device.type == "cuda"
    return x.pin_memory() if on_host else x
