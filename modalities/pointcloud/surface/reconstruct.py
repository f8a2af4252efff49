"""Reconstructs a closed surface from a cloud: outward normals, screened Poisson, thin parts, marching cubes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from scipy import fft, ndimage, sparse
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import QhullError, cKDTree

from ditmoe.outside import check_memory, check_number
from modalities.pointcloud.strays import far
from modalities.pointcloud.surface.alpha_complex import AlphaComplexes, Seen
from modalities.pointcloud.surface.marching_cubes import marching_cubes
from modalities.pointcloud.surface.mesh import Mesh
from modalities.pointcloud.surface.orientation import RADII, outward_normals, without_noise
from modalities.pointcloud.surface.poisson import poisson

FEWEST = 20
"""Least points for a surface."""
PER_CELL = 2
"""Most points, per cell of one face of the grid: on a sphere, one for about 1.6 cells of its surface."""
MOST_READ = 2**20
"""Most points of a cloud that are searched for distinct ones."""
MARGIN = 10
"""Cells around a cloud, since the Fourier solution is periodic."""
LARGEST = 1024
"""Most cells along the longest edge, for which a float32 grid takes 4 GiB."""
BYTES = 80
"""Peak memory per cell: fields of the solver, their spectra, distances."""
WIDTH = 0.25
"""Sigma of the Poisson step, in point spacings."""
HALF_THICKNESS = 0.9
"""Half thickness, in cells, of parts that Poisson has lost: from 0.87, half a cell's diagonal, there are no gaps."""
FEWEST_ON, SHARE_ON = 4, 0.002
"""Least points, and least fraction of them, that a component must have."""
REACH = 3.0
"""Largest gap, in spacings, between parts of one shape that is bridged along the minimum spanning tree."""


@dataclass(frozen=True)
class Options:
    """Options of surface reconstruction.

    Attributes:
        resolution: cells of the grid along the longest edge of a cloud.
        smoothing: denoising steps of the points: 0 for exact points, more for generated ones.
    """

    resolution: int = 128
    smoothing: int = 1

    def __post_init__(self) -> None:
        check_number("modality.surface.resolution", self.resolution, 16, LARGEST, whole=True)
        check_number("modality.surface.smoothing", self.smoothing, 0, 100, whole=True)


def reconstruct(
    points: Float[np.ndarray, "N 3"],
    normals: Float[np.ndarray, "N 3"] | None = None,
    rgb: Float[np.ndarray, "N 3"] | None = None,
    resolution: int = 128,
    smoothing: int = 1,
) -> Mesh:
    """The closed outer surface of a cloud.

    Args:
        points: at least 20 distinct ones, not coplanar.
        normals: outward normals if known; else they are estimated (`orientation`).
        rgb: colours in [0, 1], interpolated to the vertices.
        resolution: cells along the longest edge of the cloud: parts become at least 1.8 cells thick.
        smoothing: how often points are projected onto the plane of their neighbours: the last time of those on the same
            side, before that of all, which merges the two sides of a thin plate.
    Raises:
        ValueError: with one line, for points without a surface or a grid that does not fit into memory.
    """
    kept = kept_points(points, PER_CELL * resolution**2)
    points = points[kept].astype(np.float64)
    cells = Grid.around(points, resolution)
    inner = (points - cells.origin) / cells.step
    if smoothing > 1:  # noise of the order of the spacing hides sides, so it is removed first
        inner = without_noise(inner, np.zeros_like(inner), smoothing - 1)[0]
    try:
        complexes = AlphaComplexes(inner)
    except QhullError:
        raise ValueError("the points of a surface must not all lie in a plane") from None
    known = outward_normals(complexes) if normals is None else _unit(normals[kept])
    field = np.full(cells.shape, -1.0, np.float32)
    quiet, noise = without_noise(inner, known, min(smoothing, 1))
    if known.any():
        width = max(WIDTH * complexes.spacing, noise, 0.7)
        field = poisson(quiet, known, complexes.local**2, cells.shape, width)
    field = ndimage.gaussian_filter(_with_thin_parts(field, complexes, quiet), 0.3)
    for axis in range(3):
        np.moveaxis(field, axis, 0)[[0, -1]] = -1.0
    vertices, faces = marching_cubes(_cleaned(field, inner))
    mesh = Mesh.of(_relaxed(vertices, faces) * cells.step + cells.origin, faces)
    return mesh if rgb is None else mesh.colored(points, rgb[kept])


