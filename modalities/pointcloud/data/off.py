"""Geomview OFF: vertices and polygons as text or binary, with or without the header word."""

import re

import numpy as np

from modalities.pointcloud.data.channels import Geometry, columns
from modalities.pointcloud.data.polygons import triangulate
from modalities.pointcloud.data.text import decoded

_WORD = re.compile(
    r"\s*(?P<form>(?:ST)?C?N?4?n?)(?:OFF|off)\b\s*|\s*(?P<glued>(?:ST)?C?N?4?n?)(?:OFF|off)(?=\d)"
)


def read_off(content: bytes, note: object = None) -> Geometry:
    """Read vertices with colours and normals, and triangles; a cloud declares zero faces.

    Raises:
        ValueError: for another dimension, and for fewer vertices or faces than declared.
    """
    if re.match(rb"\s*[A-Zn4]*OFF\s+BINARY", content):
        return _binary(content)
    text = re.sub(r"#[^\r\n]*", "", decoded(content))
    found = _WORD.match(text)
    form = (found["form"] or found["glued"] or "") if found else ""
    if "n" in form:
        raise ValueError("an OFF must be in three dimensions, got nOFF")
    body = text[found.end() if found else 0 :]
    width = 4 if "4" in form else 3
    lines = [line for line in body.splitlines() if line.strip()]
    lines = _flowing(lines, width + 3 * ("N" in form)) or lines
    counts = lines[0].split() if lines else []
    if not 2 <= len(counts) <= 3 or not all(word.isdecimal() for word in counts):
        raise ValueError(  # without the line: it may be of any file that a link leads to
            "an OFF must begin with its counts of vertices, faces and edges, after the word OFF or without it"
        )
    num_vertices, num_faces = int(counts[0]), int(counts[1])
    rows, faces = lines[1 : 1 + num_vertices], lines[1 + num_vertices : 1 + num_vertices + num_faces]
    if len(rows) < num_vertices or len(faces) < num_faces:
        raise ValueError(
            f"an OFF must hold the {num_vertices} vertices and {num_faces} faces that it counts, got "
            f"{len(rows)} and {len(faces)} lines (truncated?)"
        )
    if rest := len(lines) - 1 - num_vertices - num_faces:
        raise ValueError(
            f"an OFF must count what it holds, got {rest} lines behind the {num_vertices} vertices and "
            f"{num_faces} faces that it counts"
        )
    points = np.array([_numbers(line, width) for line in rows], np.float64).reshape(-1, width)
    if width == 4:
        points = points[:, :3] / points[:, 3:]
    normals = [line.split()[width : width + 3] for line in rows] if "N" in form else []
    at = width + 3 * ("N" in form)
    colours = [line.split()[at : at + 3] for line in rows] if "C" in form else []
    polygons = [_polygon(line) for line in faces]
    sizes = np.array([len(polygon) for polygon in polygons], np.int64)
    corners = np.array([corner for polygon in polygons for corner in polygon], np.int64)
    triangles = triangulate(points, sizes, corners) if num_faces else None
    return Geometry(points, triangles, columns(colours, num_vertices), columns(normals, num_vertices))


def _flowing(broken: list[str], width: int) -> list[str]:
    """Re-break numbers into lines as OFF expects, if they are all on one line or the like; empty if they do not fit.

    Args:
        width: numbers per vertex.
    """
    first = broken[0].split() if broken else []
    if 2 <= len(first) <= 3 and first[0].isdecimal() and len(broken) > int(first[0]):
        return []
    words = [word for line in broken for word in line.split()]
    if len(words) < 3 or not all(re.fullmatch("[0-9]{1,12}", word) for word in words[:3]):
        return []
    num_vertices, num_faces = int(words[0]), int(words[1])
    at = 3 + num_vertices * width
    if at > len(words):
        return []
    found = [" ".join(words[:3])]
    found += [" ".join(words[start : start + width]) for start in range(3, at, width)]
    for _ in range(num_faces):
        if at >= len(words) or not words[at].isdecimal() or (after := at + 1 + int(words[at])) > len(words):
            return []
        found.append(" ".join(words[at:after]))
        at = after
    return found if at == len(words) else []


def _numbers(line: str, width: int) -> list[float]:
    words = line.split()[:width]
    if len(words) < width:
        raise ValueError(f"a vertex of an OFF must have {width} coordinates on its line, got {line[:60]!r}")
    return [float(word) for word in words]


def _polygon(line: str) -> list[int]:
    """The corners of a face, without its colour."""
    words = line.split()
    size = int(words[0])
    if size < 0 or size > len(words) - 1:
        raise ValueError(f"a face of an OFF must have as many corners as it counts, got {line[:60]!r}")
    return [int(word) for word in words[1 : 1 + size]]


def _binary(content: bytes) -> Geometry:
    """Binary OFF, big-endian: three counts, vertices (with the extras of the header word), faces with colours."""
    head, _, body = content.partition(b"\n")
    form = head.split()[0].removesuffix(b"OFF").decode()
    if "n" in form or "4" in form:
        raise ValueError(f"a binary OFF must be in three dimensions, got {form}OFF")
    width = 3 + 3 * ("N" in form) + 4 * ("C" in form) + 2 * ("ST" in form)
    numbers = np.frombuffer(body[: len(body) // 4 * 4], ">i4")
    if len(numbers) < 3 or numbers[:3].min() < 0 or int(numbers[0]) * width > len(numbers) - 3:
        raise ValueError("a binary OFF must hold the vertices that it counts (truncated?)")
    num_vertices, num_faces = int(numbers[0]), int(numbers[1])
    at = 3 + num_vertices * width
    vertices = numbers[3:at].view(">f4").reshape(num_vertices, width)
    points, first = vertices[:, :3].astype(np.float64), 3 + 3 * ("N" in form)
    normals = vertices[:, 3:6] if "N" in form else None
    rgb = vertices[:, first : first + 3] if "C" in form else None
    sizes, corners = [], []
    for face in range(num_faces):
        size = int(numbers[at]) if at < len(numbers) else -1
        if size < 0 or at + 1 + size >= len(numbers) or numbers[at + 1 + size] < 0:
            raise ValueError(f"a binary OFF must hold the {num_faces} faces that it counts, got {face}")
        sizes.append(size)
        corners.append(numbers[at + 1 : at + 1 + size])
        at += 2 + size + int(numbers[at + 1 + size])
    every = np.concatenate([np.empty(0, np.int64), *corners]).astype(np.int64)
    triangles = triangulate(points, np.array(sizes, np.int64), every) if num_faces else None
    return Geometry(points, triangles, rgb, normals)
