"""Marching cubes (Lorensen & Cline, 1987) with a surface that is always closed: each edge has two triangles.

The table of the 256 cases is generated: on each face of a cell, inside corners that are not adjacent are cut off
separately. So cells that share a face agree on it (unlike in the table of 1987), and no diagonal of a polygon lies
within a face, where the neighbour's could lie too.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64

CORNERS = np.array([(i & 1, i >> 1 & 1, i >> 2 & 1) for i in range(8)])
EDGES = [(a, b) for a in range(8) for b in range(a, 8) if (a ^ b) in (1, 2, 4)]
"""The 12 edges of a cell, lower corner first."""
FACES = ((0, 4, 6, 2), (1, 3, 7, 5), (0, 1, 5, 4), (2, 6, 7, 3), (0, 2, 3, 1), (4, 5, 7, 6))
"""Corners of the faces, counter-clockwise as seen from outside the cell."""
CLEAR = 0.02
"""Least distance of a vertex from the ends of its edge, as a fraction of it, so that no triangle has zero area."""
Polygon = tuple[int, ...]


def marching_cubes(
    field: Float[np.ndarray, "X Y Z"], level: float = 0.0
) -> tuple[Float64[np.ndarray, "V 3"], Int64[np.ndarray, "F 3"]]:
    """The level set of a field: vertices in units of cells, and triangles counter-clockwise as seen from below it.

    The surface is a closed manifold that encloses the region above the level, without unused vertices.

    Raises:
        ValueError: if the border of the field is not all below, so that the surface would be open, or nothing is above.
    """
    inside = field > level
    if any(side.any() for axis in range(3) for side in np.take(inside, [0, -1], axis=axis)):
        raise ValueError("a field must be below its level all along its border")
    if not inside.any():
        raise ValueError("a field must rise above its level somewhere")
    shape = np.array(field.shape)
    case = np.zeros(shape - 1, np.uint8)
    for i, (x, y, z) in enumerate(CORNERS):
        high = shape - 1 + (x, y, z)
        case |= inside[x : high[0], y : high[1], z : high[2]].astype(np.uint8) << np.uint8(i)
    cells = np.argwhere((case > 0) & (case < 255))
    table = _table()[case[tuple(cells.T)]]
    row, column = np.nonzero(table[:, :, 0] >= 0)
    ends = np.array(EDGES)[table[row, column]]  # (F, 3, 2)
    low = np.ravel_multi_index(
        tuple(np.moveaxis(cells[row, None] + CORNERS[ends[..., 0]], -1, 0)), tuple(shape)
    )
    axis = np.array([0, 0, 1, 0, 2])[ends[..., 0] ^ ends[..., 1]]
    edges, faces = np.unique(low * 3 + axis, return_inverse=True)
    start = np.stack(np.unravel_index(edges // 3, tuple(shape)), axis=1)
    step = np.eye(3, dtype=np.int64)[edges % 3]
    below, above = (field[tuple(at.T)].astype(np.float64) for at in (start, start + step))
    share = np.clip((level - below) / (above - below), CLEAR, 1 - CLEAR)
    return start + step * share[:, None], faces.reshape(-1, 3).astype(np.int64)


@functools.cache
def _table() -> np.ndarray:
    """Triangles of each case, (256, most, 3) edge indices, padded with -1."""
    rows = [[t for loop in _loops(case) for t in _triangles(loop) or ()] for case in range(256)]
    table = np.full((256, max(map(len, rows)), 3), -1)
    for case, row in enumerate(rows):
        table[case, : len(row)] = np.array(row).reshape(-1, 3)
    return table


def _loops(case: int) -> list[Polygon]:
    """The polygons of a case: on each face a segment around each run of inside corners, joined."""
    number = {pair: i for i, pair in enumerate(EDGES)}
    follows = {}
    for face in FACES:
        turn = [case >> corner & 1 for corner in face]
        edge = [number[min(a, b), max(a, b)] for a, b in zip(face, face[1:] + face[:1], strict=True)]
        for i in range(4):
            if turn[i] and not turn[(i + 1) % 4]:  # the run ends here
                begin = next(j for j in range(i - 1, i - 5, -1) if not turn[j % 4])
                follows[edge[begin % 4]] = edge[i]
    loops = []
    while follows:
        loop = [next(iter(follows))]
        while (after := follows.pop(loop[-1])) != loop[0]:
            loop.append(after)
        loops.append(tuple(loop))
    return loops


def _triangles(loop: Sequence[int]) -> list[Polygon] | None:
    """Triangulate a polygon without diagonals in a face; None if impossible."""
    if len(loop) < 3:
        return []
    first, last = loop[0], loop[-1]
    for k in range(1, len(loop) - 1):
        if (k > 1 and _in_face(first, loop[k])) or (k < len(loop) - 2 and _in_face(loop[k], last)):
            continue
        left, right = _triangles(loop[: k + 1]), _triangles(loop[k:])
        if left is not None and right is not None:
            return [*left, (first, loop[k], last), *right]
    return None


def _in_face(one: int, other: int) -> bool:
    return any({*EDGES[one], *EDGES[other]} <= set(face) for face in FACES)
