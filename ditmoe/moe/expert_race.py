"""Expert Race: all tokens and all experts of a batch compete for the assignments."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe.losses import similarity_loss
from ditmoe.moe.router import Context, Place, Router, check_top_k
from ditmoe.moe.routing import Loss, Routing, assign
from ditmoe.moe.threshold import Threshold, own


class ExpertRace(Router):
    """Race-DiT (arXiv 2503.16057): all tokens and all experts of the batch compete for K T assignments.

        l = V' gelu(V x)
        training:  the K T largest of all T E entries of l win;  tau = moving average of the smallest winner
        sampling:  every entry of at least tau wins
        both:      w = l, the logit itself (identity gating: scores do not suppress each other)

    Args:
        top_k: K, experts per token on average.
        similarity: coefficient of the router similarity loss, which replaces the balance loss; 1e-4 as in the authors'
            code.
        regularization: coefficient of the per-layer regularisation: a linear head on the router's hidden layer
            predicts the final target, which keeps shallow layers active; 0 is off.
        momentum: of the threshold's moving average.
    """

    uses_collectives = competes = True
    within_timestep = True
    beside_logits = ("aux_head",)

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        similarity: float = 1e-4,
        regularization: float = 0.01,
        momentum: float = 0.95,
    ) -> None:
        super().__init__()
        check_top_k(top_k, num_experts)
        self.num_experts, self.top_k, self.active = num_experts, top_k, float(top_k)
        self.similarity, self.regularization = similarity, regularization
        self.first = nn.Linear(hidden_size, hidden_size)
        self.second = nn.Linear(hidden_size, num_experts)
        self.aux_head: nn.Linear | None = None
        self.threshold = Threshold([], 0.0, momentum)

    def bind(self, place: Place) -> None:
        if self.regularization:
            self.aux_head = nn.Linear(self.first.in_features, place.out_features)

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> Routing:
        with torch.autocast(x.device.type, enabled=False):
            hidden = F.gelu(F.linear(x.float(), self.first.weight.float(), self.first.bias.float()))
            logits = F.linear(hidden, self.second.weight.float(), self.second.bias.float()).flatten(0, 1)
        scores = logits.softmax(dim=-1)
        if not self.training:
            return assign(logits >= self.threshold.value.float(), logits, scores)
        everyone, first_own = self.pool.gather(logits)
        best = everyone.flatten().topk(self.top_k * len(everyone))
        token, expert = best.indices // self.num_experts, best.indices % self.num_experts
        token, expert = own(token, expert, first_own, len(logits), self.pool)
        weight = logits.flatten().gather(0, token * self.num_experts + expert)
        chosen = torch.zeros_like(scores).index_put_((token, expert), scores.new_ones(()))
        tokens = self.pool.share(len(everyone))
        losses = {"similarity": Loss(similarity_loss(scores, chosen, self.pool, tokens), self.similarity)}
        aux_prediction = (
            None if self.aux_head is None else self.aux_head(hidden.to(self.aux_head.weight.dtype))
        )
        return Routing(
            token,
            expert,
            weight,
            scores,
            losses,
            {"threshold": best.values[-1].detach()},
            aux_prediction=aux_prediction,
            aux_coefficient=self.regularization,
        )

    def update(self, batch_stats: Sequence[Mapping[str, Tensor]]) -> None:
        self.threshold.update(torch.stack([o["threshold"] for o in batch_stats]).mean(0))
