"""Conditioning on given points: shape completion from a scan, combination of parts, upsampling.

The given points are kept in the noisy cloud at the noise level of each step (replacement), and a model trained with
`given=` also reads them, clean, beside it. The result contains them exactly, before the new points. With colours or
normals, those of the scan are given too, and missing ones are generated.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ditmoe.given import Given, Parts
from ditmoe.outside import check_number, printable
from modalities.pointcloud.data import formats
from modalities.pointcloud.data.channels import CALLED, XYZ, Channels, to_model
from modalities.pointcloud.data.partial import NUM_GIVEN
from modalities.pointcloud.tokens.given_cloud import POINTS, with_there

DIAGONAL = 5.9
"""Bounding-box diagonal of a shape over the deviation of all points of its set, for the built-in furniture."""
FAR = 10
"""Distance from the mean of the data, in deviations, from which a scan is probably in other units."""
MOST_HELD = 0.75
"""Largest fraction of given points: a larger scan is subsampled, to leave some points to generate."""


@dataclass(frozen=True)
class Place:
    """Placement of a scan: data = mean + scale * x, scan = centre + size * x, with x in the model's space."""

    centre: Float[np.ndarray, "3"]
    size: float
    mean: Float[np.ndarray, "3"]
    scale: float

    def into_model(self, scan: Float[np.ndarray, "K C"], channels: Channels) -> Float[np.ndarray, "K C"]:
        """Convert a scan to the model's space, in float64, since it may be far from the origin."""
        return to_model(scan.astype(np.float64), self.centre, np.float64(self.size), channels)

    def into_scan(self, data: Float[np.ndarray, "*S N C"]) -> Float[np.ndarray, "*S N C"]:
        """Convert decoded samples to the scan's units."""
        if self.size == self.scale and (self.centre == self.mean).all():
            return data
        data = data.astype(np.float64)
        data[..., :3] = (data[..., :3] - self.mean) / self.scale * self.size + self.centre
        return formats.narrowed(data)


def parts(
    given: Any,
    points: int,
    place: Any,
    hold: bool,
    strength: float | None,
    told: bool,
    mean: Float[np.ndarray, "3"],
    scale: float,
    channels: Channels = XYZ,
) -> Parts:
    """Prepare the given points for a cloud of so many points; see `PointCloud.parts`.

    Args:
        told: whether the model reads a clean cloud beside its samples.
        mean, scale: normalisation of the model's space, in data units.
        channels: channels of the model.
    """
    lines: list[str] = []
    scan = read(given, points, lines, channels)
    there = ~np.isnan(scan)
    if strength is not None and not there.all():
        raise ValueError(f"strength must begin at points with {_lacking(there, channels)}, got some without")
    where = find_place(scan[:, :3], place, mean, scale)
    with np.errstate(over="ignore"):
        x = np.where(there, where.into_model(scan, channels), 0).astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError(f"scale of place must not bring the scan to infinity, got {where.size / scale:g}")
    if (far := np.abs(x[:, :3]).max()) > FAR:
        lines.append(
            f"the scan reaches {far:.0f} deviations of the data from their middle: place=fit brings it there"
        )
    if not hold and strength is None and not told:
        raise ValueError("hold=false without strength= leaves nothing for a model that reads no given cloud")
    rng = np.random.default_rng(0)
    most = max(1, int(MOST_HELD * points))
    kept = np.sort(rng.permutation(len(scan))[:most])
    if hold and len(kept) < len(scan):
        lines.append(
            f"{len(kept)} of the scan's {len(scan)} points are kept: a cloud of points={points} has room for no more"
        )
    rows = np.sort(rng.permutation(points)[: len(kept)])  # spread: the first points make the tokens
    beside = {}
    if told and (hold or strength is None):
        some = rng.permutation(len(x))[:NUM_GIVEN]
        seen = with_there(torch.from_numpy(x[some]), torch.from_numpy(there[some, 3:].astype(np.float32)))
        beside = {POINTS: seen[None]}
    whole = torch.from_numpy(x[_often(len(x), points, rng)])  # the start of the others
    known = torch.zeros(points, 1 if there[kept].all() else channels.width, dtype=torch.bool)
    whole[rows], known[rows] = torch.from_numpy(x[kept]), torch.from_numpy(there[kept, : known.shape[1]])
    start = 1.0 if strength is None else strength
    seen = np.nan_to_num(scan[kept], nan=0.5)[None]  # missing colours are grey
    if not hold:
        return Parts(Given(whole[None], beside=beside, strength=start), where.into_scan, lines, shown=seen)

    def finish(samples: Float[np.ndarray, "S N C"]) -> Float[np.ndarray, "S N C"]:
        new = where.into_scan(np.delete(samples, rows, axis=1))
        own = np.where(there[kept], scan[kept], samples[:, rows])
        return np.concatenate([own, new], axis=1)

    begun = Given(whole[None], known[None], beside=beside, strength=start)
    return Parts(begun, finish, lines, shown=seen)


