"""Files of points and meshes: whatever a person brings is read here, and written atomically."""

import io
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Shaped
from numpy.typing import DTypeLike

from ditmoe.checkpoint import LazyTensor, open_file, replacing
from ditmoe.modality import Samples
from ditmoe.outside import Arrays, files_below, map_array, may_hold, open_regular, printable, tell
from modalities.pointcloud.data import gltf
from modalities.pointcloud.data.ply import has_faces, read_columns, read_vertices

CLOUD_SUFFIXES = (".npy", ".npz", ".ply", ".xyz", ".txt", ".pts", ".pt")
MESH_SUFFIXES = (".obj", ".ply", ".stl", ".glb", ".gltf", ".off")
TENSORS = ("points", "samples", "sample", "generated", "gen", "pred", "reference", "ref")
"""Under which names programs of others keep a set in a .pt."""
FARTHEST = 1e18
"""Coordinates beyond it have squares that a float32 cannot hold."""
SET_SUFFIXES = (".ply", ".npy", ".xyz", ".obj")


@dataclass(frozen=True)
class ReadSet(Samples):
    """A set from a folder, some files of which could not be read."""

    left_out: int = 0


def read_points(path: Path) -> Float32[np.ndarray, "N 3"]:
    """Read one cloud: .npy, .npz (key `points`), .ply (vertices), .xyz .txt .pts (columns), .pt (tensor).

    Raises ValueError, one sentence that names the file, where its content is not a finite (N, 3) cloud.
    """
    with _blaming(path):
        return _checked(_points(path))


def read_surface(path: Path, num_points: int, seed: int) -> Float64[np.ndarray, "N 3"]:
    """Draw points from a shape: uniformly by area from a mesh, without replacement from a cloud.

    Meshes are .obj .ply .stl .glb .gltf .off, with all parts of a scene in place; a .ply or .obj without
    faces is a cloud, as are the formats of `read_points`. N is `num_points`, or less where a cloud has less.
    Double precision, since a model far from the origin would lose its shape before it is centred.
    Errors as in `read_points`; a mesh must also have a surface.
    """
    rng = np.random.default_rng(seed)
    with _blaming(path):
        vertices, faces = _mesh(path)
        if faces is None:
            cloud = _checked(vertices, np.float64)
            return cloud[rng.permutation(len(cloud))[:num_points]]
        return sample_surface(vertices, faces, num_points, rng)


def sample_surface(
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    num_points: int,
    rng: np.random.Generator,
) -> Float64[np.ndarray, "N 3"]:
    """Draw points uniformly by area from triangles; ValueError where there is no surface to draw from."""
    if not len(faces):
        raise ValueError("a mesh must have faces, got none")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"faces must name {len(vertices)} vertices, got {faces.min()}..{faces.max()}")
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    with np.errstate(all="ignore"):
        ends = np.linalg.norm(np.cross(b - a, c - a), axis=1).cumsum()
    if not np.isfinite(ends[-1]):
        raise ValueError("the vertices of a mesh must be finite, got NaN, infinity or an overflow")
    if ends[-1] <= 0:
        raise ValueError(f"a mesh must have a surface, got {len(faces)} faces of zero area")
    pick = np.searchsorted(ends, rng.random(num_points) * ends[-1], side="right").clip(max=len(faces) - 1)
    u, v = rng.random((2, num_points, 1))
    u, v = np.where(u + v > 1, (1 - u, 1 - v), (u, v))
    return a[pick] + u * (b - a)[pick] + v * (c - a)[pick]


def read_set(path: Path, num_points: int = 2048, seed: int = 0) -> Samples:
    """Read a set of clouds made elsewhere.

    A .npz has `points` (S, N, 3), or one array of any name, and may have `labels` (S,); a .npy has (S, N, 3),
    and a .pt the same, a list of (N_i, 3), or either in a dictionary; one cloud alone is a set of one. A folder
    has a cloud in each .ply .npy .xyz .obj, in the order of their paths; of a mesh `num_points` are drawn.
    Clouds of unequal counts are brought to the smallest by a random draw without replacement, and stderr says
    so. Unreadable files in a folder are named there too and left out; ValueError where none is left.
    """
    if path.is_dir():
        return _read_folder(path, num_points, seed)
    with _blaming(path):
        arrays = _npz(path) if path.suffix.lower() == ".npz" else {"points": _points(path)}
        data, labels = arrays["points"], arrays.get("labels")
        data = _checked(data[None] if data.ndim == 2 else data, ndim=3)
        if labels is None:
            return Samples(data)
        if labels.shape != data.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be {len(data)} integers, got {labels.dtype} of {labels.shape}")
        return Samples(data, labels.astype(np.int64))


