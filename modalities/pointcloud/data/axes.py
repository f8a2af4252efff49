"""The up axis: models use y, many files z."""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ditmoe.outside import Arrays, files_below, open_regular, printable, read_object, tell
from modalities.pointcloud.data.channels import XYZ, Channels

AXES = ("x", "y", "z")


def check_up(up: str) -> None:
    if up not in AXES:
        raise ValueError(f"up must be one of {', '.join(AXES)}, got {up!r}")


def turned(points: Float[np.ndarray, "N C"], up: str, channels: Channels = XYZ) -> Float[np.ndarray, "N C"]:
    """Rotate (not mirror) points and normals from up axis `up` to y."""
    if up == "y":
        return points
    if channels.width > 3:
        parts = {name: points[:, channels.at(name)] for name in channels.names}
        return np.concatenate([of if name == "rgb" else turned(of, up) for name, of in parts.items()], axis=1)
    x, y, z = points.T
    return np.stack([-y, x, z] if up == "x" else [x, z, -y], axis=1)


def still_to_turn(path: Path, up: str) -> str:
    """The up axis still to be applied to a set: y if `prepare` or another program's metadata has settled it."""
    if up == "y":
        return "y"
    folders = [path, *path.parents][:4] if path.is_dir() else list(path.parents)[:3]
    record = next((found for folder in folders if (found := folder / "prepare.json").is_file()), None)
    there = str(read_object(record).get("up", "y")) if record else "y"
    if there != "y":
        tell(
            f"{printable(path)}: its axis {printable(there)} was turned up when it was prepared, "
            "and is not turned again"
        )
        return "y"
    if says_up(path) == "y":
        tell(f"{printable(path)}: it says that y points up, and is not turned")
        return "y"
    tell(f"{printable(path)}: its axis {up} is turned up (modality.up={up})")
    return up


def says_up(path: Path) -> str | None:
    """The up axis recorded in a .ply or .npz from `write`, or in the first .ply of a folder."""
    if path.is_dir():
        path = next((file for file in files_below(path) if file.suffix == ".ply"), path)
    if path.suffix == ".npz":
        with Arrays(path) as archive:
            return str(archive["up"]) if "up" in archive else None
    if path.suffix != ".ply":
        return None
    with open_regular(path) as stream:
        found = re.search(rb"^comment ([xyz]) points up\r?$", stream.read(2**12), re.MULTILINE)
    return found[1].decode() if found else None
