"""The routed experts: stacked weights, one grouped product."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ditmoe.layers import activate, up_features


class Experts(nn.Module):
    """E feed-forward layers of one shape, weights stacked along the first axis as (E, out, in).

    GELU experts carry biases as DiT's MLP does, so that a dense layer can become an expert exactly.
    """

    def __init__(self, num_experts: int, hidden_size: int, inner: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        up = up_features(inner, activation)
        self.up = nn.Parameter(torch.empty(num_experts, up, hidden_size))
        self.down = nn.Parameter(torch.empty(num_experts, hidden_size, inner))
        bias = activation != "swiglu"
        self.up_bias = nn.Parameter(torch.zeros(num_experts, up)) if bias else None
        self.down_bias = nn.Parameter(torch.zeros(num_experts, hidden_size)) if bias else None

    def forward(
        self,
        x: Float[Tensor, "A D"],
        weight: Float[Tensor, " A"],
        expert: Int[Tensor, " A"],
        counts: Int[Tensor, " E"],
    ) -> Float[Tensor, "A D"]:
        """Each row through its expert, times its weight. Rows lie sorted by expert, `counts` rows for each.

        The weight is applied between the two matrices, so that its gradient needs no expert output.
        """
        inner = activate(grouped_linear(x, self.up, self.up_bias, expert, counts), self.activation)
        weight = weight.type_as(inner)[:, None]
        out = grouped_linear(inner * weight, self.down, None, expert, counts)
        if self.down_bias is not None:
            out = out + weight * self.down_bias[expert]
        return out


def grouped_linear(
    x: Float[Tensor, "A in"],
    weight: Float[Tensor, "E out in"],
    bias: Float[Tensor, "E out"] | None,
    expert: Int[Tensor, " A"],
    counts: Int[Tensor, " E"],
) -> Float[Tensor, "A out"]:
    """Row a times the matrix of its expert, for rows sorted by expert.

    On CUDA one grouped product without a host synchronisation. On a CPU the counts are at hand anyway, and
    a product per slice is as fast; `unbind` rather than `weight[e]`, whose gradient would be of full size.
    """
    device, dtype = x.device.type, x.dtype
    if torch.is_autocast_enabled(device):
        # Few rows on a CPU stay in float32: oneDNN builds a bf16 kernel for every number of rows that it has not
        # seen, and a small product never earns that back.
        large = x.is_cuda or len(x) >= 1024 * len(weight)
        dtype = torch.get_autocast_dtype(device) if large else torch.float32
    x, weight = x.to(dtype), weight.to(dtype)  # once for all experts
    bias = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        if x.is_cuda:
            y = F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0).to(torch.int32))
            return y if bias is None else y + bias[expert]
        slices = x.split(counts.tolist())
        biases = [None] * len(slices) if bias is None else bias.unbind()
        parts = zip(slices, weight.unbind(), biases, strict=True)
        return torch.cat([F.linear(rows, w, b) for rows, w, b in parts])
