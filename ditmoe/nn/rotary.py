"""Axial rotary positions (RoFormer, arXiv 2104.09864)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotary_angles(
    coordinates: Float[Tensor, "N A"], head_size: int, base: float = 10_000.0
) -> Float[Tensor, "N half"]:
    """Angles by which pairs of channels rotate: each of A axes rotates its share of the pairs.

    Pairs of axis a rotate by coordinate_a base^(-i / share), so that attention depends only on coordinate differences.
    Pairs left over after the division by A have angle 0.
    """
    pairs, axes = head_size // 2, coordinates.shape[-1]
    share = pairs // axes
    frequencies = base ** (-torch.arange(share, device=coordinates.device) / max(share, 1))
    angles = (coordinates.float()[..., None] * frequencies).flatten(-2)
    return F.pad(angles, (0, pairs - angles.shape[-1]))


def rotate(x: Float[Tensor, "B H N d"], angles: Float[Tensor, "N half"]) -> Float[Tensor, "B H N d"]:
    """Rotate the pairs (x_i, x_{i + d/2}) by their angles, in float32."""
    cos, sin = angles.cos(), angles.sin()
    if not torch.compiler.is_compiling():
        return _Rotation.apply(x.float(), cos, sin)
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class _Rotation(torch.autograd.Function):
    """Writes the two halves in place; the gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(dy, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    first, second = y.chunk(2, dim=-1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(a, sin, out=second).addcmul_(b, cos)
    return y
