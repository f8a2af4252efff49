"""ReMoE: ReLU gates experts, so that the number of experts per token is learnt by gradient."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe.router import Context, Router, check_positive, check_top_k, project
from ditmoe.moe.routing import Loss, Routing, assign


class ReLU(Router):
    """w = ReLU(W x + b); an expert processes the tokens where that is positive (ReMoE, arXiv 2412.14711).

        L = lambda (1/T) sum_t sum_e f_e w_te,   f_e = E / (K T) * |{t: w_te > 0}|          (eq. 6, 8)
        lambda <- lambda * step  if experts per token > K,   lambda / step  otherwise       (eq. 7)

    Continuous, so every choice can be learnt and unlearnt. `lambda` pushes the average number of experts per token down
    to K, but never up: a layer that uses fewer is left alone. The paper controls one lambda by the mean over all
    layers; here each layer has its own. The bias b is ours, initialised to zero: without it, half of all tokens
    distributed symmetrically around zero stay active, whatever W. `lambda` is clamped between its start and 100, or it
    would grow without bound while it has no effect, and could underflow for good. Sampling is like training.

    Args:
        top_k: K, target for the average number of experts per token.
        start: initial lambda.
        step: factor on lambda per optimiser step.
    """

    penalty: Tensor
    uses_collectives = True
    within_timestep = True

    def __init__(
        self, hidden_size: int, num_experts: int, top_k: int, start: float = 1e-8, step: float = 1.2
    ) -> None:
        super().__init__()
        check_top_k(top_k, num_experts)
        check_positive(start=start)
        if not step > 1:
            raise ValueError(f"step must be above 1, got {step}")
        self.num_experts, self.top_k, self.active = num_experts, top_k, float(top_k)
        self.start, self.step = start, step
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_experts))
        self.register_buffer("penalty", torch.tensor(start))

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> Routing:
        weights = (project(x.flatten(0, 1), self.weight) + self.bias.float()).relu()
        used = weights > 0
        sums = self.pool.total(F.pad(used.sum(dim=0), (0, 1), value=len(weights)))
        counts, tokens = sums[:-1], sums[-1]
        share = self.num_experts / self.top_k * counts / tokens
        loss = Loss((share * weights).sum() / self.pool.share(tokens), self.penalty.float())
        scores = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-9)
        batch_stats = {"experts_per_token": counts.sum() / tokens}
        return assign(used, weights, scores, losses={"sparsity": loss}, batch_stats=batch_stats)

    @torch.no_grad()
    def update(self, batch_stats: Sequence[Mapping[str, Tensor]]) -> None:
        used = torch.stack([o["experts_per_token"] for o in batch_stats]).mean()
        factor = torch.where(used > self.top_k, self.step, 1 / self.step)
        self.penalty.mul_(factor).clamp_(self.start, max(self.start, 100.0))
