"""What the evaluation of clouds compares: sets checked, brought to equal points, and a fair draw of real ones."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import scipy

from ditmoe.modality import Samples
from modalities.pointcloud.distance import implementation

CloudSet = Samples | np.ndarray | Sequence[np.ndarray]


def read_clouds(data: CloudSet, role: str) -> list[np.ndarray]:
    """Check a set and give its clouds as float64 (N_i, 3).

    Raises ValueError, naming the set by its `role`, where it has fewer than two clouds, a cloud is not
    (N, 3) or has no points, or a point is NaN or infinite.
    """
    given = data.data if isinstance(data, Samples) else data
    clouds = [np.asarray(cloud, dtype=np.float64) for cloud in given]
    if len(clouds) < 2:
        raise ValueError(f"the {role} set must have at least 2 clouds, got {len(clouds)}")
    for i, cloud in enumerate(clouds):
        if cloud.ndim != 2 or cloud.shape[1] != 3 or len(cloud) == 0:
            raise ValueError(f"the {role} set must be clouds of (N, 3), got {cloud.shape} at index {i}")
    broken = [i for i, cloud in enumerate(clouds) if not np.isfinite(cloud).all()]
    if broken:
        raise ValueError(
            f"the points of the {role} set must be finite, got NaN or infinity in {len(broken)} of "
            f"{len(clouds)} clouds, the first at index {broken[0]}"
        )
    return clouds


def read_labels(data: CloudSet, role: str) -> np.ndarray | None:
    """Labels of a set, or None; ValueError where there is not one for each cloud."""
    if not isinstance(data, Samples) or data.labels is None:
        return None
    if len(data.labels) != len(data):
        raise ValueError(
            f"the {role} set must have one label a cloud, got {len(data.labels)} for {len(data)}"
        )
    return np.asarray(data.labels)


def common_points(sets: Mapping[str, Sequence[np.ndarray]], points: int) -> int:
    """Number of points that every cloud of every set can give: `points`, or the smallest cloud's."""
    return min(points, *(len(cloud) for clouds in sets.values() for cloud in clouds))


def draw_points(clouds: Sequence[np.ndarray], count: int, seed: int) -> list[np.ndarray]:
    """Draw `count` points of each cloud without replacement.

    The draw depends on the seed and the cloud's size alone. So copies stay copies wherever they stand, and
    their distance stays zero; and the first k of `count` points are what a draw of k gives.
    """
    orders = {
        size: np.random.default_rng((seed, size)).permutation(size) for size in {len(c) for c in clouds}
    }
    return [cloud[orders[len(cloud)][:count]] for cloud in clouds]


def draw_like(
    num: int, labels: np.ndarray | None, train_labels: np.ndarray | None, num_train: int, seed: int
) -> np.ndarray:
    """Indices of `num` training shapes (all, where there are fewer) without replacement.

    With labels on both sides, of each label as many as `labels` has; what a label lacks is filled from the
    other shapes.
    """
    order = np.random.default_rng((seed, num_train)).permutation(num_train)
    if labels is None or train_labels is None:
        return order[:num]
    wanted = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    same = [i for label, n in wanted.items() for i in order[train_labels[order] == label][:n]]
    others = [i for i in order if i not in set(same)]
    return np.array([*same, *others][:num], dtype=np.int64)


def describe(
    sets: Mapping[str, Sequence[np.ndarray]], emd_points: int | None, seed: int, normalisation: str
) -> dict[str, Any]:
    """How the sets, as drawn, are compared: all that another must know to get the same numbers."""
    try:
        version = metadata.version("ditmoe")
    except metadata.PackageNotFoundError:
        version = "not installed"
    return {
        **{role: f"{len(clouds)} shapes" for role, clouds in sets.items()},
        "points": len(sets["generated"][0]),
        "cd": "mean squared distance to the nearest point, both directions added",
        "emd": f"exact_l2, {emd_points} points" if emd_points else "left out",
        "1-nna": "leave-one-out over the full set-level matrices",
        "distances": implementation(),
        "jsd": "28^3 grid in the sphere of radius 0.5, log base 2",
        "normalisation": normalisation,
        "intervals": "95 % from random halves of the sets (median: bootstrap)",
        "seed": seed,
        "version": f"ditmoe {version} scipy {scipy.__version__}",
    }
