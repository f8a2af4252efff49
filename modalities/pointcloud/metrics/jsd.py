"""Jensen-Shannon divergence of the spatial distributions of points of two sets."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from scipy.spatial import cKDTree
from scipy.spatial.distance import jensenshannon

from modalities.pointcloud.metrics.distance import Clouds


def jsd(sample: Clouds, ref: Clouds) -> float:
    """Jensen-Shannon divergence of the spatial distributions of points of two sets.

    Points of all clouds of a set are counted in the nearest cell of a 28³ grid over [-.5, .5]³, of which
    the cells with centres inside the sphere of radius .5 are kept (points outside count at its border);
    JSD = H((p + q)/2) - (H(p) + H(q))/2 in bits, so in [0, 1] (Achlioptas et al., arXiv 1707.02392).
    It ignores which points belong to one shape.
    """
    return divergence(*([cells_of([cloud])[0] for cloud in clouds] for clouds in (sample, ref)))


def cells_of(clouds: Clouds) -> Int[np.ndarray, "S N"]:
    """Grid cell of each point of clouds of equal size, as `jsd` counts them."""
    axis = np.linspace(-0.5, 0.5, 28)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    tree = cKDTree(grid[np.linalg.norm(grid, axis=1) <= 0.5])
    return np.stack([tree.query(np.asarray(cloud, dtype=np.float64))[1] for cloud in clouds])


def divergence(a: Sequence[np.ndarray] | np.ndarray, b: Sequence[np.ndarray] | np.ndarray) -> float:
    """`jsd` of sets given as grid cells."""
    counts = [np.bincount(np.concatenate(list(cells)), minlength=28**3) for cells in (a, b)]
    return float(jensenshannon(*counts, base=2) ** 2)
