"""Reads point and mesh files of any supported format; writes atomically."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64, Shaped

from ditmoe.checkpoint import replacing
from ditmoe.modality import Samples
from modalities.pointcloud.data.channels import XYZ, Channels, Geometry
from modalities.pointcloud.data.cloud_sets import SURFACES, ReadSet, read_set, without_surfaces
from modalities.pointcloud.data.parsing import (
    CLOUD_SUFFIXES,
    MESH_SUFFIXES,
    SET_SUFFIXES,
    TEXT_SUFFIXES,
    about,
    blaming,
    count_shapes,
    may_be_shape,
    read_geometry,
)
from modalities.pointcloud.data.points import FARTHEST, Note, checked, narrowed, of_fields
from modalities.pointcloud.data.triangles import sample_surface, sampled

__all__ = [
    "CLOUD_SUFFIXES",
    "FARTHEST",
    "MESH_SUFFIXES",
    "SET_SUFFIXES",
    "SURFACES",
    "TEXT_SUFFIXES",
    "Note",
    "ReadSet",
    "as_cloud",
    "count_shapes",
    "may_be_shape",
    "narrowed",
    "read_cloud",
    "read_points",
    "read_set",
    "read_surface",
    "sample_surface",
    "without_surfaces",
    "write_npy",
    "write_npz",
]


def read_points(path: Path, note: Note | None = None, channels: Channels = XYZ) -> Float[np.ndarray, "N C"]:
    """Read one cloud from any format; for a PLY with faces, its vertices.

    Rows with NaN or infinity are left out and counted in a note. float32, or float64 if float32 would distort a
    cloud far from the origin.

    Raises:
        OSError, ValueError: one sentence that names the file, if its content is not a cloud (N, 3 or more), or lacks
            the channels.
    """
    note = note or about(path)
    with blaming(path):
        geometry = read_geometry(path, note, channels)
        if geometry.faces is not None and path.suffix.lower() != ".ply":
            raise ValueError(
                "a cloud must have points alone, got a mesh (`ditmoe.prepare` draws points from it)"
            )
        return narrowed(checked(geometry, note=note, channels=channels))


def read_cloud(
    path: Path, num_points: int, note: Note | None = None, channels: Channels = XYZ
) -> Float[np.ndarray, "N C"]:
    """All points of a cloud of any format, for a PLY its vertices; for another mesh, so many points of its surface.

    Errors as in `read_points`. Columns of missing channels are NaN.
    """
    channels, note = replace(channels, optional=True), note or about(path)
    with blaming(path):
        geometry = read_geometry(path, note, channels)
        rng, suffix = np.random.default_rng(0), path.suffix.lower()
        if geometry.faces is not None and suffix != ".ply":
            there = channels.found_in(geometry, mesh=True)
            return narrowed(channels.spread(sampled(geometry, num_points, rng, there), there))
        cloud = _of_cloud(geometry, note, channels)
        if suffix in MESH_SUFFIXES and suffix != ".ply":
            return cloud[rng.permutation(len(cloud))[:num_points]]
        return cloud


def as_cloud(
    points: Shaped[np.ndarray, "..."], note: Note, channels: Channels = XYZ
) -> Float[np.ndarray, "N C"]:
    """Convert an array to the form that `read_cloud` returns."""
    return _of_cloud(Geometry(points), note, replace(channels, optional=True))


def _of_cloud(geometry: Geometry, note: Note, channels: Channels) -> Float[np.ndarray, "N C"]:
    """All points with the channels, NaN for missing ones."""
    if geometry.points.dtype.names:
        geometry = of_fields(geometry.points)
    there = channels.found_in(geometry) if geometry.points.ndim > 1 else XYZ  # other shapes are refused
    return narrowed(channels.spread(checked(geometry, note=note, channels=there), there))


def read_surface(
    path: Path,
    num_points: int,
    seed: int,
    note: Note | None = None,
    item: int | None = None,
    channels: Channels = XYZ,
) -> Float64[np.ndarray, "N C"]:
    """Sample points of a shape: uniformly by area from a mesh, without replacement from a cloud.

    Meshes are .obj .ply .stl .glb .gltf .off, with all parts of a scene in place; without faces they are clouds, as are
    the formats of `read_points`. N is `num_points`, or less if a cloud has fewer. Double precision, since a model far
    from the origin would be distorted before centring. Errors and notes as in `read_points`; a mesh must also have a
    surface. Colours of a mesh are interpolated from its vertices; normals are those of its faces.

    Args:
        item: which cloud of a file that holds a set (S, N, 3).
        channels: channels to read.
    """
    rng, note = np.random.default_rng(seed), note or about(path)
    with blaming(path):
        geometry = read_geometry(path, note, channels, item)
        if geometry.faces is None:
            cloud = checked(geometry, note=note, channels=channels)
            return cloud[rng.permutation(len(cloud))[:num_points]]
        return sampled(geometry, num_points, rng, channels)


def write_npy(path: Path, points: Shaped[np.ndarray, "..."]) -> None:
    """Write an array as .npy, atomically."""
    with replacing(path) as stream:
        np.save(stream, points, allow_pickle=False)


def write_npz(path: Path, samples: Samples, channels: Channels = XYZ) -> None:
    """Write a set for `read_set`, atomically: `points` and possibly `rgb`, `normals` and `labels`."""
    arrays = {} if samples.labels is None else {"labels": samples.labels}
    arrays |= {name: samples.data[..., channels.at(name)] for name in channels.names[1:]}
    with replacing(path) as stream:
        np.savez(stream, points=samples.data[..., :3], up=np.array("y"), **arrays)  # type: ignore[arg-type]
