"""Maps voxels to rows of a table: all voxels, those of some patches, or those with points.

A grid is 70 to 98 % empty (more at a finer resolution), so sums into voxels and reads from them operate on rows of a
table, whichever voxels these are.
"""

import itertools
from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditmoe.nn import Layout, cells, from_host

CORNERS = np.array(list(itertools.product((0, 1), repeat=3)))
"""Corners of a cube, with the last axis fastest."""


class Voxels(ABC):
    """Rows of a table for voxels of a batch of grids of `resolution`^3."""

    resolution: int
    size: int
    """Number of rows of the table."""

    @abstractmethod
    def find(self, voxel: Int[Tensor, "B M 3"]) -> Int[Tensor, "B M"]:
        """The row of each voxel."""

    def corners(self, low: Int[Tensor, "B M 3"]) -> Int[Tensor, "B M 8"]:
        """The rows of the eight voxels from `low` on, with the last axis fastest.

        `low` is never the last voxel of an axis, unless it has only one, which then counts as both.
        """
        step = from_host(CORNERS, low.device) * min(1, self.resolution - 1)
        return self.find((low[:, :, None] + step).flatten(1, 2)).unflatten(1, (-1, len(CORNERS)))


class AllVoxels(Voxels):
    """Every voxel, grid after grid, in row-major order."""

    def __init__(self, batch: int, resolution: int) -> None:
        self.batch, self.resolution, self.size = batch, resolution, batch * resolution**3

    def find(self, voxel: Int[Tensor, "B M 3"]) -> Int[Tensor, "B M"]:
        return numbered(voxel, self.resolution)

    def corners(self, low: Int[Tensor, "B M 3"]) -> Int[Tensor, "B M 8"]:
        distances = CORNERS @ [self.resolution**2, self.resolution, 1] * min(1, self.resolution - 1)
        return self.find(low)[..., None] + from_host(distances, low.device)


class PatchVoxels(Voxels):
    """The voxels of the patches that are tokens of a layout, patch by patch, row-major in each.

    This is the order of values within a token of `patches.patchify`. Only voxels of these patches are found.
    """

    def __init__(self, layout: Layout, patch: int) -> None:
        grid = layout.grids[0]
        self.layout, self.patch, self.resolution = layout, patch, grid[0] * patch
        self.size = len(layout.cells) * patch**3
        self.table = torch.full((len(layout.grids), *grid), -1, device=layout.device)
        self.table[(layout.sample, *layout.cells.unbind(-1))] = torch.arange(
            len(layout.cells), device=layout.device
        )

    def find(self, voxel: Int[Tensor, "B M 3"]) -> Int[Tensor, "B M"]:
        place, batch = voxel // self.patch, torch.arange(len(voxel), device=voxel.device)[:, None]
        x, y, z = (voxel - place * self.patch).unbind(-1)
        token = self.table[(batch, *place.unbind(-1))]
        return ((token * self.patch + x) * self.patch + y) * self.patch + z

    def centres(self) -> Int[Tensor, "size 3"]:
        """Grid coordinates of the voxel centres."""
        inner = cells([self.patch] * 3, self.layout.device)
        return (self.layout.cells[:, None] * self.patch + inner).flatten(0, 1)


class PointVoxels(Voxels):
    """The voxels that contain points, and one extra row for all others, which is never written to.

    A voxel with several points has the row of the first, so that the number of rows does not depend on data.
    """

    def __init__(self, coords: Float[Tensor, "B M 3"], resolution: int) -> None:
        self.resolution = resolution
        self.keys = numbered(coords.round().long(), resolution).flatten().sort().values
        self.size = len(self.keys) + 1

    def find(self, voxel: Int[Tensor, "B M 3"]) -> Int[Tensor, "B M"]:
        key = numbered(voxel, self.resolution)
        row = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[row] == key, row, len(self.keys))


def numbered(voxel: Int[Tensor, "B M 3"], resolution: int) -> Int[Tensor, "B M"]:
    """Flat indices of voxels of a batch of grids: ((b R + x) R + y) R + z."""
    batch = torch.arange(len(voxel), device=voxel.device)[:, None]
    x, y, z = voxel.unbind(-1)
    return ((batch * resolution + x) * resolution + y) * resolution + z


def touched(coords: Float[Tensor, "B M 3"], resolution: int, patch: int) -> Layout:
    """The patches that contain points or that points interpolate from: those of the eight voxels around each point."""
    low = coords.detach().floor().long().clamp(0, max(resolution - 2, 0))
    ends = low // patch, (low + 1).clamp(max=resolution - 1) // patch
    grid = [resolution // patch] * 3
    mask = torch.zeros(len(coords), *grid, dtype=torch.bool, device=coords.device)
    batch = torch.arange(len(coords), device=coords.device)[:, None]
    for corner in itertools.product((0, 1), repeat=3):
        mask[(batch, *(ends[end][..., axis] for axis, end in enumerate(corner)))] = True
    return Layout.partly(grid, mask.nonzero()[:, 1:], mask.flatten(1).sum(1).tolist())
