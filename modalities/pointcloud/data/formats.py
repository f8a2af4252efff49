"""Files of points and meshes: whatever a person brings is read here, and written atomically."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Shaped

from ditmoe.checkpoint import LazyTensor, open_file, replacing
from ditmoe.modality import Samples
from ditmoe.outside import Arrays, files_below, load_array, may_hold, open_regular, printable, tell
from modalities.pointcloud.data import gltf, scans
from modalities.pointcloud.data.channels import SKIPPED, XYZ, Channels, Geometry, directions
from modalities.pointcloud.data.obj import read_obj
from modalities.pointcloud.data.off import read_off
from modalities.pointcloud.data.pcd import read_pcd
from modalities.pointcloud.data.ply import read_ply
from modalities.pointcloud.data.polygons import triangulate
from modalities.pointcloud.data.scene import Scene
from modalities.pointcloud.data.stl import read_stl
from modalities.pointcloud.data.text import is_columns, read_columns
from modalities.shared.understood import KIND, Ignored

TEXT_SUFFIXES = (".xyz", ".txt", ".csv", ".asc", ".pts")
CLOUD_SUFFIXES = (".npy", ".npz", ".ply", *TEXT_SUFFIXES, ".pcd", ".pt")
MESH_SUFFIXES = (".obj", ".ply", ".stl", ".glb", ".gltf", ".off")
TENSORS = ("points", "samples", "sample", "generated", "gen", "pred", "reference", "ref")
"""Under which names programs of others keep a set in a .pt."""
OURS, SURFACES = "samples.png", "meshes.json"
"""What `sample` writes beside the clouds, and `mesh` beside the meshes."""
FARTHEST = 1e18
"""Coordinates beyond it have squares that a float32 cannot hold."""
SET_SUFFIXES = tuple(dict.fromkeys((*CLOUD_SUFFIXES, *MESH_SUFFIXES, *scans.SUFFIXES)))
ARRAYS = ("points", "coords", "xyz", "pos", "pointcloud", "pc", "data")
"""Under which names programs of others keep points in a .npz."""
MESH_ARRAYS = ("vertices", "faces")
"""Of a mesh in a .npz, where there are no points."""
MOST_COLUMNS = 12
"""Of a cloud: coordinates, colours, normals and some more; an array of more columns is no cloud."""
MANY = 50
"""Meshes of a folder that take a while to be sampled."""
Note = Callable[[str], object]
"""Who is told what was left out of a file that was read."""


@dataclass(frozen=True)
class ReadSet(Samples):
    """A set from a folder, some of which could not be read or has far too few points."""

    left_out: int = 0


def read_points(path: Path, note: Note | None = None, channels: Channels = XYZ) -> Float[np.ndarray, "N C"]:
    """Read one cloud, of any format that can hold one; of a PLY with faces its vertices.

    Rows of NaN or infinity are left out and counted in a note. float32, or float64 where float32 would change the form
    of a cloud that is far from the origin.

    Raises:
        OSError, ValueError: one sentence that names the file, where its content is not a cloud (N, 3 or more), or
            has not the channels.
    """
    note = note or _about(path)
    with _blaming(path):
        geometry = _geometry(path, note, channels)
        if geometry.faces is not None and path.suffix.lower() != ".ply":
            raise ValueError(
                "a cloud must have points alone, got a mesh (`ditmoe.prepare` draws points from it)"
            )
        return narrowed(_checked(geometry, note=note, channels=channels))


def read_cloud(
    path: Path, num_points: int, note: Note | None = None, channels: Channels = XYZ
) -> Float[np.ndarray, "N C"]:
    """All points of a cloud of any format, of a PLY its vertices, or so many drawn from the surface of another mesh.

    Errors are those of `read_points`. Columns of channels that the file lacks are NaN.
    """
    channels, note = replace(channels, optional=True), note or _about(path)
    with _blaming(path):
        geometry = _geometry(path, note, channels)
        rng, suffix = np.random.default_rng(0), path.suffix.lower()
        if geometry.faces is not None and suffix != ".ply":
            there = channels.found_in(geometry, mesh=True)
            return narrowed(channels.spread(_sampled(geometry, num_points, rng, there), there))
        cloud = _of_cloud(geometry, note, channels)
        if suffix in MESH_SUFFIXES and suffix != ".ply":
            return cloud[rng.permutation(len(cloud))[:num_points]]
        return cloud


def as_cloud(
    points: Shaped[np.ndarray, "..."], note: Note, channels: Channels = XYZ
) -> Float[np.ndarray, "N C"]:
    """An array as `read_cloud` gives a file's."""
    return _of_cloud(Geometry(points), note, replace(channels, optional=True))


