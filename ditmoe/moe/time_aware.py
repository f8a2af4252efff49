"""Timestep-conditioned experts, parallel to a convolution over neighbouring tokens; after Diff-MoE (diff_moe.py)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ditmoe.moe.experts import Experts, Rows, grouped_mm
from ditmoe.moe.router import Context, Place, check_positive
from ditmoe.moe.token_choice import TokenChoice
from ditmoe.nn import Layout, depthwise


class TimeAware(TokenChoice):
    """Token choice over timestep-conditioned experts, parallel to a convolution; ours, after `DiffMoE`.

        expert_e(x, c) = x + g_e f_e((1 + a_e) x + b_e),    (b_e, a_e, g_e) = V_e U_e SiLU(c)
        y = shared(x) + sum_k w_k expert_k(x, c) + conv(x)

    Each expert has its own low-rank modulation by the conditioning; V starts at zero. conv is a depthwise convolution
    over the 1 to 3 axes of the token grid, zero-initialised, so that at first it has no effect. Sampling is like
    training.

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
        kernel: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(hidden_size, num_experts, top_k, **options)
        check_positive(rank=rank)
        check_kernel(kernel)
        self.rank, self.kernel, self.axes = rank, kernel, 1

    def bind(self, place: Place) -> None:
        self.axes = place.axes

    def experts(self, hidden_size: int, inner: int, activation: str) -> Experts:
        return TimeAwareExperts(self.num_experts, hidden_size, inner, activation, self.rank)

    def branch(self, hidden_size: int) -> nn.Module | None:
        return GridConvolution(hidden_size, self.kernel, self.axes) if self.kernel else None


class TimeAwareExperts(Experts):
    """Experts with low-rank modulation by the conditioning, and a residual connection around each.

    A subclass may override what is modulated (`normalized`) and the low-rank projection of the conditioning
    (`reduced`).
    """

    def __init__(self, num_experts: int, hidden_size: int, inner: int, activation: str, rank: int) -> None:
        super().__init__(num_experts, hidden_size, inner, activation)
        self.reduce = nn.Parameter(torch.empty(num_experts, rank, hidden_size))
        self.expand = nn.Parameter(torch.empty(num_experts, 3 * hidden_size, rank))

    def forward(self, rows: Rows, c: Float[Tensor, "*t D"]) -> Float[Tensor, "A D"]:
        shift, scale, gate = self.modulation(rows, c).to(rows.x.dtype).chunk(3, dim=-1)
        weight = rows.weight[:, None].to(rows.x.dtype)
        y = self.compute(torch.addcmul(shift, self.normalized(rows.x), 1 + scale), rows)
        return torch.addcmul(weight * rows.x, gate, y.to(rows.x.dtype))

    def normalized(self, x: Float[Tensor, "A D"]) -> Float[Tensor, "A D"]:
        """The input of the modulation."""
        return x

    def reduced(self, c: Float[Tensor, "b D"]) -> Float[Tensor, "b E r"]:
        """Each expert's projection of each conditioning vector: U_e SiLU(c)."""
        return torch.einsum("erd,bd->ber", self.reduce.to(c.dtype), F.silu(c))

    def modulation(self, rows: Rows, c: Float[Tensor, "*t D"]) -> Float[Tensor, "A D3"]:
        """Shift, scale and gate of each row: V_e times the output of `reduced`."""
        row, each = rows.row_of(c.shape[:-1]), c.flatten(0, -2)
        reduced = self.reduced(each)
        if c.ndim > 2 and len(each) * len(self.expand) > len(row):  # fewer rows than pairs of time and expert
            expand, ends = self.expand.to(reduced.dtype).transpose(1, 2), rows.counts.cumsum(0)
            return grouped_mm(reduced[row, rows.expert], expand, ends.to(torch.int32))
        return torch.einsum("epr,ber->bep", self.expand.to(c.dtype), reduced)[row, rows.expert]

    def initialize(self) -> None:
        nn.init.uniform_(self.reduce, -(self.reduce.shape[-1] ** -0.5), self.reduce.shape[-1] ** -0.5)
        nn.init.zeros_(self.expand)


def check_kernel(kernel: int) -> None:
    """Raise ValueError unless the kernel is odd or 0."""
    if kernel < 0 or (kernel and kernel % 2 == 0):
        raise ValueError(f"kernel must be odd, or 0 for no convolution, got {kernel}")


class GridConvolution(nn.Module):
    """Depthwise convolution over a token grid of any size.

    Args:
        bias: if true, initialised as in torch, uniform within 1 / sqrt(kernel^axes); if false, to zero.
    """

    def __init__(self, hidden_size: int, kernel: int, axes: int, bias: bool = False) -> None:
        super().__init__()
        self.axes = axes
        self.weight = nn.Parameter(torch.empty(hidden_size, 1, *[kernel] * axes))
        self.bias = nn.Parameter(torch.empty(hidden_size)) if bias else None

    def initialize(self) -> None:
        """Initialise to zero, or with a bias as torch does."""
        bound = 0.0 if self.bias is None else self.weight[0].numel() ** -0.5
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound) if bound else nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "R N D"], context: Context) -> Float[Tensor, "R N D"]:
        layout = context.layout
        if layout.packed:
            return self._over_cells(x, layout)
        grid = layout.grids[0]
        if len(grid) != self.axes or math.prod(grid) != x.shape[1]:
            raise ValueError(f"{x.shape[1]} tokens on {self.axes} axes do not lie on a grid of {grid}")
        y = depthwise(x, self.weight.to(x.dtype), grid)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _over_cells(self, x: Float[Tensor, "1 T D"], layout: Layout) -> Float[Tensor, "1 T D"]:
        """The same if only some cells are tokens: the others count as zero."""
        weight = self.weight.flatten(1).to(x.dtype)
        rows, y = F.pad(x[0], (0, 0, 0, 1)), torch.zeros_like(x[0])
        for k, neighbour in enumerate(layout.neighbours(self.weight.shape[2])):
            y = torch.addcmul(y, rows[neighbour], weight[:, k])
        return (y if self.bias is None else y + self.bias.to(x.dtype))[None]
