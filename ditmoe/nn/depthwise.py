"""Depthwise convolution over the token grid, with a backward pass that is fast on a CPU."""

import itertools
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
    """Computes the gradient of x by a forward convolution, and that of each weight as a sum of products, in float32.

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
        axes, kernel = len(grid), weight.shape[2:]
        dx = dweight = None
        dy = dy.to(x.dtype)  # autocast may have changed the output's type
        if ctx.needs_input_grad[0]:
            flipped = weight.flatten(2).flip(2).view_as(weight)  # torch 2.14 does not trace flip(*axes)
            dx = _convolve(dy, flipped, grid)
        if ctx.needs_input_grad[1]:
            beyond = [side for size in reversed(kernel) for side in (size // 2, size // 2)]
            cells = F.pad(x.reshape(x.shape[0], *grid, -1).float(), [0, 0, *beyond])
            dcells = dy.reshape(x.shape[0], *grid, -1).float()
            each = []
            for start in itertools.product(*map(range, kernel)):
                place = (slice(None), *(slice(at, at + size) for at, size in zip(start, grid, strict=True)))
                each.append((cells[place] * dcells).flatten(0, axes).sum(0))
            dweight = torch.stack(each, -1).view(weight.shape).to(weight.dtype)
        return dx, dweight, None
