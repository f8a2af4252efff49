"""Diff-MoE (ICML 2025; not DiffMoE, which is batch_pool.py): timestep-conditioned experts after a convolution."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe.experts import Experts
from ditmoe.moe.router import Context
from ditmoe.moe.time_aware import GridConvolution, TimeAware, TimeAwareExperts
from ditmoe.nn import FeedForward, normalize


class DiffMoE(TimeAware):
    """Diff-MoE, "Time-Aware and Space-Adaptive Experts" (ICML 2025), which is not DiffMoE (the class `BatchPool`).

    Token choice over experts that are modulated by the conditioning, the shared one included, after a convolution
    inside the residual branch:

        h -> h + gate MoE(modulate(LN(conv(h)), c))                                        [the block]
        expert_e(x, c) = x + g_e f_e((1 + a_e) LN(x) + b_e),   (b_e, a_e, g_e) = V_e ReLU(U_e c) + v_e
        MoE(x) = shared(x, c) + sum_k w_k expert_k(x, c)

    with U and V of low rank, V and v initialised to zero, and conv a depthwise convolution over the 1 to 3 axes of the
    token grid. Sampling is like training. The pooled channel gate in the paper's experts is omitted.

    Args:
        rank: of each expert's modulation.
        kernel: of the convolution along each axis, odd; 0: none.
    """

    top_k_in_sampling = True

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        rank: int = 64,
        kernel: int = 5,
        **options: Any,
    ) -> None:
        super().__init__(hidden_size, num_experts, top_k, rank, kernel, **options)

    def experts(self, hidden_size: int, inner: int, activation: str) -> Experts:
        return DiffMoEExperts(self.num_experts, hidden_size, inner, activation, self.rank)

    def shared(self, hidden_size: int, inner: int, activation: str) -> nn.Module:
        return TimeAwareFeedForward(hidden_size, inner, activation, self.rank)

    def stem(self, hidden_size: int) -> nn.Module | None:
        return GridConvolution(hidden_size, self.kernel, self.axes, bias=True) if self.kernel else None

    def branch(self, hidden_size: int) -> nn.Module | None:
        return None


class DiffMoEExperts(TimeAwareExperts):
    """The routed experts: LayerNorm before the modulation, whose two maps have a ReLU between them and a final bias."""

    def __init__(self, num_experts: int, hidden_size: int, inner: int, activation: str, rank: int) -> None:
        super().__init__(num_experts, hidden_size, inner, activation, rank)
        self.expand_bias = nn.Parameter(torch.empty(num_experts, 3 * hidden_size))

    def normalized(self, x: Float[Tensor, "A D"]) -> Float[Tensor, "A D"]:
        return normalize(x)

    def reduced(self, c: Float[Tensor, "b D"]) -> Float[Tensor, "b E r"]:
        return torch.einsum("erd,bd->ber", self.reduce.to(c.dtype), c).relu()

    def modulation(self, rows: Any, c: Float[Tensor, "*t D"]) -> Float[Tensor, "A D3"]:
        modulation = super().modulation(rows, c)
        return modulation + self.expand_bias.to(modulation.dtype)[rows.expert]

    def initialize(self) -> None:
        super().initialize()
        nn.init.zeros_(self.expand_bias)


class TimeAwareFeedForward(nn.Module):
    """The shared expert: the same computation for all tokens."""

    def __init__(self, hidden_size: int, inner: int, activation: str, rank: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(hidden_size, rank, bias=False)
        self.expand = nn.Linear(rank, 3 * hidden_size)
        self.feed_forward = FeedForward(hidden_size, inner, activation)

    def initialize(self) -> None:
        """Zero the modulation, so that the gate starts closed."""
        bound = self.reduce.in_features**-0.5
        nn.init.uniform_(self.reduce.weight, -bound, bound)
        nn.init.zeros_(self.expand.weight)

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> Float[Tensor, "R N D"]:
        modulation = context.layout.spread(self.expand(F.relu(self.reduce(context.c))))
        shift, scale, gate = modulation.to(x.dtype).chunk(3, dim=-1)
        y = self.feed_forward(torch.addcmul(shift, normalize(x), 1 + scale))
        return torch.addcmul(x, gate, y.to(x.dtype))
