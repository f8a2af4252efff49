"""Tokens of point clouds: voxel grids cut into patches, and read back at the points."""
