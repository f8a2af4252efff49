"""Formats whose libraries are an extra (`pip install 'ditmoe[scans]'`): HDF5 of ModelNet40, LAS and LAZ of scanners."""

import io
from importlib.util import find_spec

import numpy as np

from ditmoe.outside import may_hold, printable

SUFFIXES = {".h5": "h5py", ".hdf5": "h5py", ".las": "laspy", ".laz": "laspy"}
"""With the library that reads each."""
_NAMES = ("data", "points", "coords", "xyz", "pos")


def read_scan(content: bytes, suffix: str) -> np.ndarray:
    """Points (N, 3), or (S, N, K) of an HDF5 that holds a set.

    Raises:
        ValueError: if the library is not there, or the file promises more than it can hold or names other files.
    """
    if find_spec(library := SUFFIXES[suffix]) is None:
        raise ValueError(f"{suffix} needs {library}: pip install 'ditmoe[scans]'")
    return _las(content) if library == "laspy" else _hdf5(content)


def _hdf5(content: bytes) -> np.ndarray:
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        found = [name for name in _NAMES if name in file.keys()]  # noqa: SIM118, as `in file` follows links
        if not found:
            raise ValueError(
                f"an HDF5 must hold one of {', '.join(_NAMES)}, got {printable(', '.join(file.keys()))[:80]}"
            )
        if not isinstance(file.get(found[0], getlink=True), h5py.HardLink):
            raise ValueError(f"an HDF5 must not name other files, as its {found[0]} does")
        data = file[found[0]]
        if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
            raise ValueError(f"an HDF5 must hold its {found[0]} itself, as one array")
        if data.size * 8 > may_hold(len(content)):
            raise ValueError(f"an HDF5 must hold the {data.size} numbers that it promises")
        return np.asarray(data[()])


def _las(content: bytes) -> np.ndarray:
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
        return np.stack([np.asarray(axis, np.float64) for axis in (points.x, points.y, points.z)], axis=1)
