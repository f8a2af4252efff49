"""Expert parallelism: rows are sent to the rank that owns their expert, and results are sent back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd, wait_tensor

from ditmoe.moe import Rows


@dataclass(frozen=True)
class Exchange:
    """Experts distributed over the n ranks of a group, E / n consecutive ones on each (GShard, arXiv 2006.16668, 3.1).

    Rows are sorted by expert, so those for one rank are contiguous. Received rows are sorted by sender and are sorted
    by expert again. There are four all-to-all collectives: the row counts (for which the host waits, since it must pass
    the sizes), the rows, their weights, and the results. The backward pass repeats the last three in reverse.

    Attributes:
        group: a process group of torch.distributed.
    """

    group: Any

    def __call__(
        self, experts: Callable[..., Float[Tensor, "A_own D"]], x: Float[Tensor, "A D"], rows: Rows
    ) -> Float[Tensor, "A D"]:
        """Apply to each row its expert, on the rank that owns it.

        Args:
            experts: the experts of this rank.
        """
        asked, length = self.ask(rows.counts), len(x)
        send, receive = torch.stack([rows.counts.view_as(asked).sum(dim=1), asked.sum(dim=1)]).tolist()
        x = x[: sum(send)]  # the rest is padding
        own = torch.arange(asked.shape[1], device=x.device).expand_as(asked).flatten()
        expert, order = own.repeat_interleave(asked.flatten(), output_size=sum(receive)).sort(stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        inputs = self.swap(x, send, receive)[order]
        weight = self.swap(rows.weight[: len(x)], send, receive)[order]
        results = experts(inputs, Rows(inputs, weight, expert, asked.sum(dim=0), sample=None))
        y = self.swap(results[back].to(x.dtype), receive, send)
        return y if len(y) == length else F.pad(y, (0, 0, 0, length - len(y)))

    def ask(self, counts: Int[Tensor, " E"]) -> Int[Tensor, "n E_own"]:
        """Number of rows of each rank for each expert of this rank."""
        asked = torch.empty_like(counts)
        dist.all_to_all_single(asked, counts.contiguous(), group=self.group)
        return asked.view(dist.get_world_size(self.group), -1)

    def swap(
        self, x: Shaped[Tensor, "A *n"], send: list[int], receive: list[int]
    ) -> Shaped[Tensor, "A_there *n"]:
        """Exchange rows by all-to-all; the gradients take the reverse way.

        Args:
            send, receive: number of rows to, and from, each rank.
        """
        return wait_tensor(all_to_all_single_autograd(x.contiguous(), receive, send, self.group))