def write_npy(path: Path, points: Shaped[np.ndarray, "..."]) -> None:
    """Write an array as .npy, whole or not at all."""
    with replacing(path) as stream:
        np.save(stream, points, allow_pickle=False)


def write_npz(path: Path, samples: Samples) -> None:
    """Write a set as `read_set` reads it, whole or not at all."""
    labels = {} if samples.labels is None else {"labels": samples.labels}
    with replacing(path) as stream:
        np.savez(stream, points=samples.data, **labels)  # type: ignore[arg-type]


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Whatever a parser throws at bad content leaves as one ValueError that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and str(error.filename) == str(path):
            raise
        reason = printable(next(iter(str(error).splitlines()), "").removeprefix(f"{path} ")[:200])
        if not isinstance(error, ValueError):
            reason = f"not a readable {printable(path.suffix[1:])} file ({type(error).__name__}: {reason})"
        raise ValueError(f"{printable(path)}: {reason}") from error


def _checked(points: np.ndarray, dtype: DTypeLike = np.float32, ndim: int = 2) -> np.ndarray:
    """A copy of finite points as `dtype`."""
    if points.dtype.kind not in "fiu" or points.ndim != ndim or points.shape[-1] != 3 or not points.size:
        shape = ("N, 3", "S, N, 3")[ndim - 2]
        turned = points.ndim > 1 and points.shape[-2] == 3
        hint = " (its last two axes must be swapped)" if turned and points.ndim == ndim else ""
        got = f"{points.dtype} of {points.shape}{hint}"
        raise ValueError(f"points must be numbers of shape ({shape}), got {got}")
    with np.errstate(over="ignore"):
        points = np.array(points, dtype)
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points)).any(-1).sum())
        raise ValueError(f"points must be finite, got {bad} of {points.size // 3} with NaN or infinity")
    if (farthest := max(points.max(), -points.min())) > FARTHEST:
        raise ValueError(f"coordinates must lie within {FARTHEST:g} of 0, got {farthest:g}")
    return points