def _of_cloud(geometry: Geometry, note: Note, channels: Channels) -> Float[np.ndarray, "N C"]:
    """All points with the channels, those NaN that it lacks."""
    if geometry.points.dtype.names:
        geometry = _of_fields(geometry.points)
    there = channels.found_in(geometry) if geometry.points.ndim > 1 else XYZ  # which is refused
    return narrowed(channels.spread(_checked(geometry, note=note, channels=there), there))


def read_surface(
    path: Path,
    num_points: int,
    seed: int,
    note: Note | None = None,
    item: int | None = None,
    channels: Channels = XYZ,
) -> Float64[np.ndarray, "N C"]:
    """Draw points from a shape: uniformly by area from a mesh, without replacement from a cloud.

    Meshes are .obj .ply .stl .glb .gltf .off, with all parts of a scene in place; without faces they are clouds, as are
    the formats of `read_points`. N is `num_points`, or less where a cloud has less. Double precision, since a model far
    from the origin would lose its shape before it is centred. Errors and notes as in `read_points`; a mesh must also
    have a surface. Colours of a mesh are those of its vertices, between them interpolated; normals those of its faces.

    Args:
        item: which cloud of a file that holds a set (S, N, 3).
        channels: what is read of each point.
    """
    rng, note = np.random.default_rng(seed), note or _about(path)
    with _blaming(path):
        geometry = _geometry(path, note, channels, item)
        if geometry.faces is None:
            cloud = _checked(geometry, note=note, channels=channels)
            return cloud[rng.permutation(len(cloud))[:num_points]]
        return _sampled(geometry, num_points, rng, channels)


def count_shapes(path: Path) -> int | None:
    """How many clouds a file holds that is a set (S, N, 3); None where it is one shape, or cannot be read."""
    if path.suffix.lower() not in (".npy", ".npz", ".pt", ".h5", ".hdf5"):
        return None
    try:
        if path.suffix.lower() in (".h5", ".hdf5"):
            with open_regular(path) as stream:
                return scans.count_clouds(stream)
        array = _points(path, lambda _: None).points
    except Exception:  # told when it is read
        return None
    return len(array) if array.ndim == 3 else None


def without_surfaces(files: Iterable[Path]) -> list[Path]:
    """Files, but for the surfaces that `mesh` made of clouds among them, into a folder beside these."""
    found = list(files)
    names = {path.with_suffix("") for path in found}
    made = {path.parent for path in found if path.name == SURFACES}
    return [path for path in found if path.parent not in made or path.parents[1] / path.stem not in names]


def may_be_shape(path: Path) -> bool:
    """By its suffix, and a text by its beginning: a README is no cloud that cannot be read."""
    suffix = path.suffix.lower()
    if suffix not in TEXT_SUFFIXES or suffix in (".xyz", ".pts"):
        return suffix in SET_SUFFIXES
    try:
        with open_regular(path) as stream:
            return is_columns(stream.read(2**16))
    except (OSError, ValueError):
        return True


def narrowed(points: Float[np.ndarray, "*S N C"]) -> Float[np.ndarray, "*S N C"]:
    """Points as float32, or as they are where that would round places by more than a millionth of their extent."""
    low, high = (of(points[..., :3].reshape(-1, 3), axis=0) for of in (np.min, np.max))
    step = float(np.abs([low, high]).max()) * np.finfo(np.float32).eps
    # Of what lies around the origin, a step is at most an eighth of a millionth.
    return points if step > 1e-6 * float((high - low).max()) else points.astype(np.float32)


def sample_surface(
    vertices: Float[np.ndarray, "V C"],
    faces: Int[np.ndarray, "F 3"],
    num_points: int,
    rng: np.random.Generator,
    normals: bool = False,
) -> Float64[np.ndarray, "N D"]:
    """Draw points uniformly by area from triangles; ValueError where there is no surface to draw from.

    Args:
        vertices: x, y, z and what is interpolated like them.
        normals: give behind that, as three more columns, the normals of the triangles.
    """
    if not len(faces):
        raise ValueError("a mesh must have faces, got none")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"faces must name {len(vertices)} vertices, got {faces.min()}..{faces.max()}")
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    with np.errstate(all="ignore"):
        across = np.cross((b - a)[:, :3], (c - a)[:, :3])
        ends = np.linalg.norm(across, axis=1).cumsum()
    if not np.isfinite(ends[-1]):
        raise ValueError("the vertices of a mesh must be finite, got NaN, infinity or an overflow")
    if ends[-1] <= 0:
        raise ValueError(f"a mesh must have a surface, got {len(faces)} faces of zero area")
    pick = np.searchsorted(ends, rng.random(num_points) * ends[-1], side="right").clip(max=len(faces) - 1)
    u, v = rng.random((2, num_points, 1))
    u, v = np.where(u + v > 1, (1 - u, 1 - v), (u, v))
    points = a[pick] + u * (b - a)[pick] + v * (c - a)[pick]
    return np.concatenate([points, directions(across[pick])], axis=1) if normals else points


