"""Sinkhorn: token choice by an entropic transport plan over the tokens of a sample.

The literature balances over a batch in training and lets tokens choose freely when sampling. A diffusion model has all
tokens of a sample available in both, so here each sample is balanced by itself: samples do not influence each other,
and training and sampling are the same function.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditmoe.moe.router import check_positive
from ditmoe.moe.token_choice import TokenChoice
from ditmoe.nn import Layout


class Sinkhorn(TokenChoice):
    """Choice by an entropic transport plan (S-BASE, arXiv 2202.01169; Liu et al., arXiv 2401.15969).

        P = argmax <P, W x> + H(P) * temperature   over P >= 0 with row sums 1 / N and column sums 1 / E,
        each token takes its K largest entries of P,   w = softmax(W x) there

    P comes from `iterations` of alternating normalisation, without gradient. The load is nearly even (exactly so only
    for the plan itself), so there is no balance loss by default.

    Args:
        temperature: of the plan; smaller follows the scores more sharply.
        iterations: of the normalisation of rows and columns.
    """

    top_k_in_sampling = within_timestep = True

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        temperature: float = 0.3,
        iterations: int = 10,
        balance: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(hidden_size, num_experts, top_k, balance=balance, **options)
        if self.bias_rate:
            raise ValueError("bias_rate is not for sinkhorn, whose plan balances by itself: leave it out")
        check_positive(temperature=temperature, iterations=iterations)
        self.temperature, self.iterations = temperature, iterations

    @torch.no_grad()
    def choose(
        self, logits: Float[Tensor, "T E"], scores: Float[Tensor, "T E"], layout: Layout
    ) -> Int[Tensor, "T K"]:
        return torch.cat([self._chosen(sample) for sample in layout.blocks(logits)])

    def _chosen(self, logits: Float[Tensor, "B N E"]) -> Int[Tensor, "T K"]:
        plan, shift = logits / self.temperature, math.log(logits.shape[1] / self.num_experts)
        for _ in range(self.iterations):
            plan = plan - plan.logsumexp(dim=1, keepdim=True) + shift
            plan = plan - plan.logsumexp(dim=2, keepdim=True)
        return plan.flatten(0, 1).topk(self.top_k, dim=-1).indices
