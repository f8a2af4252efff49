"""Samples points from triangles."""

import numpy as np
from jaxtyping import Float, Float64, Int

from modalities.pointcloud.data.channels import Channels, Geometry, directions


def sample_surface(
    vertices: Float[np.ndarray, "V C"],
    faces: Int[np.ndarray, "F 3"],
    num_points: int,
    rng: np.random.Generator,
    normals: bool = False,
) -> Float64[np.ndarray, "N D"]:
    """Sample points uniformly by area from triangles; ValueError if they have no area.

    Args:
        vertices: x, y, z and further columns to interpolate.
        normals: append the normals of the triangles as three more columns.
    """
    if not len(faces):
        raise ValueError("a mesh must have faces, got none")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"faces must name {len(vertices)} vertices, got {faces.min()}..{faces.max()}")
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    with np.errstate(all="ignore"):
        across = np.cross((b - a)[:, :3], (c - a)[:, :3])
        ends = np.linalg.norm(across, axis=1).cumsum()
    if not np.isfinite(ends[-1]):
        raise ValueError("the vertices of a mesh must be finite, got NaN, infinity or an overflow")
    if ends[-1] <= 0:
        raise ValueError(f"a mesh must have a surface, got {len(faces)} faces of zero area")
    pick = np.searchsorted(ends, rng.random(num_points) * ends[-1], side="right").clip(max=len(faces) - 1)
    u, v = rng.random((2, num_points, 1))
    u, v = np.where(u + v > 1, (1 - u, 1 - v), (u, v))
    points = a[pick] + u * (b - a)[pick] + v * (c - a)[pick]
    return np.concatenate([points, directions(across[pick])], axis=1) if normals else points


def sampled(
    geometry: Geometry, num_points: int, rng: np.random.Generator, channels: Channels
) -> Float64[np.ndarray, "N C"]:
    """Sample points of a mesh with their channels."""
    channels, faces = channels.found_in(geometry, mesh=True), np.asarray(geometry.faces)
    beside = channels.beside(geometry, mesh=True)
    if any(not np.isfinite(values[faces]).all() for values in beside):
        raise ValueError("the colours of a mesh must be finite, got NaN or infinity")
    vertices = np.concatenate([geometry.points, *beside], axis=1) if beside else geometry.points
    return sample_surface(vertices, faces, num_points, rng, "normals" in channels.names)
