"""The depth-wise convolution is torch's, forwards and backwards."""

import math

import pytest
import torch
import torch.nn.functional as F

from ditmoe.nn import depthwise


@pytest.mark.parametrize(
    ("grid", "kernel"), [((2, 3, 5), 3), ((1, 2, 4), 5), ((4, 3), 5), ((4, 3), 3), ((6,), 3)]
)
def test_it_and_its_gradients_are_those_of_a_grouped_convolution(grid: tuple[int, ...], kernel: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, math.prod(grid), 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 1, *[kernel] * len(grid), dtype=torch.float64, requires_grad=True)
    cells = x.transpose(1, 2).reshape(2, 8, *grid)
    convolution = (F.conv1d, F.conv2d, F.conv3d)[len(grid) - 1]
    right = convolution(cells, weight, padding="same", groups=8).flatten(2).transpose(1, 2)
    dy = torch.randn_like(x)
    given, expected = (
        (y, *torch.autograd.grad(y, (x, weight), dy)) for y in (depthwise(x, weight, grid), right)
    )
    for one, other in zip(given, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)
