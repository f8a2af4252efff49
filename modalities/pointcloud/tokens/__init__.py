"""How a cloud becomes tokens: voxels cut into patches, read back at the points."""

from modalities.pointcloud.tokens.voxel_tokens import PointVoxelTokens, VoxelTokens

__all__ = [
    "PointVoxelTokens",
    "VoxelTokens",
]