def _often(there: int, wanted: int, rng: np.random.Generator) -> Int[np.ndarray, " wanted"]:
    """Indices that repeat points evenly to a wanted number."""
    return rng.permutation(
        np.concatenate([rng.permutation(there) for _ in range(-(-wanted // there))])[:wanted]
    )


def _lacking(there: Bool[np.ndarray, "K C"], channels: Channels) -> str:
    """The channels missing for some points, in words."""
    return " and ".join(CALLED[name] for name in channels.names[1:] if not there[:, channels.at(name)].all())


def read(given: Any, points: int, lines: list[str], channels: Channels = XYZ) -> Float[np.ndarray, "K C"]:
    """Read and concatenate the points of one or several clouds; notes on what was left out are added to `lines`.

    Columns of missing channels are NaN.

    Raises:
        ValueError: if there are no points.
    """
    each = given if isinstance(given, list | tuple) else [given]
    if not each:
        raise ValueError("given must name at least one cloud, got an empty list")
    return np.concatenate([_one(part, points, lines, channels) for part in each])


def _one(given: Any, points: int, lines: list[str], channels: Channels) -> Float[np.ndarray, "K C"]:
    name = printable(Path(given).name) if isinstance(given, str | Path) else "given"

    def note(text: str) -> None:
        lines.append(f"{name}: {text}")

    if isinstance(given, str | Path):
        scan = formats.read_cloud(Path(given), points, note, channels)
    else:
        array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"given must be paths of clouds or arrays (K, 3), got {type(given).__name__}")
        if channels.columns is None and array.shape[-1:] == (channels.width,):
            channels = replace(channels, columns=channels.names)  # as in samples
        scan = formats.as_cloud(array, note, channels)
    if lacking := _lacking(~np.isnan(scan), channels):
        note(f"no {lacking.replace(' and ', ', no ')}: they are drawn")
    return scan


def find_place(
    scan: Float[np.ndarray, "K 3"], place: Any, mean: Float[np.ndarray, "3"], scale: float
) -> Place:
    """Placement of the scan: by its units (None), by its bounding box ("fit"), or explicit (x, y, z, scale).

    Raises:
        ValueError: for anything else, or if a scan without extent is to be fitted.
    """
    if place is None:
        return Place(mean, scale, mean, scale)
    if place == "fit":
        low, high = scan.astype(np.float64).min(0), scan.astype(np.float64).max(0)
        diagonal = float(np.linalg.norm(high - low))
        if not diagonal > 0:
            raise ValueError("place=fit needs points that differ, got all in one place")
        return Place((low + high) / 2, diagonal / DIAGONAL, mean, scale)
    if not isinstance(place, list | tuple) or len(place) != 4:
        raise ValueError(f"place must be fit or [x,y,z,scale], got {printable(place)}")
    for name, value in zip(("x", "y", "z"), place, strict=False):
        check_number(f"{name} of place", value, -formats.FARTHEST, formats.FARTHEST)
    check_number("scale of place", place[3], above=0)
    *centre, size = map(float, place)
    return Place(np.array(centre) + mean * size, size * scale, mean, scale)
