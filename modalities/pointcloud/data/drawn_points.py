"""Selection of the points of a training sample, and augmentation."""

import numpy as np
from jaxtyping import Float, Int

from modalities.pointcloud.data.channels import Channels, stretched


def training_part(points: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "M C"]:
    """The points to train on: of 15,000 the first 10,000, as in PointFlow (arXiv 1906.12320), otherwise all."""
    return points[:10_000] if len(points) == 15_000 else points


def reference_part(points: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "M C"]:
    """The points to evaluate with: of 15,000 the last 5,000, otherwise all."""
    return points[10_000:] if len(points) == 15_000 else points


def choose(there: int, wanted: int, rng: np.random.Generator) -> Int[np.ndarray, " M"]:
    """Random indices without replacement, or all with some repeated if there are too few."""
    if there >= wanted:
        return rng.choice(there, wanted, replace=False)
    return np.concatenate([np.arange(there), rng.choice(there, wanted - there)])


def augmented(
    points: Float[np.ndarray, "N C"],
    rng: np.random.Generator,
    mirror: bool,
    scale_jitter: float,
    channels: Channels,
) -> Float[np.ndarray, "N C"]:
    """Augment a centred cloud: scale each axis at a constant diagonal, and mirror x half of the time."""
    factor = np.ones(3, np.float32)
    if scale_jitter:
        factor = rng.uniform(1 - scale_jitter, 1 + scale_jitter, 3).astype(np.float32)
        extent = np.array([np.ptp(axis) for axis in points.T[:3]])  # faster by columns than with axis=0
        diagonal = np.linalg.norm(extent * factor)
        factor *= np.linalg.norm(extent) / diagonal if diagonal > 0 else 1
    if mirror and rng.random() < 0.5:
        factor[0] = -factor[0]
    return stretched(points, factor, channels)
