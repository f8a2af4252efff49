"""Moves stray points of a generated cloud onto its surface."""

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree

STRAY = 3.5
"""Distance to the fourth neighbour, in medians of that distance over the cloud, from which a point strays."""
_NEIGHBOUR, _BETWEEN = 4, 8


def far(points: Float[np.ndarray, "N 3"], most: float = STRAY) -> Bool[np.ndarray, " N"]:
    """Whether each of at least five points strays."""
    distance = cKDTree(points).query(points, _NEIGHBOUR + 1)[0][:, _NEIGHBOUR]
    middle = np.median(distance)
    return (distance > most * middle) & (middle > 0)  # with half of them in one place, none strays


def onto_surface(cloud: Float[np.ndarray, "N C"], most: float) -> Float[np.ndarray, "N C"]:
    """A cloud whose stray points were moved between the nearest of the others and one of its neighbours.

    Their further channels become those of that nearest point. The number and order of points stay, and so do all that
    do not stray. Clouds of fewer than ten points, or with some that are not finite, are returned as they are.

    Args:
        most: distance to the fourth neighbour, in medians, from which a point strays.
    """
    points = cloud[:, :3].astype(np.float64)
    if len(points) <= _BETWEEN + 1 or not np.isfinite(points).all():
        return cloud
    points -= points.mean(axis=0)
    strays = far(points, most)
    kept, near = np.flatnonzero(~strays), cKDTree(points[~strays])
    if not strays.any() or len(kept) <= _BETWEEN:
        return cloud
    nearest = near.query(points[strays])[1]
    turn = 1 + _earlier_equal(nearest) % _BETWEEN  # strays with the same nearest point go to different places
    beside = near.query(points[kept[nearest]], _BETWEEN + 1)[1][np.arange(len(nearest)), turn]
    moved = cloud.copy()
    moved[strays] = cloud[kept[nearest]]
    moved[strays, :3] += (cloud[kept[beside], :3] - cloud[kept[nearest], :3]) / 2
    return moved


def _earlier_equal(values: np.ndarray) -> np.ndarray:
    """How many equal values precede each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    counts = np.empty_like(values)
    counts[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return counts
