"""Depthwise convolution over the token grid, with a backward pass that is fast on a CPU."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_LARGE = 25
"""Kernel size (weights per channel) from which `_Depthwise` is faster: 5 x 5, 3 x 3 x 3."""


def depthwise(
    x: Float[Tensor, "R N D"], weight: Float[Tensor, "D 1 ..."], grid: Sequence[int]
) -> Float[Tensor, "R N D"]:
    """Convolve each channel over `grid`, with as many axes (1 to 3) as the odd kernel has; zero padding."""
    own = x.device.type == "cpu" and weight[0].numel() >= _LARGE
    return _Depthwise.apply(x, weight, tuple(grid)) if own else _convolve(x, weight, grid)


def _convolve(x: Tensor, weight: Tensor, grid: Sequence[int]) -> Tensor:
    convolution = (F.conv1d, F.conv2d, F.conv3d)[len(grid) - 1]
    # Copied: with channels last, oneDNN's bfloat16 gradient of a volume thinner than the kernel reads uninitialised
    # memory (torch 2.13).
    cells = x.transpose(1, 2).contiguous().view(x.shape[0], x.shape[2], *grid)
    return convolution(cells, weight, padding="same", groups=x.shape[2]).flatten(2).transpose(1, 2)


class _Depthwise(torch.autograd.Function):
    """Computes the gradients of x and, in float32, of the weights by forward convolutions.

    oneDNN's backward pass of a 3-D depthwise convolution takes about twenty times as long as its forward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, grid: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.grid = grid
        return _convolve(x, weight, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, weight), grid = ctx.saved_tensors, ctx.grid
        dx = dweight = None
        dy = dy.to(x.dtype)  # autocast may have changed the output's type
        if ctx.needs_input_grad[0]:
            flipped = weight.flatten(2).flip(2).view_as(weight)  # torch 2.14 does not trace flip(*axes)
            dx = _convolve(dy, flipped, grid)
        if ctx.needs_input_grad[1]:
            with torch.autocast("cpu", enabled=False):
                products = _correlate(x.float(), dy.float(), grid, weight.shape[2:])
            dweight = products.view_as(weight).to(weight.dtype)
        return dx, dweight, None


def _correlate(
    x: Float[Tensor, "R N D"], dy: Float[Tensor, "R N D"], grid: Sequence[int], kernel: Sequence[int]
) -> Float[Tensor, "D K"]:
    """The gradient of the weights: each channel of each row is convolved with its dy as the kernel."""
    convolution = (F.conv1d, F.conv2d, F.conv3d)[len(grid) - 1]
    cells, kernels = (values.transpose(1, 2).reshape(-1, 1, *grid) for values in (x, dy))
    beyond = [size // 2 for size in kernel]
    found = convolution(cells.transpose(0, 1), kernels, padding=beyond, groups=len(kernels))
    return found.view(len(x), x.shape[2], -1).sum(0)
