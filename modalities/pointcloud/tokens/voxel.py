"""Voxelise and devoxelise in plain PyTorch: any device, deterministic, differentiable, nothing to compile."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from modalities.pointcloud.tokens.voxel_tables import AllVoxels, Voxels


def grid_coordinates(
    x: Float[Tensor, "B M 3"], resolution: int, extent: float | None = None
) -> Float[Tensor, "B M 3"]:
    """Coordinates of points in a grid of R^3 voxels, clamped to [0, R - 1]; voxel i is centred at i.

    Args:
        extent: the grid covers [-extent, extent] on each axis. None fits it to each cloud as DiT-3D and PVCNN
            do: centred on the mean, divided by twice the largest distance from it, times R.
    """
    if extent is None:
        centred = x - x.mean(dim=1, keepdim=True)
        radius = centred.norm(dim=-1).amax(dim=1).clamp_min(1e-12)
        coords = (centred / (2 * radius[:, None, None]) + 0.5) * resolution
    else:
        coords = (x / (2 * extent) + 0.5) * resolution - 0.5
    # NaN must not become an index; values computed from such a point stay NaN.
    return coords.nan_to_num(0.0).clamp(0, resolution - 1)


def voxelize(
    values: Float[Tensor, "B M C"], coords: Float[Tensor, "B M 3"], resolution: int
) -> tuple[Float[Tensor, "B R R R C"], Float[Tensor, "B R R R 1"]]:
    """Mean of the values of the points in each voxel, 0 for empty ones, and the number of points.

    A point belongs to the voxel with the nearest centre (ties go to the even one). Differentiable with respect
    to `values`. Clouds of a batch are independent.
    """
    voxels = AllVoxels(len(values), resolution)
    sums = sum_rows(values, coords, voxels).view(len(values), *[resolution] * 3, -1)
    counts = sums[..., -1:].detach()
    return sums[..., :-1] / counts.clamp_min(1), counts


def mean_rows(
    values: Float[Tensor, "B M C"], coords: Float[Tensor, "B M 3"], voxels: Voxels
) -> Float[Tensor, "size C"]:
    """The means of `voxelize`, as rows of a table."""
    sums = sum_rows(values, coords, voxels)
    return sums[:, :-1] / sums[:, -1:].detach().clamp_min(1)


def sum_rows(
    values: Float[Tensor, "B M C"], coords: Float[Tensor, "B M 3"], voxels: Voxels
) -> Float[Tensor, "size C1"]:
    """Sums of the values of the points in each voxel, with their number in the last column."""
    rows = torch.cat([values, values.new_ones(*values.shape[:2], 1)], dim=-1).flatten(0, 1)
    index = voxels.find(coords.round().long()).flatten()
    return add_rows_(rows.new_zeros(voxels.size, rows.shape[1]), index, rows)


def devoxelize(grid: Float[Tensor, "B R R R C"], coords: Float[Tensor, "B M 3"]) -> Float[Tensor, "B M C"]:
    """Read a grid at points by trilinear interpolation; differentiable with respect to both."""
    return interpolate(grid.flatten(0, 3), coords, AllVoxels(len(grid), grid.shape[1]))


def interpolate(
    rows: Float[Tensor, "size C"], coords: Float[Tensor, "B M 3"], voxels: Voxels
) -> Float[Tensor, "B M C"]:
    """`devoxelize` from rows of a table."""
    low = coords.detach().floor().clamp(0, max(voxels.resolution - 2, 0))
    index = voxels.corners(low.long()).flatten(0, 1)
    high = (coords - low).flatten(0, 1).T.contiguous()  # contiguous per axis, which is faster on a CPU
    x, y, z = torch.stack([1 - high, high], dim=1)
    weight = ((x[:, None] * y)[:, :, None] * z).flatten(0, 2).T.contiguous().type_as(rows)
    return WeightedRows.apply(rows, index, weight).view(*coords.shape[:2], -1)


def mean_at(
    values: Float[Tensor, "B K C"],
    coords: Float[Tensor, "B K 3"],
    voxels: Voxels,
    at: Float[Tensor, "B M 3"],
) -> Float[Tensor, "B M C"]:
    """The mean of the values of the points around each position; 0 if there are none."""
    sums = interpolate(sum_rows(values, coords, voxels), at, voxels)
    return sums[..., :-1] / sums[..., -1:].clamp_min(1e-3)


class WeightedRows(torch.autograd.Function):
    """out[n] = sum_k weight[n, k] rows[index[n, k]].

    With a custom gradient, since autograd would allocate one of the size of `rows` for each k.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, index, weight)
        return F.embedding_bag(index, rows, per_sample_weights=weight, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        rows, index, weight = ctx.saved_tensors
        grad_rows = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_rows = torch.zeros_like(rows)
            for k in range(index.shape[1]):
                add_rows_(grad_rows, index[:, k], grad * weight[:, k, None])
        if ctx.needs_input_grad[2]:
            parts = [(grad * rows.index_select(0, i)).sum(dim=-1) for i in index.unbind(-1)]
            grad_weight = torch.stack(parts, dim=-1)
        return grad_rows, None, grad_weight


def add_rows_(
    out: Float[Tensor, "size C"], index: Tensor, rows: Float[Tensor, "n C"]
) -> Float[Tensor, "size C"]:
    """Add rows at their indices. On CUDA `index_put_` sorts first, so the order of summation is deterministic."""
    return out.index_put_((index,), rows, accumulate=True) if out.is_cuda else out.index_add_(0, index, rows)
