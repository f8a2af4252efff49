"""Token choice: each token takes the K experts with the highest scores."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ditmoe.moe.losses import balance_loss, z_loss
from ditmoe.moe.router import Context, Router, check_not_negative, check_positive, check_top_k, project
from ditmoe.moe.routing import Loss, Routing, count, listed
from ditmoe.nn import Layout


class TokenChoice(Router):
    """Each token takes the K experts with the highest scores (DiT-MoE, arXiv 2407.11633; Switch for K = 1).

        s = softmax(W x) over the E experts,   w = the K largest of s   [/ their sum, if `renormalize`]

    Routing is the same in training and sampling, and by default no assignment is dropped. Options for the variants of
    other models:

    Args:
        renormalize: divide the K weights of a token by their sum.
        route_scale: factor on the weights (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
        score: "softmax" over the logits, or "sigmoid" of each (DeepSeek-V3, eq. 15).
        bias_rate: balance without a loss (arXiv 2408.15664): experts are chosen by s + b and weighted by s. After each
            step b_i += bias_rate sign(mean load - load_i), and the mean of b is subtracted. 0 is off.
        capacity: an expert takes at most ceil(capacity K N / E) tokens of each sample, and further assignments are
            dropped; None: no limit. First choices come before second ones (GShard, arXiv 2006.16668).
        priority: among choices of the same rank, tokens with higher scores come first (V-MoE, arXiv 2106.05974,
            section 4); otherwise they come in their order in the sample.
        noise: in training, N(0, (noise / E)²) is added to the logits (V-MoE, section 2.1, has noise = 1).
        balance: coefficient of the balance loss. If a step accumulates several passes, it balances the total load of
            the passes so far (arXiv 2501.11873), since a small batch need not be balanced by itself.
        z_loss: coefficient of the z-loss of ST-MoE.

    Raises:
        ValueError: if `top_k` is not between 1 and `num_experts`, or another option is out of range; in the forward
            pass, if the capacity is less than one token.
    """

    bias: Tensor
    earlier: Tensor | None = None
    uses_collectives = True
    top_k_in_sampling = within_timestep = True

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        renormalize: bool = False,
        route_scale: float = 1.0,
        score: str = "softmax",
        bias_rate: float = 0.0,
        capacity: float | None = None,
        priority: bool = True,
        noise: float = 0.0,
        balance: float = 0.01,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__()
        check_top_k(top_k, num_experts)
        if score not in ("softmax", "sigmoid"):
            raise ValueError(f"score must be softmax or sigmoid, got {score!r}")
        check_positive(route_scale=route_scale, **({} if capacity is None else {"capacity": capacity}))
        check_not_negative(noise=noise, bias_rate=bias_rate, balance=balance, z_loss=z_loss)
        self.num_experts, self.top_k, self.active = num_experts, top_k, float(top_k)
        self.renormalize, self.route_scale, self.score = renormalize, route_scale, score
        self.bias_rate, self.capacity, self.priority = bias_rate, capacity, priority
        self.noise, self.balance, self.z_loss = noise, balance, z_loss
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        if bias_rate:
            self.register_buffer("bias", torch.zeros(num_experts))

    @property
    def weights_sum_to_one(self) -> bool:
        return self.renormalize and self.route_scale == 1 and self.capacity is None

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> Routing:
        logits = project(x.flatten(0, 1), self.weight)
        if self.noise and self.training:
            logits = logits + self.noise / self.num_experts * self.pool.drawn(torch.randn, logits)
        scores = logits.softmax(dim=-1) if self.score == "softmax" else logits.sigmoid()
        here = len(scores) > 0  # within `timestep` a rank may have no token in a segment of time
        expert = self.choose(logits, scores, context.layout) if here else scores.topk(self.top_k).indices
        # In log space, since the sum of tiny scores would underflow.
        logs = logits if self.score == "softmax" else F.logsigmoid(logits)
        weight = logs.gather(1, expert).softmax(-1) if self.renormalize else scores.gather(1, expert)
        weight = self.route_scale * weight
        distribution = scores if self.score == "softmax" else logs.softmax(dim=-1)
        counts = self.pool.total(count(expert.flatten(), self.num_experts))
        losses = self._losses(counts, distribution, logits)
        token = torch.arange(len(scores), device=x.device).repeat_interleave(self.top_k)
        assigned, batch_stats = (token, expert.flatten(), weight.flatten()), {"counts": counts}
        if self.capacity is None or not here:
            return Routing(*assigned, distribution, losses, batch_stats)
        kept = within_capacity(scores, expert, context.layout, self.capacity * self.top_k, self.priority)
        beside: dict[str, Any] = {"losses": losses, "batch_stats": batch_stats, "dropped": (~kept).sum()}
        return listed(kept.flatten(), *assigned, distribution, **beside)

    def choose(
        self, logits: Float[Tensor, "T E"], scores: Float[Tensor, "T E"], layout: Layout
    ) -> Int[Tensor, "T K"]:
        """The experts of each token."""
        ranked = scores + self.bias.float() if self.bias_rate else scores
        return ranked.topk(self.top_k, dim=-1).indices

    def before_pass(self, earlier: Sequence[Mapping[str, Tensor]]) -> None:
        self.earlier = torch.stack([o["counts"] for o in earlier]).sum(0) if earlier else None

    @torch.no_grad()
    def update(self, batch_stats: Sequence[Mapping[str, Tensor]]) -> None:
        if not self.bias_rate:
            return
        counts = torch.stack([o["counts"] for o in batch_stats]).sum(0).float()
        self.bias += self.bias_rate * (counts.mean() - counts).sign()
        self.bias -= self.bias.mean()

    def _losses(
        self, counts: Int[Tensor, " E"], scores: Float[Tensor, "T E"], logits: Float[Tensor, "T E"]
    ) -> dict[str, Loss]:
        tokens = self.pool.share(counts.sum() / self.top_k)
        if self.training and self.earlier is not None:
            counts = counts + self.earlier
        losses = {"balance": Loss(balance_loss(counts, scores, tokens), self.balance)}
        if self.z_loss:
            losses["z"] = Loss(z_loss(logits, tokens), self.z_loss)
        return losses


def capacity(experts_per_token: float, num_tokens: int, num_experts: int, packed: bool = False) -> int:
    """The tokens of a sample that an expert takes: ceil(experts_per_token N / E), at most N.

    Raises:
        ValueError: if that is less than one token before rounding, unless samples are packed, which may be small.
    """
    room = experts_per_token * num_tokens / num_experts
    if room < 1 and not packed:
        raise ValueError(
            f"the capacity must be at least one token per expert, got {room:.3g}: {experts_per_token:g} experts "
            f"for each of {num_tokens} tokens, over {num_experts} experts"
        )
    return min(math.ceil(room - 1e-9), num_tokens)  # in floating point, 1.1 * 100 / 10 exceeds 11


def within_capacity(
    scores: Float[Tensor, "T E"],
    expert: Int[Tensor, "T K"],
    layout: Layout,
    experts_per_token: float,
    priority: bool,
) -> Bool[Tensor, "T K"]:
    """Mask of the choices within `capacity`, per sample and expert; all first choices come before all second ones.

    Choices of the same rank are ordered by the token's highest score, or without `priority` by position.
    """
    pairs = zip(layout.blocks(scores), layout.blocks(expert), strict=True)
    return torch.cat([_first(s, e, experts_per_token, priority, layout.packed) for s, e in pairs])


def _first(
    scores: Float[Tensor, "B N E"],
    expert: Int[Tensor, "B N K"],
    experts_per_token: float,
    priority: bool,
    packed: bool,
) -> Bool[Tensor, "T K"]:
    (size, num_tokens, top_k), num_experts = expert.shape, scores.shape[2]
    room = capacity(experts_per_token, num_tokens, num_experts, packed)
    place = torch.arange(num_tokens, device=expert.device).expand(size, -1)
    if priority:
        best = scores.amax(dim=-1)
        place = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    place = place[..., None] + num_tokens * torch.arange(top_k, device=expert.device)
    group = num_experts * torch.arange(size, device=expert.device)[:, None, None] + expert
    order = (group * num_tokens * top_k + place).flatten().argsort()
    group = group.flatten()[order]
    position = torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)
    kept = torch.empty_like(position, dtype=torch.bool)
    kept[order] = position < room
    return kept.view(-1, top_k)
