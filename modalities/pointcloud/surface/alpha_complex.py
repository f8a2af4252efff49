"""Alpha complexes of a cloud (Edelsbrunner & Mücke, 1994), with a radius that follows the spacing of the points.

A ball that rolls around a cloud from outside stops at triangles whose circumscribed circle is too small for it. They
form the visible surface, and it is known from which side the ball came: the best evidence for the normals of a plate
thinner than the point spacing, whose neighbourhoods contain both sides.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import Delaunay, cKDTree

NEIGHBOURS = 8
"""Neighbours from which the local spacing is estimated: the number of points in a disk."""
SHARES = (0.7, 1.6)
"""Limits of the local spacing, relative to the median."""
_SIDES = ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2))
"""The face of a tetrahedron opposite to each corner."""


@dataclass(frozen=True)
class Seen:
    """The part of a complex that a ball touches from outside.

    Attributes:
        triangles: (T, 3) indices of their corners.
        outward: (T, 3) unit normals to the outside; 0 for triangles with the outside on both sides.
        edges: (E, 2) edges from points without triangles to nearby points.
    """

    triangles: Int64[np.ndarray, "T 3"]
    outward: Float64[np.ndarray, "T 3"]
    edges: Int64[np.ndarray, "E 2"]


class AlphaComplexes:
    """The alpha complexes, for all radii, of distinct points that are not coplanar.

    Args:
        points: (N, 3).
    """

    def __init__(self, points: Float64[np.ndarray, "N 3"]) -> None:
        self.points = points
        self.local, self.spacing = spacing_of(points)
        self.simplices = Delaunay(points).simplices.astype(np.int64)
        sides = np.sort(self.simplices[:, _SIDES].reshape(-1, 3), axis=1)
        self.triangles, of, count = np.unique(sides, axis=0, return_inverse=True, return_counts=True)
        self.of, self.hull = of.reshape(-1, 4), count == 1
        a, b, c = np.moveaxis(points[self.triangles], 1, 0)
        lengths = np.stack([np.linalg.norm(p - q, axis=1) for p, q in ((a, b), (b, c), (c, a))])
        self.cross = np.cross(b - a, c - a)
        doubled = np.maximum(np.linalg.norm(self.cross, axis=1, keepdims=True), 1e-300)
        self.cross /= doubled
        # A sliver whose corners are close together also stops a ball, whatever its circumscribed circle.
        circle = lengths.prod(axis=0) / (2 * doubled[:, 0])
        self.size = np.minimum(circle, lengths.max(axis=0)) / self.local[self.triangles].mean(axis=1)

    def seen(self, radius: float) -> Seen:
        """The part that a ball from outside the hull touches.

        Args:
            radius: in spacings. Random points on a surface let a ball of 1.5 through in places; a larger one does not
                enter the gaps between a shape's parts.
        """
        stops = self.size < radius
        outside = self._outside(stops)
        sides = np.bincount(self.of.ravel(), np.repeat(outside, 4), len(self.triangles)) + self.hull
        kept = stops & (sides > 0)
        # The fourth corner of a solid tetrahedron behind a triangle determines its outer side.
        behind = np.full(len(self.triangles), -1)
        behind[self.of[~outside]] = self.simplices[~outside]
        behind = behind[kept]
        triangles, normals = self.triangles[kept], self.cross[kept]
        away = self.points[triangles[:, 0]] - self.points[behind]
        sign = np.sign((normals * away).sum(1)) * ((behind >= 0) & (sides[kept] < 2))
        return Seen(triangles, normals * sign[:, None], self._wires(triangles, radius))

    def _outside(self, stops: Bool[np.ndarray, " F"]) -> Bool[np.ndarray, " S"]:
        """The tetrahedra that a ball can reach from outside the hull."""
        count = len(self.simplices)
        cell = np.argsort(self.of.ravel(), kind="stable") // 4
        triangle = np.sort(self.of.ravel(), kind="stable")
        pairs = np.flatnonzero(triangle[1:] == triangle[:-1])
        rims = np.flatnonzero(self.hull[triangle])
        passes = ~stops[triangle]
        pairs, rims = pairs[passes[pairs]], rims[passes[rims]]
        one = np.concatenate([cell[pairs], cell[rims]])
        other = np.concatenate([cell[pairs + 1], np.full(len(rims), count)])
        ways = coo_matrix((np.ones(len(one)), (one, other)), shape=(count + 1, count + 1))
        label = connected_components(ways, directed=False)[1]
        return label[:-1] == label[-1]

    def _wires(self, triangles: Int64[np.ndarray, "T 3"], radius: float) -> Int64[np.ndarray, "E 2"]:
        """Edges of points without triangles, visible from all sides, and short enough to keep the ball out."""
        lonely = np.ones(len(self.points), bool)
        lonely[triangles] = False
        corners = self.triangles[lonely[self.triangles].any(axis=1)]
        edges = np.unique(
            np.concatenate([corners[:, [0, 1]], corners[:, [0, 2]], corners[:, [1, 2]]]), axis=0
        )
        edges = edges[lonely[edges].any(axis=1)]
        length = np.linalg.norm(self.points[edges[:, 0]] - self.points[edges[:, 1]], axis=1)
        return edges[length < 1.5 * radius * self.local[edges].mean(axis=1)]


def spacing_of(points: Float64[np.ndarray, "N 3"]) -> tuple[Float64[np.ndarray, " N"], float]:
    """1 / sqrt(points per area) around each point, and its median."""
    distance, nearest = cKDTree(points).query(points, min(2 * NEIGHBOURS, len(points)))
    local = distance[:, min(NEIGHBOURS, len(points) - 1)] * np.sqrt(np.pi / NEIGHBOURS)
    middle = float(np.median(local))
    return np.median(local[nearest], axis=1).clip(SHARES[0] * middle, SHARES[1] * middle), middle
