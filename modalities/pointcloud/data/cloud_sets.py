"""Sets of clouds from other programs: a file of many, or a folder."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ditmoe.modality import Samples
from ditmoe.outside import files_below, printable, tell
from modalities.pointcloud.data.arrays import equalised, npz_labels
from modalities.pointcloud.data.channels import XYZ, Channels, Geometry
from modalities.pointcloud.data.parsing import SET_SUFFIXES, about, blaming, may_be_shape, read_geometry
from modalities.pointcloud.data.points import checked, narrowed
from modalities.pointcloud.data.triangles import sampled
from modalities.shared.understood import KIND, Ignored

OURS, SURFACES = "samples.png", "meshes.json"
"""Files that `sample` writes beside clouds, and `mesh` beside meshes."""
MANY = 50
"""Number of meshes in a folder from which the user is told that sampling takes a while."""


@dataclass(frozen=True)
class ReadSet(Samples):
    """A set from a folder, with the clouds that were unreadable or had far too few points."""

    left_out: int = 0


def read_set(path: Path, num_points: int = 2048, seed: int = 0, channels: Channels = XYZ) -> Samples:
    """Read a set of clouds from another program.

    A .npz has `points` (S, N, 3), or one array of any name, and may have `labels` (S,); a .npy has (S, N, 3),
    and a .pt the same, a list of (N_i, 3), or either in a dictionary; a single cloud is a set of one. A folder
    has a cloud in each .ply .npy .xyz .obj, in the order of their paths, or several in a .npy (S, N, 3); from a mesh
    `num_points` are sampled. Clouds of unequal size are subsampled to the smallest at random without replacement,
    and stderr says so; in a folder, those with less than a tenth of the median are left out. Unreadable
    files in a folder are also named there and left out; ValueError if none is left.
    """
    if path.is_dir():
        return _read_folder(path, num_points, seed)
    with blaming(path):
        geometry = read_geometry(path, about(path), channels)
        if geometry.faces is not None:
            drawn = sampled(geometry, num_points, np.random.default_rng(seed), channels)
            checked(Geometry(drawn[:, :3]))
            return Samples(narrowed(drawn)[None])
        labels = npz_labels(path) if path.suffix.lower() == ".npz" else None
        one = geometry.points.ndim < 3
        data = checked(geometry, 2 if one else 3, about(path), channels)
        data = narrowed(data[None] if one else data)
        if labels is None:
            return Samples(data)
        if labels.shape != data.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be {len(data)} integers, got {labels.dtype} of {labels.shape}")
        return Samples(data, labels.astype(np.int64))


def without_surfaces(files: Iterable[Path]) -> list[Path]:
    """Files without the surfaces that `mesh` wrote into a folder beside the clouds."""
    found = list(files)
    names = {path.with_suffix("") for path in found}
    made = {path.parent for path in found if path.name == SURFACES}
    return [path for path in found if path.parent not in made or path.parents[1] / path.stem not in names]


def _shapes_of(folder: Path) -> list[Path]:
    """One file for each shape below a folder, sorted by path; reports what else is there."""
    ignored = Ignored()
    seen = []
    for path in without_surfaces(files_below(folder, hidden=True, special=True, skip=ignored.is_hidden)):
        if may_be_shape(path):
            seen.append(path)
        elif path.name != OURS:
            ignored.add(KIND, path.name)
    for line in ignored.lines():
        tell(f"{folder}: ignored {line}", sys.stdout)
    # A shape may exist in several formats, as `sample` writes it; .npy is sorted last, so that it is read.
    seen.sort(key=lambda path: (path.suffix.lower() == ".npy", path))
    return sorted({path.with_suffix(""): path for path in seen}.values())


def _read_folder(folder: Path, num_points: int, seed: int) -> Samples:
    files = _shapes_of(folder)
    names: list[str] = []
    clouds: list[np.ndarray] = []
    errors: list[str] = []
    meshes = 0
    for i, path in enumerate(files):
        name = printable(path.relative_to(folder).with_suffix("").as_posix())
        try:
            with blaming(path):
                geometry = read_geometry(path, about(path))
                if geometry.faces is not None:
                    meshes += 1
                    geometry = Geometry(sampled(geometry, num_points, np.random.default_rng([seed, i]), XYZ))
                ndim = min(max(geometry.points.ndim, 2), 3)
                found = narrowed(checked(geometry, ndim, about(path)))
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
    data = equalised([clouds[i] for i in kept], seed, folder)
    return ReadSet(data, names=[names[i] for i in kept], left_out=len(errors) + len(few))


def _far_fewer(clouds: Sequence[np.ndarray]) -> set[int]:
    """Clouds with less than a tenth of the median points, to which all others would have to be subsampled."""
    usual = np.median([len(points) for points in clouds])
    return {i for i, points in enumerate(clouds) if len(points) < usual / 10}
