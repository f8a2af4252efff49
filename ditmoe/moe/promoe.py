"""ProMoE: unconditional samples have an expert of their own, all other tokens go to the nearest prototype."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ditmoe.moe.losses import contrastive_loss
from ditmoe.moe.router import Context, Router, check_positive, check_top_k
from ditmoe.moe.routing import Loss, Routing


class ProMoE(Router):
    """ProMoE (ICLR 2026, arXiv 2510.24711): conditional routing, then routing to the nearest prototype.

        tokens of unconditional samples:  the dedicated expert E + 1,  w = 1
        all others:  s_e = cos(x, p_e),   the one expert of the largest s,   w = s  (may be negative)
        L = mean over i in U of -log softmax_j(cos(p_i, m_j) / temperature)_i

    with prototypes p, U the experts that have tokens in the batch, and m_j the mean of expert j's tokens; the gradient
    of the loss flows to prototypes and tokens. It replaces the balance loss, and is zero if fewer than two experts have
    tokens. Sampling is like training; with guidance, unconditional passes use only the dedicated expert.

    Args:
        num_experts: E, prototypes, not counting the unconditional expert.
        contrastive: coefficient of the routing contrastive loss.
        temperature: of its softmax.
    """

    uses_collectives = True
    within_timestep = True

    def __init__(
        self, hidden_size: int, num_experts: int, contrastive: float = 1.0, temperature: float = 0.07
    ) -> None:
        super().__init__()
        check_top_k(1, num_experts)
        check_positive(temperature=temperature)
        self.num_experts, self.active = num_experts + 1, 1.0
        self.contrastive, self.temperature = contrastive, temperature
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> Routing:
        tokens, null = x.flatten(0, 1), unconditional(context, x)
        with torch.autocast(x.device.type, enabled=False):
            tokens, prototypes = tokens.float(), self.weight.float()
            alike = F.linear(F.normalize(tokens, dim=-1), F.normalize(prototypes, dim=-1))
        best, nearest = alike.max(dim=-1)
        expert = nearest.masked_fill(null, self.num_experts - 1)
        weight = best.masked_fill(null, 1.0)
        likes = (alike / self.temperature).softmax(dim=-1).masked_fill(null[:, None], 0.0)
        scores = torch.cat([likes, null[:, None].to(likes.dtype)], dim=-1)
        losses = {}
        if self.training:
            chosen = F.one_hot(expert, self.num_experts)[:, :-1].float()
            value = contrastive_loss(prototypes, tokens, chosen, self.temperature, self.pool)
            losses["contrastive"] = Loss(value, self.contrastive)
        return Routing(torch.arange(len(expert), device=x.device), expert, weight, scores, losses)

    def initialize(self) -> None:
        """Initialise the prototypes with standard deviation 0.02."""
        nn.init.normal_(self.weight, std=0.02)


def unconditional(context: Context, x: Float[Tensor, "R N D"]) -> Bool[Tensor, " T"]:
    """Mask of the tokens of unconditional samples; none, if unknown."""
    if context.asked is None:
        return torch.zeros(x.shape[0] * x.shape[1], dtype=torch.bool, device=x.device)
    return context.asked.null.index_select(0, context.layout.sample)