def kept_points(points: Float[np.ndarray, "N 3"], most: int) -> np.ndarray:
    """Indices of points used for the surface: finite and distinct ones, without outliers.

    Args:
        most: larger clouds are subsampled to so many, reproducibly.

    Raises:
        ValueError: if there are too few, or they lie on a line or in a plane.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"a cloud must have the shape (N, 3), got {points.shape}")
    finite = _drawn(np.flatnonzero(np.isfinite(points).all(axis=1)), MOST_READ)
    places = _drawn(np.sort(finite[np.unique(points[finite], axis=0, return_index=True)[1]]), most)
    if len(places) < FEWEST:
        raise ValueError(f"a surface needs at least {FEWEST} points in different places, got {len(places)}")
    found = points[places].astype(np.float64)
    found = found - found.mean(axis=0)
    found /= np.abs(found).max()
    kept = ~far(found)
    spread = np.linalg.svd(found[kept] - found[kept].mean(axis=0), compute_uv=False)
    if kept.sum() < FEWEST or spread[2] < 1e-6 * spread[0]:
        flat = "a line" if spread[1] < 1e-6 * spread[0] else "a plane"
        raise ValueError(f"the points of a surface must not all lie in {flat}")
    return places[kept]


def _drawn(indices: np.ndarray, most: int) -> np.ndarray:
    """Subsample indices to at most so many, keeping their order."""
    if len(indices) <= most:
        return indices
    return np.sort(np.random.default_rng(0).choice(indices, most, replace=False))


@dataclass(frozen=True)
class Grid:
    """A regular grid around a cloud: node (i, j, k) lies at origin + step * (i, j, k)."""

    origin: Float64[np.ndarray, " 3"]
    step: float
    shape: tuple[int, int, int]

    @classmethod
    def around(cls, points: Float64[np.ndarray, "N 3"], resolution: int) -> "Grid":
        """Make a grid with a margin, in sizes with a fast FFT.

        Raises:
            ValueError: if it would not fit into memory.
        """
        low, high = points.min(axis=0), points.max(axis=0)
        step = float((high - low).max()) / resolution
        nodes = np.ceil((high - low) / step).astype(np.int64) + 1 + 2 * MARGIN
        shape = tuple(fft.next_fast_len(int(n), real=True) for n in nodes)
        check_memory(float(np.prod(shape)) * BYTES, "surfaces", "take a smaller modality.surface.resolution")
        middle = (np.array(shape) - 1) / 2 * step
        return cls((low + high) / 2 - middle, step, shape)  # type: ignore[arg-type]


def _with_thin_parts(field: np.ndarray, complexes: AlphaComplexes, points: np.ndarray) -> np.ndarray:
    """Add thin parts that Poisson has lost, with a minimal thickness, so that everything a ball touches is covered.

    These are sheets, rods only a point or two across, and gaps along the minimum spanning tree.
    """
    field = np.where(_within(complexes, points, field.shape), field, np.minimum(field, np.float32(-0.5)))
    there = _sampled(points, complexes.seen(RADII[0]), _tree(complexes))
    covered = ndimage.binary_dilation(field > 0)
    there = there[~covered[tuple(np.rint(there).astype(np.int64).T)]]
    if not len(there):
        return field
    near = np.zeros(field.shape, bool)
    near[tuple(np.rint(there).astype(np.int64).T)] = True
    near = ndimage.binary_dilation(near, iterations=3)
    distance = np.full(field.shape, 4.0, np.float32)
    distance[near] = cKDTree(there).query(np.argwhere(near))[0]
    return np.maximum(field, ndimage.gaussian_filter(HALF_THICKNESS - distance, 0.5))


def _cleaned(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Remove invisible cavities from a field, and components with hardly any points."""
    pieces = ndimage.label(field > 0)[0]
    at = tuple(np.rint(points).astype(np.int64).T)
    high = ndimage.maximum_filter(pieces, 3)[at]
    low = ndimage.minimum_filter(np.where(pieces > 0, pieces, pieces.max() + 1), 3)[at]
    number = np.bincount(high[high == low], minlength=1)  # a point between two components belongs to neither
    kept = np.zeros(pieces.max() + 1, bool)
    kept[: len(number)] = number >= min(max(FEWEST_ON, SHARE_ON * len(points)), number[1:].max(initial=0))
    kept[0] = True
    field = np.where(kept[pieces], field, np.minimum(field, -field))
    # Connectivity as in marching cubes: outside nodes also across the diagonal of a face.
    around = ndimage.label(field <= 0, ndimage.generate_binary_structure(3, 2))[0]
    return np.where((around > 0) & (around != around[0, 0, 0]), np.float32(1.0), field)


