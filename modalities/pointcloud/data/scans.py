"""Formats that need an extra (`pip install 'ditmoe[scans]'`): ModelNet40's HDF5; LAS, LAZ and E57 scans."""

import math
import os
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ditmoe.outside import may_hold, open_regular, printable
from modalities.pointcloud.data.channels import Geometry
from modalities.pointcloud.data.hdf5_chunks import check_filters, read_rows
from modalities.shared.isolation import isolated

SUFFIXES = {".h5": "h5py", ".hdf5": "h5py", ".las": "laspy", ".laz": "laspy", ".e57": "pye57"}
"""File suffix -> library that reads it."""
_E57_COLOURS = ("colorRed", "colorGreen", "colorBlue")
SECONDS, SLOWEST = 20, 2**16
"""Time limit to read a LAZ or an E57, plus its size over this rate in bytes per second, for a slow machine."""
MEMORY = 2**29
"""Memory limit in bytes for reading it, besides its content (`outside.may_hold`)."""
_LAS_HEADER = 375
"""Bytes of the longest LAS header."""
_NAMES = ("data", "points", "coords", "xyz", "pos")
COLOURS, NORMALS = ("rgb", "color", "colors", "colour", "colours"), ("normal", "normals")
"""Names of arrays of colours and normals beside the points."""


def read_scan(path: Path, more: bool = False, item: int | None = None) -> Geometry:
    """Read points (N, 3), or (S, N, K) from an HDF5 with a set; with `more`, also colours and normals.

    The scans of an E57 are merged into one cloud by their poses.

    Args:
        item: index of a cloud of a set; only that one is read.

    Raises:
        ValueError: if the library is missing, or the file declares more than it can hold or references other files.
    """
    library = check_library(path.suffix.lower())
    with open_regular(path) as stream:
        if library == "h5py":
            return _hdf5(path, stream, more, item)
        if library == "laspy" and not _is_packed(stream):
            return _las(stream)
        size = _size(stream)
    # With a damaged count these libraries allocate before it can be checked, and abort if that fails.
    seconds, memory = SECONDS + size / SLOWEST, MEMORY + may_hold(size)
    return isolated(partial(_foreign, path, size, more), seconds, memory)


def _foreign(path: Path, size: int, more: bool) -> Geometry:
    """Read a LAZ or an E57, by third-party compiled code."""
    if path.suffix.lower() == ".e57":
        return _e57(path, size, more)
    with open_regular(path) as stream:
        return _las(stream)


def check_library(suffix: str) -> str:
    """Import the library for these files; ValueError if it is missing."""
    if find_spec(library := SUFFIXES[suffix]) is None:
        raise ValueError(f"{suffix} needs {library}: pip install 'ditmoe[scans]'")
    return library


def count_clouds(stream: BinaryIO) -> int | None:
    """Number of clouds in an HDF5 with a set, without reading them."""
    import h5py

    with h5py.File(stream, "r") as file:
        shape = _dataset(file, next(name for name in _NAMES if name in file.keys()), _size(stream)).shape  # noqa: SIM118
        return shape[0] if len(shape) == 3 else None


def read_labels(stream: BinaryIO) -> np.ndarray | None:
    """The class index of each cloud of an HDF5, (S,), as in ModelNet40; None without labels.

    Raises:
        ValueError: if the labels are not one integer per cloud.
    """
    import h5py

    with h5py.File(stream, "r") as file:
        if "label" not in file.keys():  # noqa: SIM118, as `in file` follows links
            return None
        labels = read_rows(_dataset(file, "label", _size(stream)), "label")
        if labels.dtype.kind not in "iu" or labels.ndim == 0 or labels.size != len(labels):
            raise ValueError(
                f"label must be a whole number for each cloud, got {labels.dtype} of {labels.shape}"
            )
        return labels.reshape(-1)


def _hdf5(path: Path, stream: BinaryIO, more: bool, item: int | None) -> Geometry:
    import h5py

    with h5py.File(stream, "r") as file:
        there, size = set(file.keys()), _size(stream)
        found = []
        for names in (_NAMES, COLOURS if more else (), NORMALS if more else ()):
            name = next((name for name in names if name in there), None)
            data = None if name is None else _dataset(file, name, size)
            found.append(None if data is None else _cloud(path, data, str(name), item))
        if found[0] is None:
            raise ValueError(
                f"an HDF5 must hold one of {', '.join(_NAMES)}, got {printable(', '.join(file.keys()))[:80]}"
            )
        return Geometry(found[0], rgb=found[1], normals=found[2])


def _cloud(path: Path, data: Any, name: str, item: int | None) -> np.ndarray:
    """An array, or one item of it."""
    if item is None or not data.chunks:
        return read_rows(data, name) if item is None else np.asarray(data[item])
    row, within = divmod(item, data.chunks[0])
    return np.array(_chunks(path, state_of(path), name, row)[within])


@lru_cache(maxsize=3)
def _chunks(path: Path, state: tuple[int, ...], name: str, row: int) -> np.ndarray:
    """A row of an array's chunks, kept for the other clouds in it, since a chunk is decompressed whole.

    Args:
        state: of the file, see `state_of`.
        name: of points, colours or normals: one row of each is kept.
    """
    import h5py

    with open_regular(path) as stream, h5py.File(stream, "r") as file:
        data = _dataset(file, name, _size(stream))
        length = data.chunks[0]
        return read_rows(data, name, row * length, (row + 1) * length)


