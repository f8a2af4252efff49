"""PLY, the usual format of point clouds and scans: read with validation of headers, written atomically."""

import re
import struct
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from ditmoe.checkpoint import replacing
from modalities.pointcloud.data.channels import Geometry
from modalities.pointcloud.data.polygons import triangulate
from modalities.pointcloud.data.text import numbers

LARGEST_HEADER = 2**20
"""Most bytes of a PLY header."""
MOST_PROPERTIES = 1000
"""Limit per element; rows with lists of varying lengths take as many steps each."""

SHORT, WALKED = 16, 2**16
"""Rows of a run below which rows are walked one by one, and most values of so many rows at once."""

_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
_TYPES |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
_TYPES |= {"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"}
_COLOURS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
_NORMALS = (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z"))
_CODES = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "f4": "f", "f8": "d"}
"""Of the module struct."""
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}


def read_ply(content: bytes, note: object = None) -> Geometry:
    """Read vertices with colours and normals, and the triangles of faces and strips.

    Text or binary of either byte order, any line ends, lists anywhere, faces of any size before or after the vertices.

    Raises:
        ValueError: if the file has less than its header declares, or no vertices with x, y, z.
    """
    order, elements, body = _header(content)
    rows = sum(count for count, fields in elements.values() if fields)
    if rows > len(content):
        raise ValueError(f"a PLY must hold the {rows} rows of its header, got {len(content)} bytes")
    count, fields = elements.get("vertex", (0, {}))
    if not count or not {"x", "y", "z"} <= fields.keys():
        raise ValueError(f"a PLY must have vertices with x, y, z, got {count} with {', '.join(fields)}")
    if (most := max((len(fields) for _, fields in elements.values()), default=0)) > MOST_PROPERTIES:
        raise ValueError(f"an element of a PLY must have at most {MOST_PROPERTIES} properties, got {most}")
    names = list(elements)
    wanted = [name for name in ("vertex", "face", "tristrips") if all(elements.get(name, (0, {})))]
    last = max(map(names.index, wanted))
    read: Any = _Text(body) if order == "ascii" else _Binary(body, _ORDERS[order])
    found = {}
    for name in names[: last + 1]:
        count, fields = elements[name]
        if fields:  # elements without properties are empty
            found[name] = read.element(name, count, fields)
    with np.errstate(invalid="ignore"):
        points = np.stack([found["vertex"][axis].astype(np.float64) for axis in "xyz"], axis=1)
    faces = []
    for name in wanted[1:]:
        sizes, corners = _indices(name, found[name])
        if name == "tristrips":
            faces += [_strips(corners, len(points))]
        else:
            faces += [triangulate(points, sizes, corners)]
    rgb, normals = (_beside(found["vertex"], elements["vertex"][1], names) for names in (_COLOURS, _NORMALS))
    return Geometry(points, np.concatenate(faces) if faces else None, rgb, normals)


def _beside(
    rows: Mapping[str, Any], kinds: Mapping[str, str], named: Sequence[Sequence[str]]
) -> np.ndarray | None:
    """Three properties of the vertices, by the first names that all exist, in the type of the header."""
    for names in named:
        if all(kinds.get(name, "list").partition(" ")[0] != "list" for name in names):
            with np.errstate(invalid="ignore"):
                return np.stack([rows[name].astype(kinds[name]) for name in names], axis=1)
    return None


