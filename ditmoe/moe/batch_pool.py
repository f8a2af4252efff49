"""The router of DiffMoE (arXiv 2503.14487; not Diff-MoE, which is diff_moe.py): experts choose over a whole batch."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe.capacity import Sparsified
from ditmoe.moe.router import Context, Router, project
from ditmoe.moe.routing import Loss, Routing, assign
from ditmoe.moe.threshold import Threshold, own


class BatchPool(Router):
    """DiffMoE, "Dynamic Token Selection" (arXiv 2503.14487), which is not Diff-MoE (the class `DiffMoE`).

    Experts choose over the whole batch; a predictor learns their choices, for sampling.

        training:  s = softmax(W x), expert e takes the capacity T / E largest of s[:, e] over the whole batch
                   p = sigmoid(V' silu(V sg(x))),  L = BCE(p, chosen)          (sg: stop gradient)
                   tau_e = moving average of the (capacity T / E)-th largest p[:, e]
        sampling:  expert e takes every token with p[:, e] >= tau_e
        both:      w = s

    The predictor's input has no gradient, so its loss trains nothing else. Sampling needs its weights and the
    thresholds; the experts per token then depend on the sample.

    The sampling rule is ours. In the paper the thresholds only set how many tokens of the batch each expert takes,
    which are then those with the highest scores, so that a sample depends on the others in its batch.

    Args:
        capacity: experts per token, on average over the batch.
        predictor_loss: coefficient of the predictor's loss.
        momentum: of the thresholds' moving average.
        sparsify: first and last training step of lowering the capacity from all experts, see `capacity.Sparsified`.
    """

    uses_collectives = competes = True
    within_timestep = True

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        capacity: float = 1.0,
        predictor_loss: float = 0.01,
        momentum: float = 0.95,
        sparsify: Sequence[int] | None = None,
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
        self.sparsified = None if sparsify is None else Sparsified(num_experts, sparsify)

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
        capacity = self.sparsified(self.active) if self.sparsified and not x.is_meta else self.active
        room = round(capacity * tokens / self.num_experts)
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

    def update(self, batch_stats: Sequence[Mapping[str, Tensor]]) -> None:
        if self.sparsified is not None:
            self.sparsified.update()
        self.threshold.update(torch.stack([o["threshold"] for o in batch_stats]).mean(0))
