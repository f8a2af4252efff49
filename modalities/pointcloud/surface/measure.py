"""Measures of how well a surface fits its cloud, or another surface."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from modalities.pointcloud.data.formats import sample_surface
from modalities.pointcloud.surface.mesh import Mesh

SAMPLES = 100_000
"""Points sampled to represent a surface."""


def measure(mesh: Mesh, points: Float[np.ndarray, "N 3"]) -> dict[str, Any]:
    """Properties of a mesh: exact counts, and its distances to the cloud in both directions.

    Distances are fractions of the diagonal of the cloud's bounding box, mean and 95 % quantile: from the points to the
    surface (large if parts were lost), and from the surface to the nearest point (large if parts were added; at least
    half the point spacing). The surface is represented by 100,000 points, and larger clouds are subsampled to as many.
    """
    size = float(np.linalg.norm(np.ptp(points, axis=0)))
    surface = sample_surface(mesh.vertices, mesh.faces, SAMPLES, np.random.default_rng(0))
    to_surface = cKDTree(surface).query(points[:: -(-len(points) // SAMPLES)])[0] / size
    to_cloud = cKDTree(points).query(surface[:: SAMPLES // 10_000])[0] / size
    return {
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "watertight": mesh.is_closed,
        "components": mesh.components,
        "euler": mesh.euler,
        "volume": mesh.volume,
        "size": [float(v) for v in np.ptp(mesh.vertices, axis=0)],
        "cloud_to_surface": _mean_and_most(to_surface),
        "surface_to_cloud": _mean_and_most(to_cloud),
    }


def _mean_and_most(distance: np.ndarray) -> dict[str, float]:
    return {"mean": float(distance.mean()), "95%": float(np.quantile(distance, 0.95))}
