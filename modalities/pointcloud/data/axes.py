"""Which way is up: models keep y, many files keep z."""

import numpy as np
from jaxtyping import Float

AXES = ("x", "y", "z")


def check_up(up: str) -> None:
    if up not in AXES:
        raise ValueError(f"up must be one of {', '.join(AXES)}, got {up!r}")


def turned(points: Float[np.ndarray, "N 3"], up: str) -> Float[np.ndarray, "N 3"]:
    """Points whose axis `up` points up, turned (not mirrored) so that y does."""
    x, y, z = points.T
    return {"x": lambda: np.stack([-y, x, z], 1), "y": lambda: points, "z": lambda: np.stack([x, z, -y], 1)}[
        up
    ]()
