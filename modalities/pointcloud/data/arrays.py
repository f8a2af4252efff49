"""Reads clouds from NumPy arrays and torch tensors, under the names that other programs use."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ditmoe.checkpoint import LazyTensor, open_file
from ditmoe.outside import Arrays, may_hold, printable, tell
from modalities.pointcloud.data import scans
from modalities.pointcloud.data.channels import Geometry
from modalities.pointcloud.data.points import checked, narrowed
from modalities.pointcloud.data.polygons import triangulate

TENSORS = ("points", "samples", "sample", "generated", "gen", "pred", "reference", "ref")
"""Names under which other programs store a set in a .pt."""
ARRAYS = ("points", "coords", "xyz", "pos", "pointcloud", "pc", "data")
"""Names under which other programs store points in a .npz."""
MESH_ARRAYS = ("vertices", "faces")
"""Names of the arrays of a mesh in a .npz, used if there are no points."""


def read_npz(path: Path, more: bool) -> Geometry:
    """The points of an archive, and with `more` also colours and normals."""
    with Arrays(path) as archive:
        _check_doubles(archive, path)
        others = [key for key in archive if key != "labels"]
        known = [key for key in ARRAYS if key in archive]
        if not known and all(key in archive for key in MESH_ARRAYS):
            return _arrays_of_mesh(*(archive[key] for key in MESH_ARRAYS))
        if not known and len(others) != 1:
            raise ValueError(
                f"an npz must hold one of the keys {', '.join(ARRAYS)}, got {', '.join(archive) or 'no key'}"
            )
        rgb, normals = (
            next((archive[name] for name in names if more and name in archive), None)
            for names in (scans.COLOURS, scans.NORMALS)
        )
        if more and rgb is None and all(name in archive for name in "RGB"):  # Point-E's format
            rgb = np.stack([archive[name] for name in "RGB"], axis=-1)
        return Geometry(archive[(known or others)[0]], rgb=rgb, normals=normals)


def _check_doubles(archive: Arrays, path: Path) -> None:
    """Refuse archives that become too large as float64, eight times the size of their bytes."""
    for name in archive:
        size = 8 * math.prod(archive.about(name)[0])
        if size > may_hold(path.stat().st_size):
            raise ValueError(f"an npz must not be a bomb: {printable(name)} would be {size} bytes of numbers")


def _arrays_of_mesh(vertices: np.ndarray, faces: np.ndarray) -> Geometry:
    """A mesh of vertices (V, 3) and faces (F, K) of K corners each."""
    if vertices.ndim != 2 or faces.ndim != 2 or faces.dtype.kind not in "iu" or not 3 <= faces.shape[1] <= 4:
        raise ValueError(
            "a mesh must have vertices (V, 3) and faces (F, 3) or (F, 4) of integers, got "
            f"{vertices.shape} and {faces.dtype} of {faces.shape}"
        )
    points = checked(Geometry(vertices))
    corners = faces.astype(np.int64).reshape(-1)
    return Geometry(points, triangulate(points, np.full(len(faces), faces.shape[1]), corners))


def npz_labels(path: Path) -> np.ndarray | None:
    """The class labels of the clouds in an archive, if any."""
    with Arrays(path) as archive:
        return archive.get("labels")


def read_tensors(path: Path) -> np.ndarray:
    """Read a tensor, or a list of clouds subsampled to one size, by itself or in a dictionary."""
    content = open_file(path)
    if isinstance(content, dict):
        named = [name for name in TENSORS if name in content] or (list(content) if len(content) == 1 else [])
        if len(named) != 1:
            raise ValueError(
                f"a .pt of several tensors must hold just one of {', '.join(TENSORS)}, got "
                f"{', '.join(map(str, content)) or 'none'}"
            )
        tensors = {str(key) for key, value in content.items() if isinstance(value, LazyTensor)}
        if others := sorted(tensors - {str(named[0])}):
            tell(f"{path}: {named[0]} is read as it is, without {', '.join(others)}")
        content = content[named[0]]
    if isinstance(content, (list, tuple)) and content:
        _check_sizes(content, path)
        return equalised([narrowed(checked(Geometry(_dense(tensor)))) for tensor in content], 0, path)
    return _dense(content)


def _check_sizes(tensors: Sequence[object], path: Path) -> None:
    """Limit the total size, since a list may contain the same tensor a million times."""
    size = sum(math.prod(tensor.shape) * 8 for tensor in tensors if isinstance(tensor, LazyTensor))
    if size > may_hold(path.stat().st_size):
        raise ValueError(
            f"a .pt must hold the clouds of its list, got {size} bytes of them in a smaller file"
        )


def _dense(tensor: object) -> np.ndarray:
    if not isinstance(tensor, LazyTensor) or tensor.dtype.is_complex:
        got = type(tensor).__name__ if not isinstance(tensor, LazyTensor) else tensor.dtype
        raise ValueError(f"a .pt must hold one dense tensor of real numbers, got {got}")
    return tensor.read().to(torch.float64).numpy()


def equalised(clouds: Sequence[np.ndarray], seed: int, place: Path) -> np.ndarray:
    """Subsample all clouds to the size of the smallest."""
    sizes = [len(points) for points in clouds]
    least, most = min(sizes), max(sizes)
    if least < most:
        tell(f"{place}: clouds have {least} to {most} points, {least} of each were drawn")
    rng = np.random.default_rng(seed)
    return np.stack([p if len(p) == least else rng.choice(p, least, replace=False) for p in clouds])
