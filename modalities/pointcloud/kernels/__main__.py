"""`python -m modalities.pointcloud.kernels`: says which implementation the metrics use."""

from modalities.pointcloud import kernels

print(f"exact point-cloud distances: {kernels.described()}")
