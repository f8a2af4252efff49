"""PLY and plain columns, the files of point clouds: read with care for false headers, written atomically."""

import os
import re
from collections.abc import Iterable
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float, UInt8

from ditmoe.checkpoint import replacing
from ditmoe.outside import open_regular

_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
_TYPES |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
_TYPES |= {"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"}
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}


def read_vertices(path: Path) -> Float[np.ndarray, "N 3"]:
    """Read the x, y, z of a PLY's vertices; ValueError where the file holds fewer than its header says."""
    with open_regular(path) as stream:
        order, elements = _header(stream)
        count, fields = elements.get("vertex", (0, {}))
        if not count or not {"x", "y", "z"} <= fields.keys():
            raise ValueError(f"a PLY must have vertices with x, y, z, got {count} with {', '.join(fields)}")
        before = [elements[name] for name in takewhile(lambda name: name != "vertex", elements)]
        if order == "ascii":
            start = sum(rows for rows, _ in before)
            lines = (line.decode() for line in islice(stream, start, start + count))
            points = read_columns(lines, tuple(list(fields).index(axis) for axis in "xyz"))
        else:
            stream.seek(sum(rows * _row(order, kinds).itemsize for rows, kinds in before), os.SEEK_CUR)
            row = _row(order, fields)
            # Asking for what is left and not for what is promised keeps a false header from taking memory.
            left = max(path.stat().st_size - stream.tell(), 0)
            rows = np.frombuffer(stream.read(min(count, left // row.itemsize) * row.itemsize), row)
            points = np.stack([rows[axis].astype(float) for axis in "xyz"], axis=1)
    if len(points) != count:
        raise ValueError(
            f"a PLY must hold the {count} vertices of its header, got {len(points)} (truncated?)"
        )
    return points


def has_faces(path: Path) -> bool:
    """Whether a PLY is a mesh; ValueError where its header counts more rows than the file has bytes."""
    with open_regular(path) as stream:
        _, elements = _header(stream)
    rows, size = sum(count for count, _ in elements.values()), path.stat().st_size
    if rows > size:
        raise ValueError(f"a PLY must hold the {rows} rows of its header, got {size} bytes")
    return any(elements.get(name, (0,))[0] for name in ("face", "tristrips"))


def write_ply(
    path: Path, points: Float[np.ndarray, "N 3"], colors: UInt8[np.ndarray, "N 3"] | None = None
) -> None:
    """Write a cloud as binary little-endian PLY, with a colour per point where given."""
    fields = [(axis, "<f4", "float") for axis in "xyz"]
    fields += [(name, "u1", "uchar") for name in ("red", "green", "blue")] if colors is not None else []
    rows = np.empty(len(points), [(name, kind) for name, kind, _ in fields])
    for (name, _, _), column in zip(fields, chain(points.T, () if colors is None else colors.T), strict=True):
        rows[name] = column
    properties = "".join(f"property {kind} {name}\n" for name, _, kind in fields)
    with replacing(path) as stream:
        stream.write(f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n".encode())
        stream.write(f"{properties}end_header\n".encode() + rows.tobytes())


def read_columns(lines: Iterable[str], columns: tuple[int, ...] = (0, 1, 2)) -> Float[np.ndarray, "N C"]:
    """Read columns of numbers apart by blanks, commas or semicolons; # and // begin a comment."""
    bare = (re.split("#|//", line)[0].replace(",", " ").replace(";", " ").strip() for line in lines)
    rows = filter(None, bare)
    first = next(rows, "")
    if first.isdigit():
        # A .pts begins with the number of its points.
        first = next(rows, "")
    if not first:
        raise ValueError("the file must have points, got none")
    return np.loadtxt(chain([first], rows), usecols=columns, ndmin=2, comments=None)


def _header(stream: IO[bytes]) -> tuple[str, dict[str, tuple[int, dict[str, str]]]]:
    """Format, and for each element its count and the type of each property ("list" for a list)."""
    if stream.readline(100).strip() != b"ply":
        raise ValueError("a PLY must begin with the line 'ply'")
    order, element = "", ""
    elements: dict[str, tuple[int, dict[str, str]]] = {}
    for line in iter(lambda: stream.readline(10_000), b""):
        match line.decode("latin-1").split():
            case ["end_header"] if order in _ORDERS:
                return order, elements
            case ["format", order, *_]:
                pass
            case ["element", element, count] if re.fullmatch("[0-9]{1,15}", count):
                elements[element] = (int(count), {})
            case ["property", "list", _, _, name] if element:
                elements[element][1][name] = "list"
            case ["property", kind, name] if element and kind in _TYPES:
                elements[element][1][name] = _TYPES[kind]
            case [("property" | "element"), *_]:
                raise ValueError(f"the header of a PLY must have known types and counts, got {line[:80]!r}")
    raise ValueError("the header of a PLY must name its format and end with 'end_header'")


def _row(order: str, fields: dict[str, str]) -> np.dtype:
    if "list" in fields.values():
        raise ValueError("the vertices of a binary PLY must come before its lists, got a list first")
    return np.dtype([(name, _ORDERS[order] + kind) for name, kind in fields.items()])