def _indices(name: str, rows: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and items of the list of vertex indices of each face."""
    lists = {key: value for key, value in rows.items() if isinstance(value, tuple)}
    for key in ("vertex_indices", "vertex_index", *(lists if len(lists) == 1 else ())):
        if key in lists:
            sizes, members = lists[key]
            return sizes, members.astype(np.int64)
    raise ValueError(f"{name} of a PLY must have a list vertex_indices, got {', '.join(rows) or 'nothing'}")


def _strips(corners: np.ndarray, num_vertices: int) -> np.ndarray:
    """Triangles of strips that end at -1."""
    if len(corners) and corners.max() >= num_vertices:
        raise ValueError(f"strips must name one of {num_vertices} vertices, got number {corners.max()}")
    triples = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
    return triples[(triples >= 0).all(axis=1)]


class _Text:
    """Reads a text PLY element by element, independent of line breaks."""

    def __init__(self, body: bytes) -> None:
        self.numbers, self.at = numbers(body), 0

    def element(self, name: str, count: int, fields: Mapping[str, str]) -> dict[str, Any]:
        if not any(kind.startswith("list") for kind in fields.values()):
            rows = self._take(name, count, count * len(fields)).reshape(count, len(fields))
            return dict(zip(fields, rows.T, strict=True))
        single: dict[str, list[float]] = {key: [] for key in fields}
        sizes: dict[str, list[int]] = {key: [] for key in fields}
        members: dict[str, list[np.ndarray]] = {key: [] for key in fields}
        for row in range(count):
            for key, kind in fields.items():
                value = self._take(name, count, 1, row)[0]
                if kind.startswith("list"):
                    sizes[key].append(int(value))
                    members[key].append(self._take(name, count, int(value), row))
                else:
                    single[key].append(value)
        return {
            key: (np.array(sizes[key], np.int64), np.concatenate([np.empty(0), *members[key]]))
            if kind.startswith("list")
            else np.array(single[key])
            for key, kind in fields.items()
        }

    def _take(self, name: str, count: int, length: int, row: int = 0) -> np.ndarray:
        if not 0 <= length <= len(self.numbers) - self.at:
            raise _truncated(name, count, row)
        self.at += length
        return self.numbers[self.at - length : self.at]


class _Binary:
    """Reads a binary PLY, vectorised over runs of rows whose lists have equal lengths, else row by row."""

    def __init__(self, body: bytes, order: str) -> None:
        self.body, self.order, self.at = body, order, 0

    def element(self, name: str, count: int, fields: Mapping[str, str]) -> dict[str, Any]:
        lists = [key for key, kind in fields.items() if kind.startswith("list")]
        blocks: dict[str, list[np.ndarray]] = {key: [] for key in fields}
        sizes: dict[str, list[np.ndarray]] = {key: [] for key in fields}
        done, ahead = 0, count if not lists else 64
        while done < count:
            row, lengths = self._row(name, count, done, fields)
            there = (len(self.body) - self.at) // row.itemsize if row.itemsize else count
            if not there:
                raise _truncated(name, count, done)
            some = np.frombuffer(self.body, row, min(count - done, there, ahead), self.at)
            alike = np.ones(len(some), bool)
            for key in lists:
                alike &= some[f"{key} "] == lengths[key]
            run = len(some) if alike.all() else int(alike.argmin())
            if run < SHORT and run < len(some):
                for key, (values, each) in self._walked(name, count, done, fields).items():
                    blocks[key].append(values)
                    sizes[key].append(each)
                    run = len(each)
                done += run
                continue
            for key in fields:
                blocks[key].append(some[key][:run].ravel() if key in lists else some[key][:run])
                sizes[key].append(np.full(run, lengths.get(key, 1), np.int64))
            done, self.at = done + run, self.at + run * row.itemsize
            ahead = 2 * ahead if run == len(some) else 64
        whole = {
            key: np.concatenate([np.empty(0), *blocks[key]])
            if not blocks[key]
            else np.concatenate(blocks[key])
            for key in fields
        }
        return {
            key: (np.concatenate(sizes[key]) if sizes[key] else np.empty(0, np.int64), whole[key])
            if key in lists
            else whole[key]
            for key in fields
        }

    def _walked(
        self, name: str, count: int, done: int, fields: Mapping[str, str]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Values of each property in the next rows, and how many in each row: an array for a row would take a kilobyte.

        Returns:
            Of some rows, at least one; `at` is behind them.
        """
        steps = []
        for kind in fields.values():
            _, _, members = kind.partition(" ")
            first, _, item = members.partition(" ")
            length = struct.Struct(self.order + _CODES[first]) if members else None
            steps.append((length, np.dtype(self.order + (item or kind))))
        rows = min(count - done, max(1, WALKED // len(steps)))
        at, end, places, lengths = self.at, len(self.body), [], []
        for row in range(rows):
            for length, dtype in steps:
                number = 1
                if length is not None:
                    if at + length.size > end:
                        raise _truncated(name, count, done + row)
                    number = int(length.unpack_from(self.body, at)[0])
                    at += length.size
                places.append(at)
                lengths.append(number)
                at += number * dtype.itemsize
                if number < 0 or at > end:
                    raise _truncated(name, count, done + row)
        self.at = at
        begins, each = (np.array(of, np.int64).reshape(rows, -1).T for of in (places, lengths))
        return {
            key: (_gathered(self.body, begins[i], each[i], steps[i][1]), each[i])
            for i, key in enumerate(fields)
        }

    def _row(
        self, name: str, count: int, done: int, fields: Mapping[str, str]
    ) -> tuple[np.dtype, dict[str, int]]:
        """The dtype of the next row, with the lengths of its lists."""
        layout: list[Any] = []
        lengths: dict[str, int] = {}
        at = self.at
        for key, kind in fields.items():
            _, _, members = kind.partition(" ")
            first = np.dtype(self.order + (members.split()[0] if members else kind))
            if at + first.itemsize > len(self.body):
                raise _truncated(name, count, done)
            if members:
                value = np.frombuffer(self.body, first, 1, at)[0]
                inner = np.dtype(self.order + members.split()[1])
                lengths[key] = int(value)
                if not 0 <= lengths[key] <= (len(self.body) - at) // inner.itemsize:
                    raise _truncated(name, count, done)
                layout += [(f"{key} ", first), (key, inner, (lengths[key],))]
                at += first.itemsize + lengths[key] * inner.itemsize
            else:
                layout.append((key, first))
                at += first.itemsize
        return np.dtype(layout), lengths


def _gathered(body: bytes, begins: np.ndarray, lengths: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values that lie in several places, so many at each, one after another."""
    total = int(lengths.sum())
    if len(lengths) * SHORT < total:  # few places: an index would be larger than the values
        pairs = zip(begins.tolist(), lengths.tolist(), strict=True)
        return np.concatenate([np.frombuffer(body, dtype, number, begin) for begin, number in pairs])
    within = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = np.repeat(begins, lengths) + dtype.itemsize * within
    every = np.frombuffer(body, np.uint8)[at[:, None] + np.arange(dtype.itemsize)]
    return every.view(dtype)[:, 0]


def _truncated(name: str, count: int, got: int) -> ValueError:
    what = {"vertex": "vertices", "face": "faces"}.get(name, f"rows of {name}")
    return ValueError(f"a PLY must hold the {count} {what} of its header, got {got or 'fewer'} (truncated?)")


def write_ply(
    path: Path,
    points: Float[np.ndarray, "N 3"],
    colors: UInt8[np.ndarray, "N 3"] | None = None,
    normals: Float[np.ndarray, "N 3"] | None = None,
    up: str = "",
) -> None:
    """Write a cloud as binary little-endian PLY, with normals and colours if given; float64 stays float64.

    Args:
        up: the up axis, recorded in a comment unless empty.
    """
    kind = ("<f8", "double") if points.dtype == np.float64 else ("<f4", "float")
    fields = [(axis, *kind) for axis in "xyz"]
    fields += [(name, "<f4", "float") for name in ("nx", "ny", "nz")] if normals is not None else []
    fields += [(name, "u1", "uchar") for name in ("red", "green", "blue")] if colors is not None else []
    rows = np.empty(len(points), [(name, kind) for name, kind, _ in fields])
    columns = chain(points.T, *(of.T for of in (normals, colors) if of is not None))
    for (name, _, _), column in zip(fields, columns, strict=True):
        rows[name] = column
    properties = "".join(f"property {kind} {name}\n" for name, _, kind in fields)
    comment = f"comment {up} points up\n" if up else ""
    with replacing(path) as stream:
        stream.write(
            f"ply\nformat binary_little_endian 1.0\n{comment}element vertex {len(points)}\n".encode()
        )
        stream.write(f"{properties}end_header\n".encode() + rows.tobytes())


def _header(content: bytes) -> tuple[str, dict[str, tuple[int, dict[str, str]]], bytes]:
    """Format; count and property types of each element ("list u1 i4" for a list); and the body."""
    first = re.match(rb"ply[ \t]*(\r\n|\n|\r)", content)
    if not first:
        raise ValueError("a PLY must begin with the line 'ply'")
    end = re.search(rb"[\r\n]end_header[ \t]*" + re.escape(first[1]), content[:LARGEST_HEADER])
    order, element = "", ""
    elements: dict[str, tuple[int, dict[str, str]]] = {}
    for line in content[: end.start() if end else 0].splitlines():
        match line.decode("latin-1").split():
            case ["format", order, *_]:
                pass
            case ["element", element, count] if re.fullmatch("[0-9]{1,15}", count):
                elements[element] = (int(count), {})
            case ["property", "list", size, kind, name] if element and size in _TYPES and kind in _TYPES:
                elements[element][1][name] = f"list {_TYPES[size]} {_TYPES[kind]}"
            case ["property", kind, name] if element and kind in _TYPES:
                elements[element][1][name] = _TYPES[kind]
            case [("property" | "element"), *_]:
                raise ValueError(f"the header of a PLY must have known types and counts, got {line[:80]!r}")
    if end is None or order not in _ORDERS:
        raise ValueError("the header of a PLY must name its format and end with 'end_header'")
    small = {name: (count, _small(fields)) for name, (count, fields) in elements.items()}
    return order, _small(small), content[end.end() :]


def _small(named: dict[str, Any]) -> dict[str, Any]:
    """Lower-case all names, if they stay distinct."""
    found = {name.lower(): what for name, what in named.items()}
    return found if len(found) == len(named) else named