def _sampled(
    geometry: Geometry, num_points: int, rng: np.random.Generator, channels: Channels
) -> Float64[np.ndarray, "N C"]:
    """Points of a mesh with their channels."""
    channels, faces = channels.found_in(geometry, mesh=True), np.asarray(geometry.faces)
    beside = channels.beside(geometry, mesh=True)
    if any(not np.isfinite(values[faces]).all() for values in beside):
        raise ValueError("the colours of a mesh must be finite, got NaN or infinity")
    vertices = np.concatenate([geometry.points, *beside], axis=1) if beside else geometry.points
    return sample_surface(vertices, faces, num_points, rng, "normals" in channels.names)


def read_set(path: Path, num_points: int = 2048, seed: int = 0, channels: Channels = XYZ) -> Samples:
    """Read a set of clouds made elsewhere.

    A .npz has `points` (S, N, 3), or one array of any name, and may have `labels` (S,); a .npy has (S, N, 3),
    and a .pt the same, a list of (N_i, 3), or either in a dictionary; one cloud alone is a set of one. A folder
    has a cloud in each .ply .npy .xyz .obj, in the order of their paths, or several in a .npy (S, N, 3); of a mesh
    `num_points` are drawn. Clouds of unequal counts are brought to the smallest by a random draw without replacement,
    and stderr says so; of a folder, those of less than a tenth of the median are left out. Unreadable
    files in a folder are named there too and left out; ValueError where none is left.
    """
    if path.is_dir():
        return _read_folder(path, num_points, seed)
    with _blaming(path):
        geometry = _geometry(path, _about(path), channels)
        if geometry.faces is not None:
            drawn = _sampled(geometry, num_points, np.random.default_rng(seed), channels)
            _checked(Geometry(drawn[:, :3]))
            return Samples(narrowed(drawn)[None])
        labels = _npz_labels(path) if path.suffix.lower() == ".npz" else None
        one = geometry.points.ndim < 3
        data = _checked(geometry, 2 if one else 3, _about(path), channels)
        data = narrowed(data[None] if one else data)
        if labels is None:
            return Samples(data)
        if labels.shape != data.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be {len(data)} integers, got {labels.dtype} of {labels.shape}")
        return Samples(data, labels.astype(np.int64))


def write_npy(path: Path, points: Shaped[np.ndarray, "..."]) -> None:
    """Write an array as .npy, whole or not at all."""
    with replacing(path) as stream:
        np.save(stream, points, allow_pickle=False)


def write_npz(path: Path, samples: Samples, channels: Channels = XYZ) -> None:
    """Write a set as `read_set` reads it, whole or not at all: `points` and maybe `rgb`, `normals` and `labels`."""
    arrays = {} if samples.labels is None else {"labels": samples.labels}
    arrays |= {name: samples.data[..., channels.at(name)] for name in channels.names[1:]}
    with replacing(path) as stream:
        np.savez(stream, points=samples.data[..., :3], up=np.array("y"), **arrays)  # type: ignore[arg-type]


def _about(path: Path) -> Note:
    return lambda text: tell(f"{path}: {text}")


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


def _checked(
    geometry: Geometry, ndim: int = 2, note: Note | None = None, channels: Channels = XYZ
) -> Float64[np.ndarray, "*S N C"]:
    """A copy of the channels of finite points in double precision.

    Args:
        note: is told how many rows with NaN or infinity were left out; where there is none they are refused.
    """
    if geometry.points.dtype.names:
        geometry = _of_fields(geometry.points)
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


def _of_fields(rows: np.ndarray) -> Geometry:
    """Of an array with names for its columns."""
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


def _points(path: Path, note: Note, channels: Channels = XYZ, item: int | None = None) -> Geometry:
    """What is in a file of points, or of one item of a set; unchecked."""
    match path.suffix.lower():
        case ".npy":
            return Geometry(load_array(path, item))
        case ".npz":
            return _npz(path, channels.width > 3).item(item)
        case ".pt":
            return Geometry(_tensors(path)).item(item)
        case suffix if suffix in TEXT_SUFFIXES:
            with open_regular(path) as stream:
                found = read_columns(stream.read(), note, channels.width > 3)
            # Leica's: the intensity stands before the colour.
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
            raise ValueError(f"a cloud must be one of {' '.join(CLOUD_SUFFIXES)}, got {got}")


def _npz(path: Path, more: bool) -> Geometry:
    """The points of an archive; if there is to be more, also their colours and normals."""
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
        if more and rgb is None and all(name in archive for name in "RGB"):  # of Point-E
            rgb = np.stack([archive[name] for name in "RGB"], axis=-1)
        return Geometry(archive[(known or others)[0]], rgb=rgb, normals=normals)


