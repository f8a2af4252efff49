"""Shows clouds and meshes to the user: in an Open3D window, or as a picture without a display.

Open3D runs in a separate process (window.py), which contains driver crashes.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ditmoe.modality import Shown
from ditmoe.outside import files_below, patiently, printable
from modalities.pointcloud.data.channels import Channels, as_bytes
from modalities.pointcloud.data.formats import (
    CLOUD_SUFFIXES,
    MESH_SUFFIXES,
    SET_SUFFIXES,
    TEXT_SUFFIXES,
    read_points,
    read_set,
    read_surface,
    without_surfaces,
)
from modalities.pointcloud.viz.contact_sheet import contact_sheet
from modalities.pointcloud.viz.render import class_color
from modalities.shared import save_sheet
from modalities.shared.contact_sheet import class_of

WINDOW = Path(__file__).with_name("window.py")
MAX_SHAPES = 200
MESH_POINTS = 16384
OFFSCREEN_SECONDS = 120
COLOURED = Channels(("xyz", "rgb"), optional=True)
HEIGHT_COLORS = np.array([[58, 76, 140], [52, 140, 160], [110, 186, 130], [240, 196, 84]]) / 255


@dataclass(frozen=True)
class Shape:
    """One cloud to look at; `label` is the class index and `colors` (bytes) are those of the points, where the file
    knows them."""

    name: str
    points: Float[np.ndarray, "N 3"]
    label: int | None = None
    colors: UInt8[np.ndarray, "N 3"] | None = None


def view(paths: Sequence[Path], out: Path | None = None) -> str:
    """Open files or folders side by side in a window, or render them to a PNG without a display.

    Every shape is scaled to the same size; a mesh is shown by points on its surface. At most 200 shapes.

    Args:
        paths: files of `formats`, sets (.npz, .npy, .pt of (S, N, 3)) and folders.
        out: the PNG; by default `view.png` in a folder given first, `<name>.view.png` beside a file.
    Returns:
        One line that says what was shown, how, and which files were left out.
    Raises:
        ValueError: where nothing could be read.
    """
    paths = [Path(path) for path in paths]
    shapes, errors = _read(paths)
    if not shapes:
        raise ValueError(
            f"view must be given at least one readable cloud, got {'; '.join(errors) or 'no file'}"
        )
    count = f"{len(shapes)} shape{'s' * (len(shapes) > 1)}"
    if len(shapes) > MAX_SHAPES:
        shapes, count = shapes[:MAX_SHAPES], f"the first {MAX_SHAPES} of {len(shapes)} shapes"
    left_out = f"; left out {'; '.join(errors[:3])}" if errors else ""
    left_out += f" and {len(errors) - 3} more" if len(errors) > 3 else ""
    return _show(shapes, out, _beside(paths[0]), count) + left_out


def show_one(files: Sequence[Path]) -> Shown:
    """A cloud for a page, from files that differ in their suffix: the array, which is exact, if there is one.

    Raises:
        ValueError: unless it is one shape.
    """
    file = min(files, key=lambda path: path.suffix.lower() != ".npy")
    shapes = list(_shapes(file))
    if len(shapes) != 1:
        raise ValueError(f"{printable(file)} must hold one cloud, got {len(shapes)}")
    return Shown(points=shapes[0].points, colors=shapes[0].colors)


def _beside(path: Path) -> Path:
    return path / "view.png" if path.is_dir() else path.with_name(f"{path.stem}.view.png")


def _read(paths: Sequence[Path]) -> tuple[list[Shape], list[str]]:
    """Shapes of all files, and a sentence for each file that could not be read."""
    shapes: list[Shape] = []
    errors: list[str] = []
    files: list[Path] = []
    for path in paths:
        files += (found := _files(path) if path.is_dir() else [path])
        if not found:
            errors.append(f"{printable(path)}: no cloud or mesh in this folder")
    for file in patiently(files):
        try:
            shapes.extend(_shapes(file))
        except (ValueError, OSError) as error:
            errors.append(printable(" ".join(str(error).split())))
    return shapes, errors


def _files(folder: Path) -> list[Path]:
    """The shape files of a folder; one per name, as a sample may exist in two formats."""
    found = without_surfaces(files_below(folder, special=True))
    for suffixes in (SET_SUFFIXES, (*CLOUD_SUFFIXES, *MESH_SUFFIXES)):
        if files := [path for path in found if path.suffix.lower() in suffixes]:
            return list({path.with_suffix(""): path for path in reversed(files)}.values())[::-1]
    return []


def _shapes(path: Path) -> Iterator[Shape]:
    if path.suffix.lower() in (".npy", ".npz", ".pt", ".h5", ".hdf5"):
        samples = read_set(path, channels=COLOURED)
        for i, values in enumerate(samples.data):
            name = path.stem if len(samples) == 1 else f"{path.stem} {i}"
            yield _shape(name, values, None if samples.labels is None else int(samples.labels[i]))
    elif path.suffix.lower() in TEXT_SUFFIXES:
        yield _shape(path.stem, read_points(path, channels=COLOURED))
    else:
        yield _shape(path.stem, read_surface(path, MESH_POINTS, seed=0, channels=COLOURED))


def _shape(name: str, values: Float[np.ndarray, "N C"], label: int | None = None) -> Shape:
    colors = as_bytes(values[:, COLOURED.at("rgb")]) if values.shape[1] > 3 else None
    return Shape(printable(name), values[:, :3], label, colors)


def _show(shapes: Sequence[Shape], out: Path | None, beside: Path, count: str) -> str:
    """The window, else Open3D without a window, else the renderer of this package; says which and why."""
    if importlib.util.find_spec("open3d") is None:
        reason = "Open3D is not installed (pip install 'ditmoe[view]')"
    else:
        with tempfile.TemporaryDirectory() as folder:
            scene, picture = Path(folder, "scene.npz"), Path(folder, "scene.png")
            _write_scene(shapes, scene)
            reason = "there is no display"
            if _has_display():
                failure = _open3d(scene, None)
                if failure is None:
                    return f"showed {count} in Open3D's window"
                reason = f"Open3D's window did not open ({failure})"
            failure = _open3d(scene, picture)
            if failure is None:
                with Image.open(picture) as image:
                    out = save_sheet(np.asarray(image.convert("RGB")), out, beside)
                return f"{reason}: drew {count} with Open3D off-screen into {printable(out)}"
            reason = f"Open3D cannot draw here ({failure})"
    colors = [
        class_color(index) if shape.colors is None else shape.colors
        for shape, index in zip(shapes, _classes(shapes), strict=True)
    ]
    sheet = contact_sheet([s.points for s in shapes], [s.name for s in shapes], colors=colors)
    out = save_sheet(sheet, out, beside)
    return f"{reason}: drew {count} with the built-in renderer into {printable(out)}"


def _has_display() -> bool:
    return sys.platform != "linux" or any(os.environ.get(key) for key in ("DISPLAY", "WAYLAND_DISPLAY"))


def _classes(shapes: Sequence[Shape]) -> list[int]:
    """The class of every shape: the label in its file, else the name without its number."""
    if all(shape.label is not None for shape in shapes):
        return [shape.label for shape in shapes if shape.label is not None]
    names = [class_of(shape.name) for shape in shapes]
    order = list(dict.fromkeys(names))
    return [order.index(name) for name in names]


def _write_scene(shapes: Sequence[Shape], path: Path) -> None:
    """Write the input of Open3D's process: normalised points, colours, and the end of each shape."""
    classes = _classes(shapes)
    points, colors = [], []
    for shape, index in zip(shapes, classes, strict=True):
        low, high = shape.points.min(0), shape.points.max(0)
        cloud = (shape.points - (low + high) / 2) / (np.linalg.norm(high - low) or 1.0)
        height = (cloud[:, 1] - cloud[:, 1].min()) / (np.ptp(cloud[:, 1]) or 1.0)
        color = np.array(class_color(index)) / 255 * (0.6 + 0.4 * height[:, None])
        if len(set(classes)) == 1:
            at = np.linspace(0, 1, len(HEIGHT_COLORS))
            color = np.stack([np.interp(height, at, channel) for channel in HEIGHT_COLORS.T], 1)
        points.append(cloud)
        colors.append(color if shape.colors is None else shape.colors / 255)
    ends = np.cumsum([len(cloud) for cloud in points])
    np.savez(path, points=np.concatenate(points), colors=np.concatenate(colors), ends=ends)


def _open3d(scene: Path, picture: Path | None) -> str | None:
    """Run Open3D on a scene, in a window or into a picture; None, or why it failed."""
    # -P: the files beside this one must not hide installed packages of the same name.
    command = [sys.executable, "-P", str(WINDOW), str(scene), *([str(picture)] if picture else [])]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=OFFSCREEN_SECONDS if picture else None
        )
    except subprocess.TimeoutExpired:
        return f"no picture after {OFFSCREEN_SECONDS} s"
    if run.returncode == 0 and (picture is None or picture.is_file()):
        return None
    said = run.stderr.split("\n") + run.stdout.split("\n")
    lines = [line.strip() for line in said if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or [f"exit status {run.returncode}"])[-1][:200]
