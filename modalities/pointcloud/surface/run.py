"""`python -m ditmoe.mesh`: reconstructs, measures and renders the surfaces of a file or a folder of clouds."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ditmoe.checkpoint import replacing
from ditmoe.outside import file_names, files_below, printable, read_json, tell
from modalities.pointcloud.data import scans
from modalities.pointcloud.data.axes import still_to_turn, turned
from modalities.pointcloud.data.channels import CHANNELS, Channels
from modalities.pointcloud.data.formats import CLOUD_SUFFIXES, SURFACES, may_be_shape, read_points, read_set
from modalities.pointcloud.surface.files import write_glb, write_obj
from modalities.pointcloud.surface.measure import measure
from modalities.pointcloud.surface.mesh import Mesh
from modalities.pointcloud.surface.reconstruct import Options, reconstruct
from modalities.pointcloud.viz.raster import render_mesh
from modalities.pointcloud.viz.render import class_color
from modalities.pointcloud.viz.turntable import write_turntable
from modalities.shared import lay_out, save_png
from modalities.shared.contact_sheet import class_of

EACH = (".glb", ".obj", ".gif", ".mp4")
"""Endings of the files of one cloud."""
ENDINGS = (*EACH, ".png")
RECORDED = {"resolution", "smoothing", "files", "meshes"}
"""Entries of every record."""
MOST_DRAWN = 64
SUFFIXES = (*CLOUD_SUFFIXES, *scans.SUFFIXES)


@dataclass(frozen=True)
class Cloud:
    """A cloud to be meshed: `label` is the class index, if its file has one."""

    name: str
    points: np.ndarray
    rgb: np.ndarray | None = None
    normals: np.ndarray | None = None
    label: int | None = None


def mesh_clouds(
    source: Path,
    out: Path,
    options: Options,
    turntable: bool = False,
    columns: tuple[str, ...] | None = None,
    up: str = "y",
    classes: Mapping[int, str] | None = None,
    most: int | None = None,
) -> list[Path]:
    """Write a GLB and an OBJ of each cloud, a picture of all and `meshes.json`, which records how well each fits.

    Args:
        source: a cloud, a set, or a folder of these.
        out: a new or empty folder, or one written by an earlier call, whose files are replaced, but no others.
        turntable: also render each from all sides.
        columns: channels of unnamed columns.
        up: the up axis of the clouds.
        classes: names of labels.
        most: limit on clouds: a file of 100 KB can hold as many as take days.
    Returns:
        The files written, the picture first.
    Raises:
        ValueError, OSError: with one line, if no cloud has a surface, or there are too many.
    """
    before = check_out(out)
    names: list[str] = []
    tiles: list[UInt8[np.ndarray, "H W 3"]] = []
    rows: list[dict[str, Any]] = []
    written: list[str] = []
    errors: list[str] = []
    clouds = _at_most(_clouds(source, columns, up, errors), most, source)
    taken = file_names([cloud.name for cloud in clouds], taken=("meshes",))
    planned = {"meshes.png", *(f"{name}{ending}" for name in taken for ending in EACH)}
    if others := sorted(name for name in planned - before if os.path.lexists(out / name)):
        raise ValueError(
            f"out must be a folder of meshes alone, got {printable(out)} with another {others[0]}"
        )
    how = {"resolution": options.resolution, "smoothing": options.smoothing}
    for cloud, name in zip(clouds, taken, strict=True):
        kind = _class_of(cloud, classes or {})
        try:
            mesh, measured = _measured_mesh(cloud, options)
        except ValueError as error:
            errors.append(f"{printable(cloud.name)}: {error}")
            continue
        if not rows:  # from here on, the next call recognises the folder even after a kill
            write_record(out, how | {"files": sorted(before | planned), "meshes": []})
        draw = partial(render_mesh, mesh.vertices, mesh.faces, mesh.normals, color=_color(mesh, kind, names))
        title = printable(cloud.name) if kind in cloud.name else f"{printable(kind)} {printable(cloud.name)}"
        written += _write_mesh(out / name, mesh, title, draw if turntable else None)
        row = {"name": printable(cloud.name), "class": printable(kind), "points": len(cloud.points)}
        rows.append(row | measured)
        if len(tiles) < MOST_DRAWN:
            tiles.append(draw(size=192))
    if not rows:
        got = f": {errors[0]}" if errors else f", none ends in {' '.join(SUFFIXES)}"
        got += f"; and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise ValueError(f"{printable(source)} must hold clouds that have a surface{got}")
    _tell_left_out(errors)
    save_png(out / "meshes.png", lay_out(tiles, [str(row["name"]) for row in rows[: len(tiles)]]))
    written.append("meshes.png")
    # Removed before the record forgets them, so that a kill in between leaves none behind.
    for old in before - {*written}:
        (out / old).unlink(missing_ok=True)
    write_record(out, how | {"left_out": len(errors), "files": written, "meshes": rows})
    tell_table(rows)
    return [out / "meshes.png", *(out / name for name in written[:-1])]


def _at_most(clouds: Iterator[Cloud], most: int | None, source: Path) -> list[Cloud]:
    """All clouds; ValueError as soon as there are too many."""
    found = list(islice(clouds, None if most is None else most + 1))
    if most is not None and len(found) > most:
        raise ValueError(
            f"{printable(source)} must hold at most {most} clouds, each of which takes seconds: num=... allows more"
        )
    return found


def _class_of(cloud: Cloud, classes: Mapping[int, str]) -> str:
    """The name of its label, or the beginning of its file name."""
    own = class_of(cloud.name.rpartition("/")[2])
    return classes.get(-1 if cloud.label is None else cloud.label, own)


def _measured_mesh(cloud: Cloud, options: Options) -> tuple[Mesh, dict[str, Any]]:
    """The surface of a cloud, its quality, and the seconds it took; ValueError if it has none."""
    began = time.perf_counter()
    mesh = reconstruct(cloud.points, cloud.normals, cloud.rgb, options.resolution, options.smoothing)
    seconds = time.perf_counter() - began
    finite = cloud.points[np.isfinite(cloud.points).all(axis=1)].astype(np.float64)
    return mesh, measure(mesh, finite) | {"seconds": round(seconds, 2)}


def _write_mesh(stem: Path, mesh: Mesh, title: str, draw: Callable[..., Any] | None) -> list[str]:
    """Write a GLB and an OBJ with names from `stem`, and a turntable if `draw` is given; returns the names."""
    paths = [stem.with_name(f"{stem.name}{ending}") for ending in (".glb", ".obj")]
    for path, write in zip(paths, (write_glb, write_obj), strict=True):
        write(path, mesh, title)
    return [path.name for path in (*paths, *(write_turntable(stem, draw) if draw else ()))]


def _tell_left_out(errors: Sequence[str], most: int = 5) -> None:
    """Print why clouds have no mesh, for the first few."""
    for told in errors[:most]:
        tell(told)
    if len(errors) > most:
        tell(f"{len(errors) - most} more clouds were left out")


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Record what this call has written into a folder, or is about to write."""
    with replacing(out / SURFACES) as stream:
        stream.write((json.dumps(record, indent=1) + "\n").encode())


