"""Point clouds: voxels as tokens (DiT-3D, arXiv 2307.01831), Chamfer and EMD, files that Open3D opens."""

from modalities.pointcloud.adapter import PointCloud
from modalities.pointcloud.data.dataset import Clouds
from modalities.pointcloud.metrics.completion import evaluate_completions
from modalities.pointcloud.metrics.evaluation import evaluate_sets
from modalities.pointcloud.tokens.point_voxel_tokens import PointVoxelTokens
from modalities.pointcloud.tokens.voxel_tokens import VoxelTokens

__all__ = [
    "Clouds",
    "PointCloud",
    "PointVoxelTokens",
    "VoxelTokens",
    "evaluate_completions",
    "evaluate_sets",
]
