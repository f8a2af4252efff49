"""Routers that pool over the whole batch in training, and go by thresholds they learned when sampling.

A pool lets hard samples and noise levels take more experts than easy ones. When sampling, samples must not see
each other, so both routers below then compare each score with a threshold of their own.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ditmoe.moe.balance import similarity_loss
from ditmoe.moe.routing import Context, Loss, Place, Router, Routing, check_top_k, project
from ditmoe.ranks import Ranks


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


class BatchPool(Router):
    """DiffMoE (arXiv 2503.14487): experts choose over the whole batch; a predictor learns whom, for sampling.

        training:  s = softmax(W x), expert e takes the capacity T / E largest of s[:, e] over the whole batch
                   p = sigmoid(V' silu(V sg(x))),  L = BCE(p, who was taken)          (sg: no gradient)
                   tau_e = moving average of the (capacity T / E)-th largest p[:, e]
        sampling:  expert e takes every token with p[:, e] >= tau_e
        both:      w = s

    The predictor learns beside the model from tokens without gradient, so its loss moves nothing else. What
    sampling needs are its weights and the thresholds; the experts per token then follow the sample.

    Args:
        capacity: experts per token, on average over the batch.
        predictor_loss: coefficient of the predictor's loss.
        momentum: of the thresholds.
    """

    asks = True

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        capacity: float = 1.0,
        predictor_loss: float = 0.01,
        momentum: float = 0.95,
    ) -> None:
        super().__init__()
        if not 0 < capacity <= num_experts:
            raise ValueError(
                f"capacity must lie above 0 and not above num_experts = {num_experts}, got {capacity}"
            )
        self.num_experts, self.active, self.predictor_loss = num_experts, float(capacity), predictor_loss
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.first = nn.Linear(hidden_size, hidden_size)
        self.second = nn.Linear(hidden_size, num_experts)
        self.threshold = Threshold([num_experts], 0.5, momentum)

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> Routing:
        x = x.flatten(0, 1)
        scores = project(x, self.weight).softmax(dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            first, second = ((m.weight.float(), m.bias.float()) for m in (self.first, self.second))
            predicted = F.linear(F.silu(F.linear(x.detach().float(), *first)), *second)
        if not self.training:
            return assign(predicted.sigmoid() >= self.threshold.value.float(), scores, scores)
        everyone, first_own = self.pool.gather(scores)
        tokens = len(everyone)
        room = round(self.active * tokens / self.num_experts)
        if room < 1:
            raise ValueError(
                f"the capacity must be at least one token per expert, got {self.active:g} experts for each of {tokens} "
                f"tokens, over {self.num_experts} experts"
            )
        token = everyone.T.topk(room, dim=-1).indices.flatten()  # (E C)
        expert = torch.arange(self.num_experts, device=x.device).repeat_interleave(room)
        token, expert = own(token, expert, first_own, len(x), self.pool)
        weight = scores.flatten().gather(0, token * self.num_experts + expert)
        taken = torch.zeros_like(scores).index_put_((token, expert), scores.new_ones(()))
        errors = F.binary_cross_entropy_with_logits(predicted, taken, reduction="sum")
        loss = Loss(errors / self.pool.share(everyone.numel()), self.predictor_loss)
        latest = self.pool.gather(predicted)[0].detach().sigmoid().T.topk(room, dim=-1).values[:, -1]
        return Routing(token, expert, weight, scores, {"predictor": loss}, {"threshold": latest})

    def update(self, observed: Sequence[Mapping[str, Tensor]]) -> None:
        self.threshold.update(torch.stack([o["threshold"] for o in observed]).mean(0))


class ExpertRace(Router):
    """Race-DiT (arXiv 2503.16057): all tokens and all experts of the batch compete for K T places.

        l = V' gelu(V x)
        training:  the K T largest of all T E entries of l win;  tau = moving average of the smallest winner
        sampling:  whatever reaches tau wins
        both:      w = l, the logit itself (identity gating: no score is pressed down by another one)

    Args:
        top_k: K, experts per token on average.
        similarity: coefficient of the router similarity loss, which takes the balance loss's place.
        regularization: coefficient of the per-layer regularisation: a linear head on the router's hidden layer
            predicts the final target, which keeps shallow layers alive; 0 is off.
        momentum: of the threshold.
    """

    asks = True

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        similarity: float = 0.01,
        regularization: float = 0.01,
        momentum: float = 0.95,
    ) -> None:
        super().__init__()
        check_top_k(top_k, num_experts)
        self.num_experts, self.top_k, self.active = num_experts, top_k, float(top_k)
        self.similarity, self.draft_coefficient = similarity, regularization
        self.first = nn.Linear(hidden_size, hidden_size)
        self.second = nn.Linear(hidden_size, num_experts)
        self.draft: nn.Linear | None = None
        self.threshold = Threshold([], 0.0, momentum)

    def settle(self, place: Place) -> None:
        if self.draft_coefficient:
            self.draft = nn.Linear(self.first.in_features, place.out_features)

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
        draft = None if self.draft is None else self.draft(hidden.to(self.draft.weight.dtype))
        return Routing(
            token, expert, weight, scores, losses, {"threshold": best.values[-1].detach()}, draft=draft
        )

    def update(self, observed: Sequence[Mapping[str, Tensor]]) -> None:
        self.threshold.update(torch.stack([o["threshold"] for o in observed]).mean(0))


def own(
    token: Int[Tensor, " A_all"], expert: Int[Tensor, " A_all"], first: int, num: int, ranks: Ranks
) -> tuple[Int[Tensor, " A"], Int[Tensor, " A"]]:
    """Of the assignments of all ranks those of one's own `num` tokens, which are numbered from `first` on."""
    if ranks.size == 1:
        return token, expert
    mine = (token >= first) & (token < first + num)
    return token[mine] - first, expert[mine]


def assign(
    chosen: Bool[Tensor, "T E"],
    weights: Float[Tensor, "T E"],
    scores: Float[Tensor, "T E"],
    **extra: dict,
) -> Routing:
    """The routing of a mask; how many rows it has depends on the data, so that a GPU must be waited for."""
    token, expert = chosen.nonzero(as_tuple=True)
    return Routing(token, expert, weights[token, expert], scores, **extra)  # type: ignore[arg-type]
