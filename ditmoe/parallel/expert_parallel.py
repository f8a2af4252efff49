"""Expert parallelism: rows travel to the rank that owns their expert, and their results back."""

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
    """Experts spread over the n ranks of a group, E / n on each in their order (GShard, arXiv 2006.16668, section 3.1).

    Rows come sorted by expert, so those for one rank lie together. What arrives is sorted by sender, and is sorted by
    expert once more. Four collectives: how many rows go where (the host waits for it, since it must name the sizes),
    the rows, their weights, and the results; the backward pass has the last three again, the other way round.

    Attributes:
        group: a process group of torch.distributed.
    """

    group: Any

    def __call__(
        self, experts: Callable[..., Float[Tensor, "A_own D"]], x: Float[Tensor, "A D"], rows: Rows
    ) -> Float[Tensor, "A D"]:
        """The rows through whichever rank has their experts; `experts` are those of this one."""
        asked, length = self.ask(rows.counts), len(x)
        send, receive = torch.stack([rows.counts.view_as(asked).sum(dim=1), asked.sum(dim=1)]).tolist()
        x = x[: sum(send)]  # those beyond are none
        own = torch.arange(asked.shape[1], device=x.device).expand_as(asked).flatten()
        expert, order = own.repeat_interleave(asked.flatten(), output_size=sum(receive)).sort(stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
        inputs = self.swap(x, send, receive)[order]
        weight = self.swap(rows.weight[: len(x)], send, receive)[order]
        results = experts(inputs, Rows(inputs, weight, expert, asked.sum(dim=0), sample=None))
        y = self.swap(results[back].to(x.dtype), receive, send)
        return y if len(y) == length else F.pad(y, (0, 0, 0, length - len(y)))

    def ask(self, counts: Int[Tensor, " E"]) -> Int[Tensor, "n E_own"]:
        """How many rows each rank has for each expert of this one."""
        asked = torch.empty_like(counts)
        dist.all_to_all_single(asked, counts.contiguous(), group=self.group)
        return asked.view(dist.get_world_size(self.group), -1)

    def swap(
        self, x: Shaped[Tensor, "A *n"], send: list[int], receive: list[int]
    ) -> Shaped[Tensor, "A_there *n"]:
        """Rows to where they are wanted; their gradients the other way."""
        return wait_tensor(all_to_all_single_autograd(x.contiguous(), receive, send, self.group))