def _points(path: Path) -> np.ndarray:
    """The array in a file of points, unchecked."""
    match path.suffix.lower():
        case ".npy":
            return map_array(path)
        case ".npz":
            return _npz(path)["points"]
        case ".pt":
            return _tensors(path)
        case ".ply":
            return read_vertices(path)
        case ".xyz" | ".txt" | ".pts":
            with open_regular(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig") as lines:
                return read_columns(lines)
        case other:
            got = printable(other) or "no suffix"
            raise ValueError(f"a cloud must be one of {' '.join(CLOUD_SUFFIXES)}, got {got}")


def _npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays `points` and, where there are, `labels`."""
    with Arrays(path) as archive:
        others = [key for key in archive if key != "labels"]
        name = "points" if "points" in archive or len(others) != 1 else others[0]
        if name not in archive:
            raise ValueError(f"an npz must hold the key 'points', got {', '.join(archive) or 'no key'}")
        labels = {"labels": archive["labels"]} if "labels" in archive else {}
        return {"points": archive[name], **labels}


def _tensors(path: Path) -> np.ndarray:
    """A tensor, or a list of clouds brought to one size, by itself or as what a dictionary has."""
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
        return _equalised([_checked(_dense(tensor)) for tensor in content], 0, path)
    return _dense(content)


def _check_sizes(tensors: Sequence[object], path: Path) -> None:
    """One tensor may be in a list a million times."""
    size = sum(math.prod(tensor.shape) * 4 for tensor in tensors if isinstance(tensor, LazyTensor))
    if size > may_hold(path.stat().st_size):
        raise ValueError(
            f"a .pt must hold the clouds of its list, got {size} bytes of them in a smaller file"
        )


def _dense(tensor: object) -> np.ndarray:
    if not isinstance(tensor, LazyTensor) or tensor.dtype.is_complex:
        got = type(tensor).__name__ if not isinstance(tensor, LazyTensor) else tensor.dtype
        raise ValueError(f"a .pt must hold one dense tensor of real numbers, got {got}")
    return tensor.read().to(torch.float32).numpy()


def _mesh(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Vertices and triangles of a whole scene; None for the triangles of a cloud."""
    suffix = path.suffix.lower()
    if suffix not in MESH_SUFFIXES or (suffix == ".ply" and not has_faces(path)):
        return _points(path), None
    if suffix in (".glb", ".gltf"):
        gltf.check(path)
    import trimesh  # takes a second, which only those who read meshes should wait for

    if not (logger := logging.getLogger("trimesh")).handlers:
        # Without a handler its warnings, stack traces among them, would go to stderr.
        logger.addHandler(logging.NullHandler())
    with open_regular(path) as stream:
        read = stream.read()
    content = io.BytesIO(_shape_of_obj(read) if suffix == ".obj" else read)
    beside: Any = gltf.Beside(path.parent)
    scene = trimesh.load_scene(
        content,
        file_type=suffix[1:],
        resolver=beside,
        process=False,
        skip_materials=True,
    )
    vertices, faces, count = [np.empty((0, 3))], [np.empty((0, 3), np.int64)], 0
    left = may_hold(path.stat().st_size)
    for node in sorted(scene.graph.nodes_geometry):
        transform, name = scene.graph[node]
        part = scene.geometry[name]
        if hasattr(part, "faces") or suffix == ".obj":
            left -= 24 * (len(part.vertices) + len(getattr(part, "faces", [])))
            if left < 0:
                raise ValueError("a scene must not show its parts so often that they fill the memory")
            vertices.append(trimesh.transform_points(part.vertices, transform))
            faces.append(np.reshape(getattr(part, "faces", []), (-1, 3)).astype(np.int64) + count)
            count += len(part.vertices)
    triangles = np.concatenate(faces)
    return np.concatenate(vertices), None if suffix == ".obj" and not len(triangles) else triangles


def _shape_of_obj(content: bytes) -> bytes:
    """The vertices of an OBJ and the corners of its faces, as one part: a shape has no more.

    trimesh looks at all vertices for each material, of which a small file can name thousands.
    """
    lines = content.replace(b"\r\n", b"\n").replace(b"\\\n", b" ")
    kept = re.findall(rb"(?m)^[ \t]*(?:v[ \t][^\n]*|f[ \t][^\n]*)", lines)
    return b"\n".join(re.sub(rb"/\S*", b"", line.strip()) if b"/" in line else line.strip() for line in kept)


def _read_folder(folder: Path, num_points: int, seed: int) -> Samples:
    seen = [path for path in files_below(folder, special=True) if path.suffix.lower() in SET_SUFFIXES]
    # One shape may lie there in several formats, as `sample` writes it; .npy, the last to enter, is read.
    seen.sort(key=lambda path: (path.suffix.lower() == ".npy", path))
    files = sorted({path.with_suffix(""): path for path in seen}.values())
    clouds: dict[Path, np.ndarray] = {}
    errors: list[str] = []
    for i, path in enumerate(files):
        try:
            with _blaming(path):
                points, faces = _mesh(path)
                if faces is not None:
                    points = sample_surface(points, faces, num_points, np.random.default_rng([seed, i]))
                clouds[path] = _checked(points)
        except (ValueError, OSError) as error:
            errors.append(str(error))
    if not clouds:
        got = f"{len(errors)} unreadable files, the first: {errors[0]}" if errors else "no such file"
        raise ValueError(f"{printable(folder)} must hold clouds ({' '.join(SET_SUFFIXES)}), got {got}")
    for told in errors[:5]:
        tell(told)
    if errors:
        tell(f"{folder}: {len(errors)} of {len(files)} files were unreadable and left out")
    names = [printable(path.relative_to(folder).with_suffix("").as_posix()) for path in clouds]
    return ReadSet(_equalised(list(clouds.values()), seed, folder), names=names, left_out=len(errors))


def _equalised(clouds: Sequence[np.ndarray], seed: int, place: Path) -> np.ndarray:
    """All clouds with as many points as the smallest has, drawn from the larger ones."""
    sizes = [len(points) for points in clouds]
    least, most = min(sizes), max(sizes)
    if least < most:
        tell(f"{place}: clouds have {least} to {most} points, {least} of each were drawn")
    rng = np.random.default_rng(seed)
    return np.stack([p if len(p) == least else rng.choice(p, least, replace=False) for p in clouds])
