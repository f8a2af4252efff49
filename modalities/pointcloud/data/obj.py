"""Wavefront OBJ: vertices and polygons; other elements are ignored."""

import numpy as np

from modalities.pointcloud.data.channels import Geometry, columns
from modalities.pointcloud.data.polygons import triangulate
from modalities.pointcloud.data.text import decoded

_CURVES = ("curv", "curv2", "surf")


def read_obj(content: bytes, note: object = None) -> Geometry:
    """Read vertices and triangles of all objects and groups, with colours after the coordinates if all have one.

    Raises:
        ValueError: for invalid numbers, faces with missing vertices, and a file with only lines or free-form curves and
            surfaces, whose control points are not a cloud.
    """
    text = decoded(content).replace("\\\r\n", " ").replace("\\\n", " ").replace("\\\r", " ")
    vertices: list[list[float]] = []
    colours: list[list[str]] = []
    normals: list[list[str]] = []
    sizes: list[int] = []
    corners: list[int] = []
    others = dict.fromkeys(("l", *_CURVES), 0)
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        kind = words[0]
        if kind == "v":
            vertices.append(_numbers(words[1:4]))
            if len(words) > 6:  # a single fourth number is a weight
                colours.append(words[4:7])
        elif kind == "vn":
            normals.append(words[1:4])
        elif kind in ("f", "fo"):
            polygon = [_index(word, len(vertices)) for word in words[1:]]
            sizes.append(len(polygon))
            corners += polygon
        elif kind in others:
            others[kind] += 1
    points = np.array(vertices, np.float64).reshape(-1, 3)
    triangles = triangulate(points, np.array(sizes, np.int64), np.array(corners, np.int64))
    curved = sum(others[kind] for kind in _CURVES)
    if not sizes and any(others.values()):
        raise ValueError(
            f"an OBJ must have faces, or points alone, got {others['l']} lines and {curved} free-form curves and "
            "surfaces, which are not read"
        )
    if curved and callable(note):
        note(f"{curved} free-form curves and surfaces are not read")
    rgb, directions = (columns(of, len(points)) for of in (colours, normals))
    return Geometry(points, triangles if sizes else None, rgb, None if sizes else directions)


def _numbers(words: list[str]) -> list[float]:
    if len(words) < 3:
        raise ValueError(f"a vertex of an OBJ must have three coordinates, got {' '.join(words)[:60]!r}")
    try:
        return [float(word) for word in words]
    except ValueError:
        return [float(word.replace(",", ".")) for word in words]  # decimal commas of a German locale


def _index(word: str, so_far: int) -> int:
    """The vertex index of a corner such as 7, 7/1, 7//3 or -1, which counts back from the last vertex so far."""
    number = int(word.partition("/")[0])
    if not number:
        raise ValueError("faces of an OBJ must count vertices from 1, or back from -1, got 0")
    if so_far + number < 0:
        raise ValueError(f"faces must name one of {so_far} vertices, got number {number}")
    return number - 1 if number > 0 else so_far + number
