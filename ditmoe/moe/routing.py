"""Who goes where: a sparse assignment of tokens to experts, and the routers that make one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Routing:
    """A sparse list of assignments and the dense scores behind it.

    Token choice gives A = T K rows, expert choice E C, a threshold any number; whatever comes after is the
    same for all of them. Tokens are numbered through the batch, T = B N.
    """

    token: Int[Tensor, " A"]
    expert: Int[Tensor, " A"]
    weight: Float[Tensor, " A"]
    scores: Float[Tensor, "T E"]

    @property
    def counts(self) -> Int[Tensor, " E"]:
        """Assignments per expert; on the device, without waiting for it."""
        zeros = torch.zeros(self.scores.shape[1], dtype=torch.int64, device=self.expert.device)
        return zeros.index_add(0, self.expert, torch.ones_like(self.expert))


class Router(nn.Module, ABC):
    """Assigns tokens to experts."""

    num_experts: int

    @abstractmethod
    def forward(self, x: Float[Tensor, "B N D"]) -> Routing:
        """Route each token of each sample."""


class TokenChoice(Router):
    """Each token takes the K experts of the highest score (DiT-MoE, arXiv 2407.11633; Switch at K = 1).

        s = softmax(W x) over the E experts,   w = the K largest of s   [/ their sum, if `renormalize`]

    W and the softmax are computed in float32 whatever the precision around them: in bf16 the updates of a
    router vanish. Nothing is dropped, and sampling needs nothing that training does not.

    Raises:
        ValueError: if `top_k` is not between 1 and `num_experts`.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, renormalize: bool = False) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must lie between 1 and num_experts = {num_experts}, got {top_k}")
        self.num_experts = num_experts
        self.top_k = top_k
        self.renormalize = renormalize
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))

    def forward(self, x: Float[Tensor, "B N D"]) -> Routing:
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.flatten(0, 1).float(), self.weight.float())
            scores = logits.softmax(dim=-1)
        weight, expert = scores.topk(self.top_k, dim=-1)
        if self.renormalize:
            weight = weight / weight.sum(dim=-1, keepdim=True)
        token = torch.arange(len(scores), device=x.device).repeat_interleave(self.top_k)
        return Routing(token, expert.flatten(), weight.flatten(), scores)
