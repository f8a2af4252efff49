"""A closed triangle mesh, and its exact properties."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles between vertices, counter-clockwise as seen from outside.

    Attributes:
        vertices: in the units of the cloud.
        normals: unit normals of the vertices, outward.
        colors: colours of the vertices, if the cloud has colours.
    """

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    normals: Float[np.ndarray, "V 3"]
    colors: UInt8[np.ndarray, "V 3"] | None = None

    @classmethod
    def of(cls, vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> "Mesh":
        """Make a mesh with smooth normals: the area-weighted mean over the triangles around a vertex."""
        a, b, c = np.moveaxis(vertices[faces], 1, 0)
        each = np.repeat(np.cross(b - a, c - a), 3, axis=0)
        total = np.stack([np.bincount(faces.ravel(), each[:, i], len(vertices)) for i in range(3)], axis=1)
        length = np.linalg.norm(total, axis=1, keepdims=True)
        return cls(vertices, faces, np.where(length > 0, total / np.maximum(length, 1e-300), [0.0, 1.0, 0.0]))

    def colored(self, points: Float[np.ndarray, "N 3"], rgb: Float[np.ndarray, "N 3"]) -> "Mesh":
        """Interpolate colours in [0, 1] from the three nearest points, weighted by proximity."""
        distance, nearest = cKDTree(points).query(self.vertices, min(3, len(points)))
        distance, nearest = distance.reshape(len(self.vertices), -1), nearest.reshape(len(self.vertices), -1)
        weight = 1 / (distance**2 + 1e-12 * np.square(np.ptp(points, axis=0)).sum())
        mean = np.einsum("vk,vkd->vd", weight, rgb[nearest]) / weight.sum(1, keepdims=True)
        return replace(self, colors=np.rint(255 * mean.clip(0, 1)).astype(np.uint8))

    @property
    def is_closed(self) -> bool:
        """Whether each edge has two triangles, with opposite directions along it."""
        start, end = self.faces.ravel(), self.faces[:, [1, 2, 0]].ravel()
        there, back = start * len(self.vertices) + end, end * len(self.vertices) + start
        once = len(np.unique(there)) == len(there)
        return once and bool((start != end).all()) and np.array_equal(np.sort(there), np.sort(back))

    @property
    def components(self) -> int:
        """Number of connected components."""
        start, end = self.faces.ravel(), self.faces[:, [1, 2, 0]].ravel()
        size = len(self.vertices)
        return int(
            connected_components(coo_matrix((np.ones(len(start)), (start, end)), (size, size)), False)[0]
        )

    @property
    def euler(self) -> int:
        """V - E + F: for a closed surface, 2 per component minus 2 per handle (and the same for cavities)."""
        return len(self.vertices) - len(self.faces) * 3 // 2 + len(self.faces)

    @property
    def volume(self) -> float:
        """Enclosed volume; positive if the triangles are counter-clockwise from outside."""
        corners = self.vertices - self.vertices.mean(axis=0)  # avoids cancellation far from the origin
        return float(np.linalg.det(corners[self.faces].astype(np.float64)).sum() / 6)
