"""What keeps the experts in use, and the numbers that tell whether it does."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.moe.routing import Routing


def balance_loss(routings: Sequence[Routing]) -> Float[Tensor, ""]:
    """Expert-level balance loss, mean over the layers: E sum_i f_i P_i.

    f_i is the share of assignments that went to expert i (no gradient), P_i the mean score that the tokens
    gave it (DiT-MoE, arXiv 2407.11633, eq. 6; Switch, arXiv 2101.03961, eq. 4). 1 when balanced, up to E
    when one expert takes all. It is returned, never injected into `backward`: the number that is optimised
    is the number that is logged, whatever the loss scale.
    """
    if not routings:
        return torch.zeros(())
    return torch.stack([_layer_loss(r) for r in routings]).mean()


def _layer_loss(routing: Routing) -> Float[Tensor, ""]:
    return len(routing.counts) * (load(routing) * routing.scores.float().mean(dim=0)).sum()


def load(routing: Routing) -> Float[Tensor, " E"]:
    """Share of the assignments that each expert received; sums to 1."""
    return routing.counts / len(routing.expert)
