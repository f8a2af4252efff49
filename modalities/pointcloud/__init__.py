"""Point clouds: voxels as tokens (DiT-3D, arXiv 2307.01831), Chamfer and EMD, files that Open3D opens."""

from typing import TYPE_CHECKING

from ditmoe.lazy import lazily

if TYPE_CHECKING:
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
__getattr__ = lazily(
    __name__,
    {
        "modalities.pointcloud.adapter": ["PointCloud"],
        "modalities.pointcloud.data.dataset": ["Clouds"],
        "modalities.pointcloud.metrics.completion": ["evaluate_completions"],
        "modalities.pointcloud.metrics.evaluation": ["evaluate_sets"],
        "modalities.pointcloud.tokens.point_voxel_tokens": ["PointVoxelTokens"],
        "modalities.pointcloud.tokens.voxel_tokens": ["VoxelTokens"],
    },
)
