"""Parts of a cloud, as scans, cuts and thinned clouds have them: for training, tests of completion and `prepare`."""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import ConvexHull, QhullError

NUM_GIVEN = 512
"""Points beside a training sample. A part of fewer has each of them several times, which moments do not tell apart."""
SIZES = (64, 128, 256, 512)
"""Points that a part has: divisors of NUM_GIVEN."""
LACKING = 0.3
"""Share of the parts of coloured clouds that have no colours; scans often have none."""
PIXELS = 26
"""Of a depth buffer along the longest side of a cloud: about one for each point that is seen."""
FLIP = 10**2
"""Radius of the sphere of `seen_from` over the distance of the farthest point: a larger one hides less."""


def draw_part(points: Float[np.ndarray, "N C"], rng: np.random.Generator) -> Float[np.ndarray, "K C"]:
    """What training gives of a cloud: a scan from one side 55 %, all on one side of a plane 25 %, points all over 20 %.

    `NUM_GIVEN` points, of which `SIZES` are distinct; in 30 % of the parts with noise of up to 4 % of the deviation on
    their places.
    """
    cloud, points = points, points[:, :3]
    kind, noisy, level = rng.random(3)
    size, direction = int(rng.choice(SIZES)), rng.normal(size=3)
    if kind < 0.55:
        there = np.flatnonzero(one_view(points, direction))
    elif kind < 0.8:
        there = np.flatnonzero(one_side(points, direction, rng.uniform(0.2, 0.8)))
    else:
        there = np.arange(len(points))
    chosen = rng.permutation(there)[:size]
    if len(chosen) < size:
        chosen = np.concatenate([chosen, rng.choice(chosen, size - len(chosen))])
    part = points[chosen]
    if noisy < 0.3:
        part = part + rng.normal(size=part.shape) * (0.04 * level * points.std())
    part = np.concatenate([part.astype(cloud.dtype), cloud[chosen, 3:]], axis=1)
    return np.tile(part, (NUM_GIVEN // size, 1))


def draw_there(channels: int, rng: np.random.Generator) -> Float[np.ndarray, " c"]:
    """Which of the further columns a part has, 1 or 0: in `LACKING` of the parts no colours, as many no normals."""
    return np.repeat(rng.random((channels - 3) // 3) >= LACKING, 3).astype(np.float32)


def one_side(
    points: Float[np.ndarray, "N 3"], direction: Float[np.ndarray, "3"], share: float
) -> Bool[np.ndarray, " N"]:
    """The points on one side of a plane: those without the share that is farthest against a direction; at least one."""
    along = points @ direction
    return along >= np.quantile(along, share)


def one_view(points: Float[np.ndarray, "N 3"], direction: Float[np.ndarray, "3"]) -> Bool[np.ndarray, " N"]:
    """Points that a depth buffer has in front, seen from far away in a direction: a fast `seen_from`, for training.

    Each point covers its pixel and the eight around it; it is seen if what covers its own is nearer by two pixels at
    most. So surfaces seen aslant are lost in part, as by scanners.
    """
    forward = direction / np.linalg.norm(direction)
    across = np.cross(forward, np.eye(3)[np.abs(forward).argmin()])
    across /= np.linalg.norm(across)
    flat = points @ np.stack([across, np.cross(forward, across)], axis=1)
    low = flat.min(0)
    pixel = max(float((flat.max(0) - low).max()), 1e-12) / PIXELS
    row, column = ((flat - low) / pixel).astype(np.int64).T + 1
    depth = points @ -forward
    nearest = np.full((PIXELS + 3, PIXELS + 3), np.inf)
    np.minimum.at(nearest, (row, column), depth)
    for axis in (0, 1):
        around = [np.roll(nearest, by, axis) for by in (-1, 1)]
        nearest = np.minimum(nearest, np.minimum(*around))
    return depth <= nearest[row, column] + 2 * pixel


def seen_from(points: Float[np.ndarray, "N 3"], eye: Float[np.ndarray, "3"]) -> Int[np.ndarray, " K"]:
    """Numbers of the points that are seen from a place, by hidden point removal (Katz, Tal and Basri, 2007).

    Points are flipped about a sphere around the eye, p + 2 (R - |p|) p / |p|, and those on the convex hull of the
    flipped ones and the eye are seen. All are, where they lie in a plane with it.
    """
    away = points.astype(np.float64) - eye
    distance = np.linalg.norm(away, axis=1, keepdims=True).clip(min=1e-12)
    flipped = away + 2 * (distance.max() * FLIP - distance) * away / distance
    try:
        hull = ConvexHull(np.concatenate([flipped, np.zeros((1, 3))])).vertices
    except QhullError:
        return np.arange(len(points))
    return np.sort(hull[hull < len(points)])


def scan(points: Float[np.ndarray, "N 3"], rng: np.random.Generator) -> Int[np.ndarray, " K"]:
    """Numbers of the points that one view shows, from six radii away in a random direction."""
    direction, centre = rng.normal(size=3), points.mean(0)
    radius = np.linalg.norm(points - centre, axis=1).max()
    return seen_from(points, centre + 6 * radius * direction / np.linalg.norm(direction))
