"""Rotary positions turn pairs of channels, so that products of queries and keys depend on distances alone."""

import pytest
import torch
from torch import Tensor

from ditmoe.nn import rotary_angles
from ditmoe.nn.rotary import rotate

GRID = torch.cartesian_prod(torch.arange(3.0), torch.arange(4.0)) / 2


def heads(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(2, 3, 12, 10): not contiguous, as heads of one projection are."""
    return torch.randn(2, 12, 3, 10, generator=torch.Generator().manual_seed(seed)).to(dtype).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_multiplies_by_complex_numbers_of_length_one_and_its_gradient_turns_back(
    dtype: torch.dtype,
) -> None:
    angles = rotary_angles(GRID, 10)
    x, dy = heads(0, dtype).requires_grad_(), heads(1)
    y = rotate(x, angles)
    (dx,) = torch.autograd.grad(y, x, dy)

    def turned(values: Tensor, by: Tensor) -> Tensor:
        pairs = torch.complex(*values.detach().float().chunk(2, -1)) * torch.polar(torch.ones_like(by), by)
        return torch.cat([pairs.real, pairs.imag], -1)

    assert torch.allclose(y, turned(x, angles), atol=1e-6)
    assert dx.dtype == dtype
    assert torch.allclose(dx, turned(dy, -angles).to(dtype), atol=1e-6)


def test_products_depend_on_distances_alone() -> None:
    q, k = heads(2)[:, :, :1].expand(2, 3, 12, 10), heads(3)[:, :, :1].expand(2, 3, 12, 10)
    here, there = (rotary_angles(GRID + shift, 10) for shift in (0, torch.tensor([5.0, -2.0])))
    products = [rotate(q, angles) @ rotate(k, angles).mT for angles in (here, there)]
    assert torch.allclose(*products, atol=1e-5)
    assert not torch.allclose(products[0][0, 0, 0, 0], products[0][0, 0, 0, 1], atol=1e-3)


def test_what_is_compiled_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    angles, results = rotary_angles(GRID, 10), []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)  # noqa: B023
        x = heads(0).requires_grad_()
        y = rotate(x, angles)
        assert (type(y.grad_fn).__name__ == "_RotationBackward") is not compiling
        results.append((y, *torch.autograd.grad(y, x, heads(1))))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
