"""Shared parts of routers that choose over the whole batch: a learnt threshold, and the local assignments.

Choosing over the batch lets hard samples and noise levels take more experts than easy ones. When sampling, samples must
not influence each other, so such a router then compares each score with its learnt threshold.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ditmoe.distributed import Ranks


class Threshold(nn.Module):
    """Exponential moving average of a threshold; the first update replaces the initial value."""

    value: Tensor
    seen: Tensor

    def __init__(self, shape: Sequence[int], birth: float, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        self.momentum = momentum
        self.register_buffer("value", torch.full(tuple(shape), birth))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, latest: Tensor) -> None:
        """Update with the threshold of one step."""
        mean = torch.lerp(latest, self.value.to(latest.dtype), self.momentum)
        self.value.copy_(torch.where(self.seen, mean, latest))
        self.seen.fill_(True)


def own(
    token: Int[Tensor, " A_all"], expert: Int[Tensor, " A_all"], first: int, num: int, ranks: Ranks
) -> tuple[Int[Tensor, " A"], Int[Tensor, " A"]]:
    """From the assignments of all ranks, select those of the local `num` tokens, whose indices start at `first`."""
    if ranks.size == 1:
        return token, expert
    mine = (token >= first) & (token < first + num)
    return token[mine] - first, expert[mine]
