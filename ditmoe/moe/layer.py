"""The layer: shared experts on every token, plus dispatch -> routed experts -> combine."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.layers import FeedForward
from ditmoe.moe.experts import Experts
from ditmoe.moe.routing import Router, Routing


class MoE(nn.Module):
    """y = shared(x) + sum over the assignments of x of weight * expert(x)   (DiT-MoE, arXiv 2407.11633, eq. 5).

    The same code in training and evaluation, whatever the router: assignments are sorted by expert once,
    each expert works on one contiguous block, and the results are added where they came from.
    """

    def __init__(self, router: Router, experts: Experts, shared: FeedForward | None) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared = shared

    def forward(self, x: Float[Tensor, "B N D"]) -> tuple[Float[Tensor, "B N D"], Routing]:
        routing = self.router(x)
        rows = x.flatten(0, 1)
        order = routing.expert.argsort(stable=True)
        token = routing.token[order]
        routed = self.experts(
            rows.index_select(0, token), routing.weight[order], routing.expert[order], routing.counts
        )
        base = torch.zeros_like(rows) if self.shared is None else self.shared(rows)
        out = base.index_add(0, token, routed.to(base.dtype))
        return out.view(x.shape), routing
