"""Voxels: equal to DiT-3D's, and the laws that its CUDA kernels were never tested for."""

import pytest
import torch

from modalities.pointcloud.tokens.voxel import devoxelize, grid_coordinates, voxelize


def cloud(batch: int = 2, points: int = 100, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(seed))


def test_equals_dit3d(golden) -> None:
    z = golden("golden_dit3d_tiny.npz")
    x = torch.tensor(z["x"]).mT
    coords = grid_coordinates(x, 16)
    assert torch.allclose(coords, torch.tensor(z["norm_coords"]).mT, atol=1e-6)
    grid, _ = voxelize(x, coords, 16)
    assert torch.allclose(grid.movedim(-1, 1), torch.tensor(z["vox"]), atol=1e-6)
    read = devoxelize(torch.tensor(z["dv_grid"]).movedim(1, -1), torch.tensor(z["dv_coords"]).mT)
    assert torch.allclose(read.mT, torch.tensor(z["dv_out"]), atol=1e-5)


@pytest.mark.parametrize("extent", [None, 3.0])
def test_mean_equals_a_loop_over_points(extent: float | None) -> None:
    x = cloud()
    coords = grid_coordinates(x, 4, extent)
    grid, counts = voxelize(x, coords, 4)
    for b in range(2):
        cells: dict[tuple[int, ...], list[torch.Tensor]] = {}
        for point, where in zip(x[b], coords[b].round().long().tolist(), strict=True):
            cells.setdefault(tuple(where), []).append(point)
        assert counts[b].sum() == 100
        assert (counts[b] > 0).sum() == len(cells)
        for where, points in cells.items():
            assert torch.allclose(grid[b][where], torch.stack(points).mean(0), atol=1e-6)


def test_reading_a_linear_field_is_exact() -> None:
    axes = torch.stack(torch.meshgrid(*[torch.arange(5.0)] * 3, indexing="ij"), dim=-1)[None]
    coords = torch.rand(1, 200, 3) * 4
    assert torch.allclose(devoxelize(axes, coords), coords, atol=1e-5)


def test_order_of_points_and_of_samples_does_not_matter() -> None:
    x = cloud().double()
    order = torch.randperm(100)
    grid, _ = voxelize(x, grid_coordinates(x, 8), 8)
    shuffled, _ = voxelize(x[:, order], grid_coordinates(x[:, order], 8), 8)
    assert torch.allclose(grid, shuffled)
    alone, _ = voxelize(x[1:], grid_coordinates(x[1:], 8), 8)
    assert torch.equal(grid[1:], alone)


def test_fitted_grid_ignores_shift_and_scale() -> None:
    x = cloud().double()
    assert torch.allclose(grid_coordinates(x, 8), grid_coordinates(5 * x + 3, 8))


@pytest.mark.parametrize("extent", [None, 1.0])
def test_points_outside_and_degenerate_clouds_stay_in_the_grid(extent: float | None) -> None:
    for x in (torch.full((1, 5, 3), 1e6), torch.zeros(1, 5, 3), torch.tensor([[[-9.0, 0, 9.0]]])):
        coords = grid_coordinates(x, 4, extent)
        assert coords.isfinite().all()
        assert coords.min() >= 0
        assert coords.max() <= 3


def test_gradients() -> None:
    coords = grid_coordinates(cloud(1, 6), 3).double()
    values = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: voxelize(v, coords, 3)[0], values)
    grid = torch.randn(1, 3, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    inside = (torch.rand(1, 6, 3, dtype=torch.float64) * 1.8 + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(devoxelize, (grid, inside))


@pytest.mark.gpu
def test_same_on_the_gpu_and_the_same_twice() -> None:
    x = cloud(4, 2048)
    coords = grid_coordinates(x, 16)
    grid, _ = voxelize(x, coords, 16)
    one, two = (voxelize(x.cuda(), coords.cuda(), 16)[0].cpu() for _ in range(2))
    assert torch.equal(one, two)
    assert torch.allclose(grid, one, atol=1e-5)
    assert torch.allclose(devoxelize(grid, coords), devoxelize(grid.cuda(), coords.cuda()).cpu(), atol=1e-5)
