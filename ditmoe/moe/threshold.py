"""What routers share that choose over the whole batch: a learned threshold, and one's own assignments.

Choosing over the batch lets hard samples and noise levels take more experts than easy ones. When sampling,
samples must not see each other, so such a router then compares each score with a threshold of its own.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ditmoe.distributed import Ranks


class Threshold(nn.Module):
    """Exponential moving average of a threshold; the first value that it sees replaces the one at birth."""

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
        """Take in the threshold of one step."""
        mean = torch.lerp(latest, self.value.to(latest.dtype), self.momentum)
        self.value.copy_(torch.where(self.seen, mean, latest))
        self.seen.fill_(True)


def own(
    token: Int[Tensor, " A_all"], expert: Int[Tensor, " A_all"], first: int, num: int, ranks: Ranks
) -> tuple[Int[Tensor, " A"], Int[Tensor, " A"]]:
    """Of the assignments of all ranks those of one's own `num` tokens, which are numbered from `first` on."""
    if ranks.size == 1:
        return token, expert
    mine = (token >= first) & (token < first + num)
    return token[mine] - first, expert[mine]