def check_out(out: Path) -> set[str]:
    """The plain file names that an earlier call wrote into a folder.

    Raises:
        ValueError: if the folder has other content.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return set()
    if not out.is_dir() or not (out / SURFACES).is_file():
        raise ValueError(
            f"out must be a new folder, or one of meshes, got {printable(out)}, in which there are others"
        )
    record = read_json(out / SURFACES)
    found = record["files"] if isinstance(record, dict) and record.keys() >= RECORDED else None
    if not isinstance(found, list):
        raise ValueError(f"{printable(out / SURFACES)} must be the record of meshes, got something else")
    names = {name for name in found if isinstance(name, str)}
    return {n for n in names if n == Path(n).name == printable(n) and n.endswith(ENDINGS)}


def _clouds(source: Path, columns: tuple[str, ...] | None, up: str, errors: list[str]) -> Iterator[Cloud]:
    channels = Channels(CHANNELS, columns, optional=True)
    up = still_to_turn(source, up)
    if not source.exists():
        raise FileNotFoundError(f"{printable(source)} does not exist")
    files = [source]
    if source.is_dir():
        found = [path for path in files_below(source, special=True) if path.suffix.lower() in SUFFIXES]
        found = [path for path in found if may_be_shape(path)]
        # A sample may exist in two formats, as `sample` writes it.
        files = list({path.with_suffix(""): path for path in reversed(found)}.values())[::-1]
    for file in files:
        name = file.relative_to(source).with_suffix("").as_posix() if source.is_dir() else file.stem
        try:
            if file.suffix.lower() in (".npy", ".npz", ".pt", ".h5", ".hdf5"):
                samples = read_set(file, channels=channels)
                for i, values in enumerate(samples.data):
                    own = name if len(samples) == 1 else f"{name}-{i:04d}"
                    label = None if samples.labels is None else int(samples.labels[i])
                    yield _cloud(own, values, file, columns, up, label)
            else:
                yield _cloud(name, read_points(file, channels=channels), file, columns, up)
        except (ValueError, OSError) as error:
            errors.append(printable(" ".join(str(error).split())))


def _cloud(
    name: str,
    values: np.ndarray,
    file: Path,
    columns: tuple[str, ...] | None,
    up: str,
    label: int | None = None,
) -> Cloud:
    """Make a cloud with the channels of its columns, inferred from the values if ambiguous."""
    there = _there(values)
    values = turned(values, up, there)
    parts = {key: values[:, there.at(key)] for key in there.names}
    return Cloud(name, parts["xyz"], parts.get("rgb"), parts.get("normals"), label)


def _there(values: np.ndarray) -> Channels:
    """The channels of what was read with all of them optional: six columns are colours where none is below 0 and
    lengths differ from 1."""
    if values.shape[1] == 6:
        unit = np.abs(np.linalg.norm(values[:, 3:], axis=1) - 1) < 0.01
        return Channels(("xyz", "normals" if unit.mean() > 0.9 else "rgb"))
    return Channels(("xyz",) if values.shape[1] == 3 else CHANNELS)


def _color(mesh: Mesh, kind: str, names: list[str]) -> Any:
    if mesh.colors is not None:
        return mesh.colors
    if kind not in names:
        names.append(kind)
    return class_color(names.index(kind))


def tell_table(rows: list[dict[str, Any]]) -> None:
    """Print what was made and how well it fits; distances in percent of a shape's diagonal."""
    width = max(4, *(len(row["name"]) for row in rows))
    head = f"{'name':{width}}  vertices   faces  closed  pieces  cloud>surface  surface>cloud      s"
    tell(head, sys.stdout)
    for row in rows:
        there, back = (f"{100 * row[key]['mean']:5.2f} {100 * row[key]['95%']:5.2f} %" for key in
                       ("cloud_to_surface", "surface_to_cloud"))  # fmt: skip
        closed = "yes" if row["watertight"] else "no"
        counts = f"{row['vertices']:9d} {row['faces']:7d}  {closed:>6}  {row['components']:6d}"
        tell(f"{row['name']:{width}} {counts}  {there:>13}  {back:>13}  {row['seconds']:5.1f}", sys.stdout)
