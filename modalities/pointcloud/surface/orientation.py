"""Outward normals of a cloud, even where it is thinner than the point spacing."""

import numpy as np
from jaxtyping import Float64
from scipy.spatial import cKDTree

from modalities.pointcloud.surface.alpha_complex import AlphaComplexes, Seen

RADII = (1.5, 2.0, 2.7)
"""Ball radii, in spacings: the first enters most gaps, the others do not fall through holes."""
ONE_SIDED = 0.35
"""Length of the mean normal around a point from which it counts as one-sided."""
NEIGHBOURS = 14
SAME_SIDE = 0.3
"""Cosine between normals of neighbours that count as the same side."""
FLAT = 0.3
"""Largest ratio of the two smaller variances of a patch for which a fitted plane beats the triangles' normal."""


def outward_normals(complexes: AlphaComplexes) -> Float64[np.ndarray, "N 3"]:
    """Unit outward normals; 0 for points that no ball reaches, or reaches from both sides, as in a sheet.

    A point gets the mean normal of the triangles around it that are touched by the smallest ball for which it is
    one-sided. (The minimum spanning tree of Hoppe et al., 1992, would propagate signs between neighbours, and so from
    the upper to the lower side of a thin plate.) Then a plane fitted to the neighbours on the same side refines it.
    """
    points = complexes.points
    normals, waiting = np.zeros_like(points), np.ones(len(points), bool)
    for radius in RADII:
        mean, seen = mean_normals(complexes.seen(radius), len(points))
        length = np.linalg.norm(mean, axis=1)
        found = waiting & (length > ONE_SIDED)
        normals[found] = mean[found] / length[found, None]
        if radius == RADII[0]:
            waiting &= seen  # interior points have no side
        waiting &= ~found
    return _fitted(points, normals)


def mean_normals(seen: Seen, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean normal of each point's triangles, and which points are touched at all."""
    corners = seen.triangles.ravel()
    number = np.bincount(corners, minlength=count)
    each = np.repeat(seen.outward, 3, axis=0)
    total = np.stack([np.bincount(corners, each[:, i], count) for i in range(3)], axis=1)
    met = number > 0
    met[seen.edges.ravel()] = True
    return total / np.maximum(number, 1)[:, None], met


def _fitted(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Normals of planes fitted to the neighbours on the same side, where these are flat."""
    nearest = cKDTree(points).query(points, min(NEIGHBOURS, len(points)))[1]
    known = np.asarray(normals.any(axis=1))
    # Points without a side take that of their neighbours if these agree.
    mean, count = normals[nearest].sum(axis=1), known[nearest].sum(axis=1)
    length = np.linalg.norm(mean, axis=1)
    joined = ~known & (count >= 4) & (length > 0.6 * count)
    normals = normals.copy()
    normals[joined] = mean[joined] / length[joined, None]
    cosine = np.einsum("nd,nkd->nk", normals, normals[nearest])
    weight = np.where(cosine > SAME_SIDE, cosine, 0.0) ** 2
    around = points[nearest]
    around = around - np.einsum("nk,nkd->nd", weight, around)[:, None] / (
        weight.sum(1)[:, None, None] + 1e-300
    )
    values, axes = np.linalg.eigh(np.einsum("nk,nki,nkj->nij", weight, around, around))
    axis = axes[:, :, 0]
    along = np.einsum("nd,nd->n", axis, normals)
    flat = (np.abs(along) > 0.6) & ((weight > 0).sum(1) >= 6) & (values[:, 0] < FLAT * values[:, 1])
    normals[flat] = axis[flat] * np.sign(along[flat])[:, None]
    return normals


def without_noise(
    points: Float64[np.ndarray, "N 3"], normals: Float64[np.ndarray, "N 3"], steps: int
) -> tuple[Float64[np.ndarray, "N 3"], float]:
    """Project points along their normals onto planes through neighbours on the same side; also returns their distances.

    Clean surfaces hardly change: points on the other side of a thin plate, or beyond an edge, do not count.
    """
    nearest = cKDTree(points).query(points, min(NEIGHBOURS, len(points)))[1]
    known, noise = np.asarray(normals.any(axis=1)), 0.0
    weight = np.einsum("nd,nkd->nk", normals, normals[nearest]).clip(0) ** 4
    weight[~known] = 1.0  # for a point without a side, all neighbours count
    weight /= weight.sum(axis=1, keepdims=True) + 1e-300
    around = points[nearest] - points[nearest].mean(axis=1, keepdims=True)
    across = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))[1][:, :, 0]
    along = np.where(known[:, None], normals, across)
    for step in range(steps):
        off = np.einsum("nk,nkd,nd->n", weight, points[nearest] - points[:, None], along)
        if step == 0 and known.any():
            noise = float(np.median(np.abs(off[known])))
        points = points + off[:, None] * along
    return points, noise
