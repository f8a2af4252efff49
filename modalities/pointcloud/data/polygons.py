"""Triangulates the polygons of meshes, convex or not."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

MOST_TESTS = 10**6
"""Limit on ear tests, each costing as much as a hundred corners, before a mesh with concave polygons is refused."""
_FLAT = 1e-12


def triangulate(
    vertices: Float64[np.ndarray, "V 3"], sizes: Int64[np.ndarray, " P"], corners: Int64[np.ndarray, " C"]
) -> Int64[np.ndarray, "F 3"]:
    """Triangulate polygons: as a fan if convex, else by ear clipping.

    Args:
        sizes: corners of each polygon; those with fewer than three are left out.
        corners: the concatenated vertex indices of all polygons.

    Raises:
        ValueError: if a polygon names a missing vertex, or concave ones have too many corners.
    """
    if len(corners) and (corners.min() < 0 or corners.max() >= len(vertices)):
        wrong = corners.max() if corners.max() >= len(vertices) else corners.min()
        raise ValueError(f"faces must name one of {len(vertices)} vertices, got number {wrong} (from 0)")
    ends = np.cumsum(sizes)
    triangles = [np.empty((0, 3), np.int64)]
    left = MOST_TESTS
    for size in np.unique(sizes[sizes >= 3]):
        starts = (ends - sizes)[sizes == size]
        polygons = corners[starts[:, None] + np.arange(size)]
        if size == 3:
            triangles.append(polygons)
            continue
        convex, normals = _convex(vertices[polygons])
        inner = np.arange(1, size - 1)
        fan = np.stack([np.zeros_like(inner), inner, inner + 1], axis=1)
        triangles.append(polygons[convex][:, fan].reshape(-1, 3))
        for polygon, normal in zip(polygons[~convex], normals[~convex], strict=True):
            cut, left = _ears(_flattened(vertices[polygon], normal), left)
            triangles.append(polygon[np.array(cut)])
    return np.concatenate(triangles)


def _convex(points: Float64[np.ndarray, "P N 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Which polygons are convex or have no area; and the normal of each (Newell's method)."""
    with np.errstate(all="ignore"):
        points = points - points[:, :1]
        normals = np.cross(points, np.roll(points, -1, axis=1)).sum(axis=1)
        edges = np.roll(points, -1, axis=1) - points
        turns = np.einsum("pnk,pk->pn", np.cross(edges, np.roll(edges, -1, axis=1)), normals)
        square = np.einsum("pk,pk->p", normals, normals)
        # Non-finite points need no care here: such a surface is refused later.
        return ~(turns < -_FLAT * square[:, None]).any(axis=1), normals


def _flattened(points: Float64[np.ndarray, "N 3"], normal: Float64[np.ndarray, "3"]) -> np.ndarray:
    """Project a polygon along the largest component of its normal, counter-clockwise."""
    axis = int(np.abs(normal).argmax())
    flat = (points - points[0])[:, [(axis + 1) % 3, (axis + 2) % 3]]
    return flat if normal[axis] > 0 else flat * (1, -1)


def _ears(points: Float64[np.ndarray, "N 2"], left: int) -> tuple[list[Sequence[int]], int]:
    """Triangles of one counter-clockwise polygon, and the remaining budget of ear tests.

    A corner is an ear if it is convex and no reflex corner lies in its triangle; coincident corners, as at the bridge
    to a hole, do not count. If a self-intersecting polygon has no ear, the next convex corner is cut.
    """
    flat: list[tuple[float, float]] = list(map(tuple, points.tolist()))  # NumPy scalars are ten times slower
    around = list(range(len(points)))
    x, y = points.T.copy()  # of the remaining corners
    cut: list[Sequence[int]] = []
    at = since = 0
    while len(around) > 3:
        if (left := left - 1 - len(around) // 100) < 0:
            raise ValueError(
                f"concave polygons must be simple enough to be cut in seconds, got one "
                f"of {len(points)} corners"
            )
        at %= len(around)
        before, here, after = around[at - 1], around[at], around[(at + 1) % len(around)]
        triangle = flat[before], flat[here], flat[after]
        turn = _turn(*triangle)
        stuck = since >= len(around)
        if (turn > 0 or stuck) and (stuck or not _holds(x[: len(around)], y[: len(around)], triangle)):
            cut.append((before, here, after))
            _drop(at, around, x, y)
            at, since = at - 1, 0
        elif turn == 0 and flat[before] == flat[here]:
            _drop(at, around, x, y)
            since = 0
        else:
            at, since = at + 1, since + 1
    return [*cut, (around[0], around[1], around[2])], left


def _drop(at: int, around: list[int], *each: np.ndarray) -> None:
    """Remove a corner from a polygon; arrays keep their length."""
    del around[at]
    for numbers in each:
        numbers[at : len(around)] = numbers[at + 1 : len(around) + 1]


def _holds(x: np.ndarray, y: np.ndarray, triangle: tuple[tuple[float, float], ...]) -> bool:
    """Whether another corner of the polygon lies in a triangle or on its edges."""
    (ax, ay), (bx, by), (cx, cy) = triangle
    inside = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) >= 0
    inside &= ((cx - bx) * (y - by) - (cy - by) * (x - bx)) >= 0
    inside &= ((ax - cx) * (y - cy) - (ay - cy) * (x - cx)) >= 0
    x, y = x[inside], y[inside]
    same = (x == ax) & (y == ay) | (x == bx) & (y == by) | (x == cx) & (y == cy)
    return bool((~same).any())


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Twice the signed area of a triangle."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
