"""Point clouds: voxels as tokens (DiT-3D, arXiv 2307.01831), Chamfer and EMD, files that Open3D opens."""

from modalities.pointcloud.adapter import PointCloud
from modalities.pointcloud.metric import evaluate_sets

__all__ = ["PointCloud", "evaluate_sets"]
