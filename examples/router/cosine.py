"""The smallest router of your own that has all that a router may have: weights, a loss, and state.

Run it where this file lies, or with its folder in PYTHONPATH; docs/extending.md explains it:

    python -m ditmoe.train --config-dir configs modality=image router=cosine
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe import Context, Loss, Router, Routing
from ditmoe.moe.losses import balance_loss
from ditmoe.moe.router import project
from ditmoe.moe.routing import count
from ditmoe.outside import check_number


class Cosine(Router):
    """Each token chooses the K experts of highest cosine (X-MoE, arXiv 2204.09179, eq. 4, without its projection).

        s = softmax(cos(x, w_e) / temperature) over the E experts,    chosen: the K largest of s + b,    weight: s

    The norm of a token has no influence, so no expert wins by long tokens. Two things balance the experts: the balance
    loss (arXiv 2101.03961, eq. 4), and a bias b, not a weight, that each step raises for experts with too few tokens
    (arXiv 2408.15664).

    Args:
        hidden_size: D, width of a token; passed by the model, all others are in the YAML.
        num_experts, top_k: E and K.
        temperature: of the softmax over cosine similarities.
        balance: coefficient of the balance loss.
        bias_rate: change of b per step; 0: no bias.
    """

    bias: Tensor
    # What it can do beyond routing: tests/moe checks each claim, and what a class does not claim is refused.
    uses_collectives = True  # its counts cover the whole batch, over all ranks
    top_k_in_sampling = True  # `top_k=` means the same in sampling as in training
    within_timestep = True  # router=timestep may hold one per segment of noise

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        temperature: float = 0.1,
        balance: float = 0.001,
        bias_rate: float = 0.001,
    ) -> None:
        super().__init__()
        check_number("num_experts", num_experts, 1, whole=True)
        check_number("top_k", top_k, 1, num_experts, whole=True)
        check_number("temperature", temperature, above=0)
        check_number("balance", balance, 0)
        check_number("bias_rate", bias_rate, 0)
        self.num_experts, self.top_k, self.active = num_experts, top_k, float(top_k)
        self.temperature, self.balance, self.bias_rate = temperature, balance, bias_rate
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))  # initialised like every router's
        # A buffer: saved and averaged, never optimised.
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> Routing:
        """A function of input, weights and buffers: it changes nothing, so it may be repeated."""
        tokens = x.flatten(0, 1).float()  # (T, D): tokens numbered across the batch
        cosines = project(F.normalize(tokens, dim=-1), F.normalize(self.weight.float(), dim=-1))
        scores = (cosines / self.temperature).softmax(dim=-1)
        expert = (scores + self.bias.float()).topk(self.top_k, dim=-1).indices
        # One row per assignment: the token, its expert, and the weight of that expert's output.
        token = torch.arange(len(tokens), device=x.device).repeat_interleave(self.top_k)
        weight = scores.gather(1, expert).flatten()
        # `self.pool` covers all ranks in training, and this process alone in sampling.
        counts = self.pool.total(count(expert.flatten(), self.num_experts))
        share = self.pool.share(counts.sum() / self.top_k)
        loss = Loss(balance_loss(counts, scores, share), self.balance)
        return Routing(token, expert.flatten(), weight, scores, {"balance": loss}, {"counts": counts})

    @torch.no_grad()
    def update(self, batch_stats: Sequence[Mapping[str, Tensor]]) -> None:
        """Called once per optimiser step, with the statistics of its passes: the only place that changes state."""
        counts = torch.stack([seen["counts"] for seen in batch_stats]).sum(0).float()
        self.bias += self.bias_rate * (counts.mean() - counts).sign()
