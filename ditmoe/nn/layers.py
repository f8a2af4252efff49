"""The layers of a diffusion transformer that are independent of experts, tokens and noise."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.nn.layout import Layout

ACTIVATIONS = ("swiglu", "gelu", "gelu_tanh")


def activate(x: Float[Tensor, "*n up"], activation: str) -> Float[Tensor, "*n inner"]:
    """Apply the non-linearity of a feed-forward layer; SwiGLU (arXiv 2002.05202) halves the width: SiLU(gate) up."""
    if activation == "swiglu":
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def up_features(inner: int, activation: str) -> int:
    """Output width of the first matrix of a feed-forward layer whose second one has input width `inner`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return 2 * inner if activation == "swiglu" else inner


class FeedForward(nn.Module):
    """Dense feed-forward layer: GELU with biases as in DiT, SwiGLU without as in DiT-MoE."""

    def __init__(self, hidden_size: int, inner: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        bias = activation != "swiglu"
        self.up = nn.Linear(hidden_size, up_features(inner, activation), bias=bias)
        self.down = nn.Linear(inner, hidden_size, bias=bias)

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        return self.down(activate(self.up(x), self.activation))


def sinusoid(t: Float[Tensor, " B"], size: int, max_period: float = 10_000.0) -> Float[Tensor, "B size"]:
    """[cos | sin] of t at geometrically spaced frequencies (arXiv 1706.03762, as in DiT); t runs 0..1000."""
    half = size // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Sinusoid of `scale` t, for t in 0..1000, through a two-layer MLP."""

    def __init__(self, hidden_size: int, sinusoid_size: int = 256, scale: float = 1.0) -> None:
        super().__init__()
        self.sinusoid_size, self.scale = sinusoid_size, scale
        self.first = nn.Linear(sinusoid_size, hidden_size)
        self.second = nn.Linear(hidden_size, hidden_size)

    def forward(self, t: Float[Tensor, " B"]) -> Float[Tensor, "B D"]:
        h = sinusoid(self.scale * t, self.sinusoid_size).to(self.first.weight.dtype)
        return self.second(F.silu(self.first(h)))


class Modulation(nn.Module):
    """adaLN: `num` vectors of width D from the conditioning, Linear(SiLU(c)) (DiT, arXiv 2212.09748, 3.2)."""

    def __init__(self, hidden_size: int, num: int) -> None:
        super().__init__()
        self.num = num
        self.linear = nn.Linear(hidden_size, num * hidden_size)

    def forward(self, c: Float[Tensor, "*t D"], layout: Layout) -> tuple[Float[Tensor, "R _ D"], ...]:
        """Each shaped to broadcast to the tokens; c has one row per time (see `ditmoe.nn.layout`)."""
        return layout.spread(self.linear(F.silu(c))).chunk(self.num, dim=-1)


def normalize(x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
    """LayerNorm without learned scale."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(
    x: Float[Tensor, "B N D"], shift: Float[Tensor, "B _ D"], scale: Float[Tensor, "B _ D"]
) -> Float[Tensor, "B N D"]:
    """`normalize`, then the conditioning's scale and shift."""
    return torch.addcmul(shift, x, 1 + scale)
