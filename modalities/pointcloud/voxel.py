"""Voxelise and devoxelise in plain PyTorch: any device, deterministic, differentiable, nothing to compile."""

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def grid_coordinates(
    x: Float[Tensor, "B M 3"], resolution: int, extent: float | None = None
) -> Float[Tensor, "B M 3"]:
    """Where points lie in a grid of R^3 voxels, clamped to [0, R - 1]; voxel i is centred at i.

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
    return coords.clamp(0, resolution - 1)


def voxelize(
    values: Float[Tensor, "B M C"], coords: Float[Tensor, "B M 3"], resolution: int
) -> tuple[Float[Tensor, "B R R R C"], Float[Tensor, "B R R R 1"]]:
    """Mean of the values of the points in each voxel, 0 where there are none, and the number of points.

    A point belongs to the voxel whose centre is nearest (halves go to the even one). Differentiable with
    respect to `values`. Clouds of a batch do not meet.
    """
    batch, _, channels = values.shape
    cells = resolution**3
    index = flat_index(coords.round().long(), resolution)
    rows = torch.cat([values, values.new_ones(*values.shape[:2], 1)], dim=-1).flatten(0, 1)
    sums = add_rows(rows, index, batch * cells).view(batch, *[resolution] * 3, channels + 1)
    counts = sums[..., channels:].detach()
    return sums[..., :channels] / counts.clamp_min(1), counts


def devoxelize(grid: Float[Tensor, "B R R R C"], coords: Float[Tensor, "B M 3"]) -> Float[Tensor, "B M C"]:
    """Read a grid at points by trilinear interpolation; differentiable with respect to both."""
    resolution = grid.shape[1]
    low = coords.detach().floor().clamp(0, max(resolution - 2, 0))
    fraction = (coords - low).flatten(0, 1)
    rows = grid.flatten(0, 3)
    values = torch.zeros((), dtype=grid.dtype, device=grid.device)
    for corner in itertools.product((0, 1), repeat=3):
        offset = torch.tensor(corner, device=coords.device)
        index = flat_index((low.long() + offset).clamp(max=resolution - 1), resolution)
        weight = torch.where(offset.bool(), fraction, 1 - fraction).prod(dim=-1, keepdim=True)
        values = values + weight.type_as(rows) * take_rows(rows, index)
    return values.view(*coords.shape[:2], -1)


def flat_index(voxel: Tensor, resolution: int) -> Tensor:
    """Row of each point's voxel in a batch of grids laid end to end: ((b R + x) R + y) R + z, flat (B M,)."""
    batch = torch.arange(len(voxel), device=voxel.device)[:, None]
    x, y, z = voxel.unbind(-1)
    return (((batch * resolution + x) * resolution + y) * resolution + z).flatten()


def add_rows(rows: Float[Tensor, "n C"], index: Tensor, size: int) -> Float[Tensor, "size C"]:
    """Sum rows that share an index. On CUDA `index_put_` sorts first, so that the order of adding is fixed."""
    out = rows.new_zeros(size, rows.shape[1])
    if rows.is_cuda:
        return out.index_put((index,), rows, accumulate=True)
    return out.index_add(0, index, rows)


def take_rows(rows: Float[Tensor, "n C"], index: Tensor) -> Float[Tensor, "m C"]:
    """Gather rows. On CUDA through `embedding`, whose gradient adds in a fixed order; a CPU adds in order anyway."""
    return F.embedding(index, rows) if rows.is_cuda else rows.index_select(0, index)
