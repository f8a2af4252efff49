"""Dispatches files by format to their readers; a new format needs a suffix and a reader here."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ditmoe.outside import check_items, load_array, open_regular, printable, tell
from modalities.pointcloud.data import gltf, scans
from modalities.pointcloud.data.arrays import read_npz, read_tensors
from modalities.pointcloud.data.channels import SKIPPED, XYZ, Channels, Geometry
from modalities.pointcloud.data.obj import read_obj
from modalities.pointcloud.data.off import read_off
from modalities.pointcloud.data.pcd import read_pcd
from modalities.pointcloud.data.ply import read_ply
from modalities.pointcloud.data.points import Note
from modalities.pointcloud.data.scans import state_of
from modalities.pointcloud.data.scene import Scene
from modalities.pointcloud.data.stl import read_stl
from modalities.pointcloud.data.text import is_columns, read_columns

TEXT_SUFFIXES = (".xyz", ".txt", ".csv", ".asc", ".pts")
CLOUD_SUFFIXES = (".npy", ".npz", ".ply", *TEXT_SUFFIXES, ".pcd", ".pt")
MESH_SUFFIXES = (".obj", ".ply", ".stl", ".glb", ".gltf", ".off")
SET_SUFFIXES = tuple(dict.fromkeys((*CLOUD_SUFFIXES, *MESH_SUFFIXES, *scans.SUFFIXES)))
_DIGITS = re.compile(r"integer string conversion: value has (\d+) digits")
"""Of Python's words, which name a setting of its own."""
_READERS = {".obj": read_obj, ".ply": read_ply, ".stl": read_stl, ".off": read_off}


def read_geometry(path: Path, note: Note, channels: Channels = XYZ, item: int | None = None) -> Geometry:
    """The unchecked content of a file; for a scene, all that it shows."""
    suffix = path.suffix.lower()
    if suffix in (".glb", ".gltf"):
        tree, inner, size = gltf.check(path)
        return Scene(tree, inner, gltf.Beside(path.parent)).geometry(size, note, channels.width > 3)
    if suffix not in MESH_SUFFIXES:
        return read_file_of_points(path, note, channels, item)
    with open_regular(path) as stream:
        return _READERS[suffix](stream.read(), note)


def read_file_of_points(
    path: Path, note: Note, channels: Channels = XYZ, item: int | None = None
) -> Geometry:
    """The content of a point file, or of one item of a set; only the number of items is checked."""
    found = _file_of_points(path, note, channels, item)
    if found.points.ndim == 3:
        check_items(len(found.points), path)
    return found


def _file_of_points(path: Path, note: Note, channels: Channels, item: int | None) -> Geometry:
    match path.suffix.lower():
        case ".npy":
            return Geometry(load_array(path, item))
        case ".npz" | ".pt" if item is not None:
            return _whole_set(path, state_of(path), channels.width > 3).item(item)
        case ".npz":
            return read_npz(path, channels.width > 3)
        case ".pt":
            return Geometry(read_tensors(path))
        case suffix if suffix in TEXT_SUFFIXES:
            with open_regular(path) as stream:
                found = read_columns(stream.read(), note, channels.width > 3)
            # Leica's format: the intensity precedes the colour.
            if suffix == ".pts" and found.points.shape[1] == 7 and SKIPPED not in (channels.columns or ()):
                found = replace(found, points=np.delete(found.points, 3, axis=1))
            return found
        case suffix if suffix in scans.SUFFIXES:
            return scans.read_scan(path, channels.width > 3, item)
        case ".pcd":
            with open_regular(path) as stream:
                return read_pcd(stream.read())
        case other:
            got = printable(other) or "no suffix"
            raise ValueError(f"a shape must be one of {' '.join(SET_SUFFIXES)}, got {got}")


@lru_cache(maxsize=1)
def _whole_set(path: Path, state: tuple[int, ...], more: bool) -> Geometry:
    """A set that can only be read whole, kept for its next item: reading it for each would take the square of its size.

    Args:
        state: of the file, see `scans.state_of`.
    """
    return read_npz(path, more) if path.suffix.lower() == ".npz" else Geometry(read_tensors(path))


def count_shapes(path: Path) -> int | None:
    """Number of clouds in a file with a set (S, N, 3); None if it is one shape or unreadable."""
    if path.suffix.lower() not in (".npy", ".npz", ".pt", ".h5", ".hdf5"):
        return None
    try:
        if path.suffix.lower() in (".h5", ".hdf5"):
            with open_regular(path) as stream:
                if (count := scans.count_clouds(stream)) is not None:
                    check_items(count, path)
                return count
        array = read_file_of_points(path, lambda _: None).points
    except Exception:  # reported when it is read
        return None
    return len(array) if array.ndim == 3 else None


def may_be_shape(path: Path) -> bool:
    """Whether a file may be a shape, by its suffix, and for text by its beginning: a README is no unreadable cloud."""
    suffix = path.suffix.lower()
    if suffix not in TEXT_SUFFIXES or suffix in (".xyz", ".pts"):
        return suffix in SET_SUFFIXES
    try:
        with open_regular(path) as stream:
            return is_columns(stream.read(2**16))
    except (OSError, ValueError):
        return True


def about(path: Path) -> Note:
    """Print notes about a file on stderr, with its name."""
    return lambda text: tell(f"{path}: {text}")


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Convert any exception of a parser into one ValueError that names the file."""
    try:
        with np.errstate(all="ignore"):  # NaN and infinity are refused or counted
            yield
    except Exception as error:
        if isinstance(error, OSError) and str(error.filename) == str(path):
            raise
        reason = printable(next(iter(str(error).splitlines()), "").removeprefix(f"{path} ")[:200])
        if long := _DIGITS.search(str(error)):
            reason = f"it holds a number of {long[1]} digits"
        if not isinstance(error, ValueError):
            reason = f"not a readable {printable(path.suffix[1:])} file ({type(error).__name__}: {reason})"
        raise ValueError(f"{printable(path)}: {reason}") from error
