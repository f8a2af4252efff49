"""Partial clouds (scans, cuts and subsampled clouds) for training, evaluation of completion, and `prepare`."""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import ConvexHull, QhullError

NUM_GIVEN = 512
"""Points of the partial cloud of a training sample. Smaller parts are repeated, which leaves moments unchanged."""
SIZES = (64, 128, 256, 512)
"""Numbers of distinct points in a part: divisors of NUM_GIVEN."""
LACKING = 0.3
"""Fraction of the parts of coloured clouds without colours, as many scans have none."""
PIXELS = 26
"""Pixels of the depth buffer along the longest side of a cloud: about one per visible point."""
FLIP = 10**2
"""Sphere radius of `seen_from` relative to the distance of the farthest point: a larger one hides less."""


def draw_part(points: Float[np.ndarray, "N C"], rng: np.random.Generator) -> Float[np.ndarray, "K C"]:
    """Sample a partial cloud for training: a scan from one side 55 %, a half-space cut 25 %, a uniform subset 20 %.

    `NUM_GIVEN` points, of which one of `SIZES` are distinct; in 30 % of the parts with positional noise of up to 4 % of
    the deviation.
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
    """Presence (1 or 0) of the further columns of a part: colours and normals are each missing in `LACKING` of them."""
    return np.repeat(rng.random((channels - 3) // 3) >= LACKING, 3).astype(np.float32)


def one_side(
    points: Float[np.ndarray, "N 3"], direction: Float[np.ndarray, "3"], share: float
) -> Bool[np.ndarray, " N"]:
    """The points on one side of a plane: all but the given fraction farthest against a direction; at least one."""
    along = points @ direction
    return along >= np.quantile(along, share)


def one_view(points: Float[np.ndarray, "N 3"], direction: Float[np.ndarray, "3"]) -> Bool[np.ndarray, " N"]:
    """Points visible in a depth buffer from far away in a direction: a fast `seen_from`, for training.

    Each point covers its pixel and the eight around it; it is visible if the depth at its own pixel is nearer by at
    most two pixels. So surfaces at grazing angles are partly lost, as with scanners.
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
    """Indices of the points visible from a viewpoint, by hidden point removal (Katz, Tal and Basri, 2007).

    Points are flipped about a sphere around the eye, p + 2 (R - |p|) p / |p|, and those on the convex hull of the
    flipped points and the eye are visible; all are, if they are coplanar with it.
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
    """Indices of the points visible in one view, from six radii away in a random direction."""
    direction, centre = rng.normal(size=3), points.mean(0)
    radius = np.linalg.norm(points - centre, axis=1).max()
    return seen_from(points, centre + 6 * radius * direction / np.linalg.norm(direction))
