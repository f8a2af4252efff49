"""How a cloud becomes tokens: voxels cut into patches, read back at the points."""

from modalities.pointcloud.tokens.point_voxel_tokens import PointVoxelTokens
from modalities.pointcloud.tokens.voxel_tokens import VoxelTokens

__all__ = [
    "PointVoxelTokens",
    "VoxelTokens",
]