def _within(complexes: AlphaComplexes, points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Nodes where a surface is allowed: those that the largest ball does not reach, with a margin.

    Elsewhere it would be a spurious bubble caused by a few normals of a sheet.
    """
    wall = np.zeros(shape, bool)
    at = _sampled(points, complexes.seen(RADII[-1]))
    wall[tuple(np.rint(at).astype(np.int64).T)] = True
    free = ndimage.label(~wall)[0]
    return ndimage.binary_dilation(free != free[0, 0, 0], iterations=2)


def _sampled(
    points: np.ndarray, seen: Seen, tree: np.ndarray | None = None, step: float = 0.5
) -> Float64[np.ndarray, "M 3"]:
    """Points, in cells, sampled densely on the triangles and edges that a ball touches, and on a tree."""
    parts = [points[np.unique(seen.triangles)], points[seen.edges.ravel()]]
    corners = points[seen.triangles]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1, initial=0)
    pieces = np.ceil(longest / step).astype(np.int64).clip(1)
    for count in np.unique(pieces):
        i, j = np.nonzero(np.add.outer(np.arange(count + 1), np.arange(count + 1)) <= count)
        weights = np.stack([i, j, count - i - j], axis=1) / count
        parts.append(np.einsum("wk,tkd->twd", weights, corners[pieces == count]).reshape(-1, 3))
    for a, b in points[seen.edges if tree is None else np.concatenate([seen.edges, tree])]:
        share = np.linspace(0, 1, int(np.linalg.norm(b - a) / step) + 2)[:, None]
        parts.append(a + share * (b - a))
    return np.concatenate(parts)


def _tree(complexes: AlphaComplexes) -> np.ndarray:
    """Edges of the minimum spanning tree that are not too long, (E, 2); it lies within Delaunay's tetrahedra."""
    corners, count = complexes.triangles, len(complexes.points)
    edges = np.unique(np.concatenate([corners[:, [0, 1]], corners[:, [0, 2]], corners[:, [1, 2]]]), axis=0)
    length = np.linalg.norm(complexes.points[edges[:, 0]] - complexes.points[edges[:, 1]], axis=1)
    graph = sparse.coo_matrix((length, tuple(edges.T)), shape=(count, count))
    tree = minimum_spanning_tree(graph.tocsr()).tocoo()
    found = np.stack([tree.row, tree.col], axis=1).astype(np.int64)
    return found[tree.data < REACH * complexes.local[found].mean(axis=1)]


def _relaxed(vertices: np.ndarray, faces: np.ndarray, share: float = 0.5) -> np.ndarray:
    """Smooth grid artefacts of the vertices by Taubin smoothing (1995)."""
    start, end = faces.ravel(), faces[:, [1, 2, 0]].ravel()
    number = np.bincount(start, minlength=len(vertices))[:, None]
    for by in (share, -1.06 * share):
        mean = np.stack([np.bincount(start, vertices[end, i], len(vertices)) for i in range(3)], 1) / number
        vertices = vertices + by * (mean - vertices)
    return vertices


def _unit(normals: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(length) & (length > 0), normals / np.maximum(length, 1e-300), 0.0)
