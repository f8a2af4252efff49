"""Normalisations of clouds before comparison."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

MEANING = MappingProxyType(
    {
        "none": "units as given",
        "global": "one shift and scale for all: mean 0, standard deviation 1 of all points of the {role} set",
        "per_shape_box": "each shape by itself: bounding box centred, its longest side 1",
        "unit_sphere": "each shape by itself: mean point at 0, farthest point at 1",
    }
)


def normalised(
    sets: Mapping[str, Sequence[np.ndarray]], mode: str
) -> tuple[dict[str, list[np.ndarray]], str]:
    """Normalise sets of clouds, with a sentence for the protocol.

        none            x
        global          (x - m) / s   with the mean and the one standard deviation (PointFlow, arXiv 1906.12320) of
                        all points of the training set, or of the reference without one
        per_shape_box   (x - c) / (e / 2) * 0.5   with the centre c and the longest side e of the shape's own
                        bounding box: LION's norm_box (arXiv 2210.06978)
        unit_sphere     (x - m) / r   with the shape's own mean point m and farthest distance r from it

    The last two remove size from the comparison: shapes of the wrong size go unnoticed.
    JSD counts within 0.5 of the origin, so after global and unit_sphere many points are at its border.

    Raises ValueError for another mode, or a shape (a set, for global) without extent.
    """
    check_mode(mode)
    role = "train" if "train" in sets else "reference"
    sentence = f"{mode}: {MEANING[mode].format(role=role)}"
    if mode == "none":
        return {name: list(clouds) for name, clouds in sets.items()}, sentence
    if mode == "global":
        # The mean of means, since all shapes have the same number of points; so no set is copied as a whole.
        mean = np.mean([cloud.mean(axis=0) for cloud in sets[role]], axis=0)
        scale = float(np.sqrt(np.mean([((cloud - mean) ** 2).mean() for cloud in sets[role]])))
        if not scale > 0:
            raise ValueError(f"the {role} set must hold points that differ, got standard deviation {scale}")
        return {name: [(cloud - mean) / scale for cloud in clouds] for name, clouds in sets.items()}, sentence
    return {
        name: [_by_itself(cloud, mode, f"shape {i} of the {name} set") for i, cloud in enumerate(clouds)]
        for name, clouds in sets.items()
    }, sentence


def check_mode(mode: str) -> None:
    """Raise ValueError for a mode not in `MEANING`."""
    if mode not in MEANING:
        raise ValueError(f"normalisation must be one of {', '.join(MEANING)}, got {mode!r}")


def _by_itself(cloud: np.ndarray, mode: str, which: str) -> np.ndarray:
    if mode == "per_shape_box":
        low, high = cloud.min(axis=0), cloud.max(axis=0)
        centre, size = (low + high) / 2, (high - low).max()
    else:
        centre = cloud.mean(axis=0)
        size = np.linalg.norm(cloud - centre, axis=1).max()
    if not size > 1e-12 * np.abs(cloud).max():
        raise ValueError(f"{which} must have points that differ for normalisation={mode}, got one place")
    return (cloud - centre) / size
