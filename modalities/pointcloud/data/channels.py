"""Channels of points besides position: colours and normals, as further columns after x, y, z.

In data units colours are in [0, 1] and normals have unit length; in the model's space colours are in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

CHANNELS = ("xyz", "rgb", "normals")
CALLED = {"rgb": "colours", "normals": "normals"}
SKIPPED = "_"
"""Marks a column without a channel, such as an intensity."""
_COLUMNS = 3
"""Columns of each channel."""
_NEARLY = 0.01
"""Tolerance beyond [0, 1] for rounded colours."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """The unchecked content of a file.

    Attributes:
        points: (V, 3) vertices, or (N, K), (S, N, K) with unnamed columns after the third.
        faces: (F, 3) triangles; None for a cloud.
        rgb: colours of the vertices, in the file's type and range.
        normals: normals of the points of a cloud, of any length; a mesh uses those of its triangles.
    """

    points: np.ndarray
    faces: np.ndarray | None = None
    rgb: np.ndarray | None = None
    normals: np.ndarray | None = None

    def item(self, index: int | None) -> "Geometry":
        """A copy of one cloud of a set."""
        if index is None:
            return self
        rgb, normals = (None if of is None else of[index].copy() for of in (self.rgb, self.normals))
        return replace(self, points=self.points[index].copy(), rgb=rgb, normals=normals)


def columns(rows: Sequence[Sequence[str]], count: int) -> Float64[np.ndarray, "V 3"] | None:
    """Parse words of colours or normals, if every vertex has three."""
    if not count or len(rows) != count or not all(len(row) == _COLUMNS for row in rows):
        return None
    try:
        return np.array(rows, np.float64)
    except ValueError:
        return None


@dataclass(frozen=True)
class Channels:
    """The requested channels.

    Args:
        names: xyz, then rgb or normals or both.
        columns: the channels of unnamed columns, as in .npy and text, in order, `_` for a skipped column; None infers
            colours and normals from the values.
        optional: channels missing in a file are left out instead of being an error.
    """

    names: tuple[str, ...] = ("xyz",)
    columns: tuple[str, ...] | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        allowed = [("xyz",), ("xyz", "rgb"), ("xyz", "normals"), CHANNELS]
        if self.names not in allowed:
            choices = " or ".join(f"[{','.join(names)}]" for names in allowed)
            raise ValueError(f"channels must be {choices}, got [{','.join(map(str, self.names))}]")
        said = self.columns or ()
        of = [name for name in said if name != SKIPPED]
        if self.columns is not None and (
            said[:1] != ("xyz",) or len({*of}) < len(of) or not {*of} <= {*CHANNELS}
        ):
            raise ValueError(
                "columns must be channels, each once and xyz first, and _ for a column that is skipped, got "
                f"[{','.join(map(str, said))}]"
            )

    @classmethod
    def of(cls, names: Sequence[str] | str, columns: Sequence[str] | str | None = None) -> "Channels":
        """Make channels from configuration values."""
        listed = [
            None if of is None else (of,) if isinstance(of, str) else tuple(of) for of in (names, columns)
        ]
        return cls(listed[0] or (), listed[1])

    @property
    def width(self) -> int:
        """C, number of columns of a point."""
        return _COLUMNS * len(self.names)

    def at(self, name: str) -> slice:
        """The columns of a channel."""
        start = _COLUMNS * self.names.index(name)
        return slice(start, start + _COLUMNS)

    def found_in(self, geometry: Geometry, mesh: bool = False) -> "Channels":
        """The optional channels that the file has; all, if they are required.

        Args:
            mesh: whether it is a mesh, which has normals by its triangles.
        """
        if not self.optional:
            return self

        def there(name: str) -> bool:
            return name == "xyz" or (mesh and name == "normals") or self._raw(geometry, name) is not None

        return replace(self, names=tuple(name for name in self.names if there(name)))

    def spread(self, values: Float[np.ndarray, "*S N c"], there: "Channels") -> Float[np.ndarray, "*S N C"]:
        """Expand columns of some channels to all; NaN for missing ones."""
        if there.names == self.names:
            return values
        out = np.full((*values.shape[:-1], self.width), np.nan, values.dtype)
        for name in there.names:
            out[..., self.at(name)] = values[..., there.at(name)]
        return out

    def beside(self, geometry: Geometry, mesh: bool = False) -> list[Float64[np.ndarray, "*S N 3"]]:
        """The channels besides xyz, in data units; NaN for missing values.

        Args:
            mesh: leave out normals, as a surface has its own.

        Raises:
            ValueError: if the file lacks a channel, or has invalid colours.
        """
        found = []
        for name in self.names[1:]:
            if name == "normals" and mesh:
                continue
            if (values := self._raw(geometry, name)) is None:
                raise ValueError(
                    f"a file must have {CALLED[name]} for channels=[{','.join(self.names)}], got none"
                    + " that is told apart (modality.columns=)" * (geometry.points.shape[-1] > _COLUMNS)
                )
            shape = (*geometry.points.shape[:-1], _COLUMNS)
            if values.shape != shape:
                raise ValueError(
                    f"{CALLED[name]} must have the shape {shape} of the points, got {values.shape}"
                )
            found.append(colours(values) if name == "rgb" else directions(values))
        return found

    def _raw(self, geometry: Geometry, name: str) -> np.ndarray | None:
        named = geometry.rgb if name == "rgb" else geometry.normals
        if named is not None or geometry.points.shape[-1] < 2 * _COLUMNS:
            return named
        rest = geometry.points[..., _COLUMNS:]
        if self.columns is not None:
            before = self.columns[: self.columns.index(name)] if name in self.columns else ()
            start = sum(1 if of == SKIPPED else _COLUMNS for of in before)
            there = start and start + _COLUMNS <= geometry.points.shape[-1]
            return geometry.points[..., start : start + _COLUMNS] if there else None
        return _told_apart(rest).get(name)


def _told_apart(rest: np.ndarray) -> dict[str, np.ndarray]:
    """Infer colours and normals among unnamed columns by their values."""
    if rest.shape[-1] == _COLUMNS + 1:
        return _of_four(rest)
    first, *others = [rest[..., start : start + _COLUMNS] for start in range(0, rest.shape[-1] - 2, _COLUMNS)]
    if others and _are_colours(first) and _are_normals(others[0]):
        return {"rgb": first, "normals": others[0]}
    if _are_normals(first):
        return {"normals": first} | ({"rgb": others[0]} if others and _are_colours(others[0]) else {})
    return {"rgb": first} if _are_colours(first) else {}


def _of_four(rest: np.ndarray) -> dict[str, np.ndarray]:
    """Byte colours among four columns, of which the first may be an intensity (Semantic3D) or the last a label.

    Empty if ambiguous.
    """
    first, last = rest[..., :_COLUMNS], rest[..., 1:]
    if _are_normals(first):
        return {"normals": first}
    found = [of for of in (first, last) if _are_bytes(of) and of.max() > 1]
    return {"rgb": found[0]} if len(found) == 1 else {}


XYZ = Channels()


def _are_normals(values: np.ndarray) -> bool:
    """Whether nearly all rows have length 1, and the others 0."""
    with np.errstate(all="ignore"):
        length = np.linalg.norm(values.astype(np.float64), axis=-1)
        unit = np.abs(length - 1) < 0.02
        return bool((unit | (length == 0) | ~np.isfinite(length)).all() and unit.mean() > 0.5)


def _are_bytes(values: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):
        return bool((values == np.floor(values)).all() and values.min() >= 0 and values.max() <= 255)


def _are_colours(values: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(values.min() >= -_NEARLY and values.max() <= np.iinfo(np.uint16).max)


def colours(values: np.ndarray) -> Float64[np.ndarray, "*S N 3"]:
    """Convert colours to [0, 1] from bytes, 16 bits (also with byte values), or floats up to 1 or 255.

    Raises:
        ValueError: if they are negative, or exceed 16 bits.
    """
    kind, numbers = values.dtype.kind, values.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if low < -_NEARLY or high > np.iinfo(np.uint16).max:
        raise ValueError(f"colours must lie in 0..1, 0..255 or 0..65535, got {low:g}..{high:g}")
    most = 1 if kind == "f" and high <= 1 + _NEARLY else 255 if high <= 255 else 65535
    return np.clip(numbers / most, 0, 1)


def directions(values: np.ndarray) -> Float64[np.ndarray, "*S N 3"]:
    """Normals scaled to unit length; NaN for missing ones."""
    numbers = values.astype(np.float64)
    with np.errstate(all="ignore"):
        length = np.linalg.norm(numbers, axis=-1, keepdims=True)
        return np.where(length > 0, numbers / length, np.nan)


def as_bytes(rgb: Float[np.ndarray, "*S N 3"]) -> np.ndarray:
    """Colours in [0, 1] as bytes."""
    return (255 * np.clip(rgb, 0, 1) + 0.5).astype(np.uint8)


def stretched(values: np.ndarray, factor: np.ndarray, channels: Channels) -> np.ndarray:
    """Scale (or mirror) the axes of points by factors; normals stay perpendicular to the surface."""
    if channels.width == _COLUMNS:
        return values * factor
    out = values.copy()
    out[:, :_COLUMNS] *= factor
    if "normals" in channels.names:
        normals = values[:, channels.at("normals")] / factor
        out[:, channels.at("normals")] = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    return out


def to_model(values: np.ndarray, mean: np.ndarray, scale: np.floating, channels: Channels) -> np.ndarray:
    """Convert from data units: xyz to zero mean and unit deviation, colours to [-1, 1]."""
    if channels.width == _COLUMNS:
        return (values - mean) / scale
    out = values.copy()
    out[:, :_COLUMNS] = (values[:, :_COLUMNS] - mean) / scale
    if "rgb" in channels.names:
        out[:, channels.at("rgb")] = 2 * values[:, channels.at("rgb")] - 1
    return out


def from_model(x: Any, channels: Channels) -> list[Any]:
    """The channels besides xyz of model samples (tensors), in data units: colours in [0, 1], unit normals."""
    found = []
    for name in channels.names[1:]:
        part = x[..., channels.at(name)]
        if name == "rgb":
            found.append(((part + 1) / 2).clamp(0, 1))
        else:
            found.append(part / part.norm(dim=-1, keepdim=True).clamp_min(1e-12))
    return found
