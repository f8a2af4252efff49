"""Surface reconstruction of clouds: normals, screened Poisson, marching cubes, files, quality measures."""

from modalities.pointcloud.surface.measure import measure
from modalities.pointcloud.surface.mesh import Mesh
from modalities.pointcloud.surface.reconstruct import reconstruct

__all__ = ["Mesh", "measure", "reconstruct"]