def state_of(path: Path) -> tuple[int, ...]:
    """What differs when a file was changed or replaced."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _dataset(file: Any, name: str, size: int) -> Any:
    """Open an array, without reading it, in a file of so many bytes."""
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"an HDF5 must not name other files, as its {name} does")
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
        raise ValueError(f"an HDF5 must hold its {name} itself, as one array")
    if data.shape is None or data.dtype.kind not in "biuf":
        raise ValueError(f"an HDF5 must hold numbers as its {name}, got {printable(data.dtype)[:80]}")
    # A chunk is decompressed whole and may be larger than the array.
    if max(data.size, math.prod(data.chunks or (0,))) * max(8, data.dtype.itemsize) > may_hold(size):
        raise ValueError(
            f"an HDF5 must hold the {data.size} numbers that it promises, in chunks of their size"
        )
    check_filters(data, name)
    if not _is_written(data):
        raise ValueError(f"an HDF5 must hold all of its {name}, got one of which parts were never written")
    return data


def _is_written(data: Any) -> bool:
    """Whether an array is fully stored: missing chunks read as zeros, and a few bytes can declare millions of them."""
    if data.chunks is None:
        return bool(data.id.get_storage_size() >= data.size * data.dtype.itemsize)
    pieces = (-(-length // chunk) for length, chunk in zip(data.shape, data.chunks, strict=True))
    return bool(data.id.get_num_chunks() >= math.prod(pieces))


def _size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


def _las(stream: BinaryIO) -> Geometry:
    import laspy

    _check_records(stream)
    # The threads of lazrs, one per core, would count as memory.
    single = [of for of in (laspy.LazBackend.Lazrs, laspy.LazBackend.Laszip) if of.is_available()]
    with laspy.open(stream, closefd=False, laz_backend=single) as file:
        size = file.header.point_count * (file.header.point_format.size + 24)
        if size > may_hold(_size(stream)):
            raise ValueError(f"a LAS must hold the {file.header.point_count} points that it counts")
        points = file.read()
        if len(points.points) < file.header.point_count:
            raise ValueError(
                f"a LAS must hold the {file.header.point_count} points that it counts, got {len(points.points)}"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # non-finite rows are counted later
            xyz = np.stack([np.asarray(axis, np.float64) for axis in (points.x, points.y, points.z)], axis=1)
        rgb = None
        if {"red", "green", "blue"} <= set(points.point_format.dimension_names):
            rgb = np.stack([np.asarray(points[name]) for name in ("red", "green", "blue")], axis=1)
        return Geometry(xyz, rgb=rgb)


def _is_packed(stream: BinaryIO) -> bool:
    """Whether a LAS is compressed (LAZ), whatever its suffix."""
    stream.seek(104)
    packed = stream.read(1) >= b"\x40"
    stream.seek(0)
    return packed


def _check_records(stream: BinaryIO) -> None:
    """Raise ValueError for a LAS that declares more variable-length records than fit into the file; all are read."""
    header, size = stream.read(_LAS_HEADER), _size(stream)
    stream.seek(0)
    records = int.from_bytes(header[100:104], "little")
    extended = int.from_bytes(header[243:247], "little") if header[24:26] >= b"\x01\x04" else 0
    if 54 * records + 60 * extended > size:
        raise ValueError(f"a LAS must hold the {records + extended} records that it counts")


def _points_there(file: Any, header: Any) -> int:
    """Number of points of an E57 scan actually in the file, by one of their fields."""
    field = next((name for name in ("cartesianX", "sphericalRange") if name in header.point_fields), None)
    if field is None:
        raise ValueError("an E57 must hold points with coordinates")
    _, buffers = file.make_buffers([field], header.point_count)
    return int(header.points.reader(buffers).read())


def _e57(path: Path, size: int, more: bool) -> Geometry:
    import pye57

    file = pye57.E57(str(path))
    try:
        parts: list[np.ndarray] = []
        colours: list[np.ndarray] = []
        for number in range(file.scan_count):
            header = file.get_header(number)
            if 8 * header.point_count * len(header.point_fields) > may_hold(size):
                raise ValueError(f"an E57 must hold the {header.point_count} points that it counts")
            # Missing points would be uninitialised memory.
            if (there := _points_there(file, header)) != header.point_count:
                raise ValueError(
                    f"an E57 must hold the {header.point_count} points that it counts, got {there}"
                )
            coloured = more and {*_E57_COLOURS} <= {*header.point_fields}
            read = file.read_scan(number, colors=coloured, ignore_missing_fields=True)
            parts.append(np.stack([read[f"cartesian{axis}"] for axis in "XYZ"], axis=1))
            if coloured:
                colours.append(np.stack([read[name] for name in _E57_COLOURS], axis=1))
    finally:
        file.close()
    if not parts:
        raise ValueError("an E57 must hold a scan, got none")
    rgb = np.concatenate(colours) if more and len(colours) == len(parts) else None
    return Geometry(np.concatenate(parts), rgb=rgb)
