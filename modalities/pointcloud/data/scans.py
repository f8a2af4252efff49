"""Formats whose libraries are an extra (`pip install 'ditmoe[scans]'`): HDF5 of ModelNet40, LAS and LAZ of scanners."""

import io
from importlib.util import find_spec
from typing import Any

import numpy as np

from ditmoe.outside import may_hold, printable
from modalities.pointcloud.data.channels import Geometry

SUFFIXES = {".h5": "h5py", ".hdf5": "h5py", ".las": "laspy", ".laz": "laspy"}
"""With the library that reads each."""
_NAMES = ("data", "points", "coords", "xyz", "pos")
COLOURS, NORMALS = ("rgb", "color", "colors", "colour", "colours"), ("normal", "normals")
"""Under which names arrays of colours and normals are kept beside the points."""


def read_scan(content: bytes, suffix: str, more: bool = False) -> Geometry:
    """Points (N, 3), or (S, N, K) of an HDF5 that holds a set; if there is to be more, with colours and normals.

    Raises:
        ValueError: if the library is not there, or the file promises more than it can hold or names other files.
    """
    if find_spec(library := SUFFIXES[suffix]) is None:
        raise ValueError(f"{suffix} needs {library}: pip install 'ditmoe[scans]'")
    return _las(content) if library == "laspy" else _hdf5(content, more)


def read_labels(content: bytes) -> np.ndarray | None:
    """The class index of each cloud of an HDF5, (S,), where it has them as ModelNet40's do."""
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        if "label" not in file.keys():  # noqa: SIM118, as `in file` follows links
            return None
        labels = _array(file, "label", len(content))
        return labels.reshape(-1) if labels.dtype.kind in "iu" and labels.size == len(labels) else None


def _hdf5(content: bytes, more: bool) -> Geometry:
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        there = set(file.keys())
        points, rgb, normals = (
            next((_array(file, name, len(content)) for name in names if name in there), None)
            for names in (_NAMES, COLOURS if more else (), NORMALS if more else ())
        )
        if points is None:
            raise ValueError(
                f"an HDF5 must hold one of {', '.join(_NAMES)}, got {printable(', '.join(file.keys()))[:80]}"
            )
        return Geometry(points, rgb=rgb, normals=normals)


def _array(file: Any, name: str, size: int) -> np.ndarray:
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"an HDF5 must not name other files, as its {name} does")
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
        raise ValueError(f"an HDF5 must hold its {name} itself, as one array")
    if data.size * 8 > may_hold(size):
        raise ValueError(f"an HDF5 must hold the {data.size} numbers that it promises")
    return np.asarray(data[()])


def _las(content: bytes) -> Geometry:
    import laspy

    with laspy.open(io.BytesIO(content)) as file:
        size = file.header.point_count * (file.header.point_format.size + 24)
        if size > may_hold(len(content)):
            raise ValueError(f"a LAS must hold the {file.header.point_count} points that it counts")
        points = file.read()
        if len(points.points) < file.header.point_count:
            raise ValueError(
                f"a LAS must hold the {file.header.point_count} points that it counts, got {len(points.points)}"
            )
        xyz = np.stack([np.asarray(axis, np.float64) for axis in (points.x, points.y, points.z)], axis=1)
        rgb = None
        if {"red", "green", "blue"} <= set(points.point_format.dimension_names):
            rgb = np.stack([np.asarray(points[name]) for name in ("red", "green", "blue")], axis=1)
        return Geometry(xyz, rgb=rgb)
