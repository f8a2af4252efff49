"""Validation of points from any source: finite, with at least three coordinates."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64

from modalities.pointcloud.data.channels import XYZ, Channels, Geometry

Note = Callable[[str], object]
"""Callback for notes on what was left out of a file."""
FARTHEST = 1e18
"""Largest coordinate: squares of larger ones overflow float32."""
MOST_COLUMNS = 12
"""Most columns of a cloud: coordinates, colours, normals and some more."""


def checked(
    geometry: Geometry, ndim: int = 2, note: Note | None = None, channels: Channels = XYZ
) -> Float64[np.ndarray, "*S N C"]:
    """Copy the channels of finite points in double precision.

    Args:
        note: called with the number of rows with NaN or infinity left out; if None, such rows are an error.
    """
    if geometry.points.dtype.names:
        geometry = of_fields(geometry.points)
    points = geometry.points
    turned = points.ndim > 1 and points.shape[-2] == 3 < points.shape[-1]
    wide = points.ndim == ndim and 3 <= points.shape[-1] <= MOST_COLUMNS and not turned
    if points.dtype.kind not in "fiu" or not wide or not points.size:
        shape = ("N, 3", "S, N, 3")[ndim - 2]
        hint = " (its last two axes must be swapped)" if turned and points.ndim == ndim else ""
        got = f"{points.dtype} of {points.shape}{hint}"
        raise ValueError(f"points must be numbers of shape ({shape}), got {got}")
    channels = channels.found_in(geometry)
    with np.errstate(invalid="ignore"):
        points = np.array(points[..., :3], np.float64)
        if beside := channels.beside(geometry):
            points = np.concatenate([points, *beside], axis=-1)
    finite = np.isfinite(points).all(-1)
    if not finite.all():
        bad = int((~finite).sum())
        if note is None or ndim == 3 or not finite.any():
            raise ValueError(f"points must be finite, got {bad} of {finite.size} with NaN or infinity")
        note(f"{bad} of {finite.size} points have NaN or infinity and are left out")
        points = points[finite]
    places = points[..., :3]
    if (farthest := max(places.max(), -places.min())) > FARTHEST:
        raise ValueError(f"coordinates must lie within {FARTHEST:g} of 0, got {farthest:g}")
    return points


def of_fields(rows: np.ndarray) -> Geometry:
    """Geometry from a structured array."""
    names = set(rows.dtype.names or ())

    def stacked(*choices: str) -> np.ndarray | None:
        found = (words.split() for words in choices if names >= set(words.split()))
        return next((np.stack([rows[name] for name in of], axis=-1) for of in found), None)

    points = stacked("x y z")
    return Geometry(
        rows if points is None else points,
        rgb=stacked("red green blue", "r g b"),
        normals=stacked("nx ny nz", "normal_x normal_y normal_z"),
    )


def narrowed(points: Float[np.ndarray, "*S N C"]) -> Float[np.ndarray, "*S N C"]:
    """Points as float32, unless that would round positions by more than a millionth of their extent."""
    low, high = (of(points[..., :3].reshape(-1, 3), axis=0) for of in (np.min, np.max))
    step = float(np.abs([low, high]).max()) * np.finfo(np.float32).eps
    # Around the origin, float32 rounds by at most an eighth of a millionth of the extent.
    return points if step > 1e-6 * float((high - low).max()) else points.astype(np.float32)
