"""Tokens of point clouds: voxel grids cut into patches, and read back at the points."""

from modalities.pointcloud.tokens.point_voxel_tokens import PointVoxelTokens
from modalities.pointcloud.tokens.voxel_tokens import VoxelTokens

__all__ = [
    "PointVoxelTokens",
    "VoxelTokens",
]
