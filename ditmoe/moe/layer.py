"""The layer of a mixture of experts: shared experts for every token, routed experts for those assigned to them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe.router import Context, Router
from ditmoe.moe.routing import Routing
from ditmoe.nn import FeedForward


class MoE(nn.Module):
    """y = shared(x) + sum over the assignments of x of weight * expert(x)   (DiT-MoE, arXiv 2407.11633, eq. 5).

    The code is the same in training and sampling and for every router: assignments are sorted by expert, each expert
    works on one contiguous block of rows, and the results are added to their tokens.

    Args:
        router: also makes the routed experts, the shared experts, and a parallel branch if it has one.
        inner: width of a routed expert.
        shared: total width of the shared experts, which are one feed-forward layer; 0: none.
        activation: of routed and shared experts.
    """

    def __init__(self, router: Router, hidden_size: int, inner: int, shared: int, activation: str) -> None:
        super().__init__()
        self.router = router
        self.experts = router.experts(hidden_size, inner, activation)
        self.shared = router.shared(hidden_size, shared, activation) if shared else None
        self.branch = router.branch(hidden_size)

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> tuple[Float[Tensor, "R N D"], Routing]:
        routing = self.router(x, context)
        if type(routing) is not self.router.routing:
            kind, returned = type(self.router).__name__, type(routing).__name__
            raise ValueError(f"{kind}.routing must name the kind of routing that it returns, {returned}")
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # once for all uses below
        rows = routing.dispatch(x, context.layout)
        routed = self.experts(rows, context.c)
        base = torch.zeros_like(x) if self.shared is None else self.through_shared(x, context)
        if self.branch is not None:
            base = base + self.branch(x, context)
        return routing.combine(routed, rows, base, context.layout), routing

    def through_shared(self, x: Float[Tensor, "R N D"], context: Context) -> Float[Tensor, "R N D"]:
        """The output of the shared experts, which may depend on more than the tokens."""
        assert self.shared is not None
        return self.shared(x) if isinstance(self.shared, FeedForward) else self.shared(x, context)