def _check_doubles(archive: Arrays, path: Path) -> None:
    """Bytes become numbers of double precision here, which are eight times what an archive may hold."""
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
    points = _checked(Geometry(vertices))
    corners = faces.astype(np.int64).reshape(-1)
    return Geometry(points, triangulate(points, np.full(len(faces), faces.shape[1]), corners))


def _npz_labels(path: Path) -> np.ndarray | None:
    with Arrays(path) as archive:
        return archive.get("labels")


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
        return _equalised([narrowed(_checked(Geometry(_dense(tensor)))) for tensor in content], 0, path)
    return _dense(content)


def _check_sizes(tensors: Sequence[object], path: Path) -> None:
    """One tensor may be in a list a million times."""
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


def _geometry(path: Path, note: Note, channels: Channels = XYZ, item: int | None = None) -> Geometry:
    """What a file holds, of a scene all that it shows; unchecked."""
    suffix = path.suffix.lower()
    if suffix in (".glb", ".gltf"):
        tree, inner, size = gltf.check(path)
        return Scene(tree, inner, gltf.Beside(path.parent)).geometry(size, note, channels.width > 3)
    if suffix not in MESH_SUFFIXES:
        return _points(path, note, channels, item)
    with open_regular(path) as stream:
        return _READERS[suffix](stream.read(), note)


_READERS = {".obj": read_obj, ".ply": read_ply, ".stl": read_stl, ".off": read_off}


def _read_folder(folder: Path, num_points: int, seed: int) -> Samples:
    ignored = Ignored()
    seen = []
    for path in without_surfaces(files_below(folder, hidden=True, special=True, skip=ignored.is_hidden)):
        if may_be_shape(path):
            seen.append(path)
        elif path.name != OURS:
            ignored.add(KIND, path.name)
    for line in ignored.lines():
        tell(f"{folder}: ignored {line}", sys.stdout)
    # One shape may lie there in several formats, as `sample` writes it; .npy, the last to enter, is read.
    seen.sort(key=lambda path: (path.suffix.lower() == ".npy", path))
    files = sorted({path.with_suffix(""): path for path in seen}.values())
    names: list[str] = []
    clouds: list[np.ndarray] = []
    errors: list[str] = []
    meshes = 0
    for i, path in enumerate(files):
        name = printable(path.relative_to(folder).with_suffix("").as_posix())
        try:
            with _blaming(path):
                geometry = _geometry(path, _about(path))
                if geometry.faces is not None:
                    meshes += 1
                    geometry = Geometry(_sampled(geometry, num_points, np.random.default_rng([seed, i]), XYZ))
                ndim = min(max(geometry.points.ndim, 2), 3)
                found = narrowed(_checked(geometry, ndim, _about(path)))
        except (ValueError, OSError) as error:
            errors.append(str(error))
            continue
        clouds += list(found) if ndim == 3 else [found]
        names += [f"{name}/{item:04d}" for item in range(len(found))] if ndim == 3 else [name]
    if not clouds:
        got = f"{len(errors)} unreadable files, the first: {errors[0]}" if errors else "no such file"
        raise ValueError(f"{printable(folder)} must hold clouds ({' '.join(SET_SUFFIXES)}), got {got}")
    for told in errors[:5]:
        tell(told)
    if meshes >= MANY:
        tell(f"{folder}: {meshes} meshes are sampled anew each time; `python -m ditmoe.prepare` does it once")
    if errors:
        tell(f"{folder}: {len(errors)} of {len(files)} files were unreadable and left out")
    few = _far_fewer(clouds)
    if few:
        first, least = names[min(few)], len(clouds[min(few)])
        tell(
            f"{folder}: {len(few)} of {len(clouds)} clouds have less than a tenth of the points of most others and "
            f"are left out, the first: {first} of {least}"
        )
    kept = [i for i in range(len(clouds)) if i not in few]
    data = _equalised([clouds[i] for i in kept], seed, folder)
    return ReadSet(data, names=[names[i] for i in kept], left_out=len(errors) + len(few))


def _far_fewer(clouds: Sequence[np.ndarray]) -> set[int]:
    """Those of less than a tenth of the usual points: all others would have to be drawn down to them."""
    usual = np.median([len(points) for points in clouds])
    return {i for i, points in enumerate(clouds) if len(points) < usual / 10}


def _equalised(clouds: Sequence[np.ndarray], seed: int, place: Path) -> np.ndarray:
    """All clouds with as many points as the smallest has, drawn from the larger ones."""
    sizes = [len(points) for points in clouds]
    least, most = min(sizes), max(sizes)
    if least < most:
        tell(f"{place}: clouds have {least} to {most} points, {least} of each were drawn")
    rng = np.random.default_rng(seed)
    return np.stack([p if len(p) == least else rng.choice(p, least, replace=False) for p in clouds])
