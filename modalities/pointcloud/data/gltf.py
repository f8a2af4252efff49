"""Validates a glTF before it is read: declared sizes, number of parts, referenced files."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ditmoe.outside import is_regular, may_hold, open_regular, parse_json, printable, read_regular, real_path

LARGEST_FILE = 2**31
"""Most bytes of a glTF, and of each referenced file."""
LONGEST_NAME = 4096
"""Most letters of a referenced file's name, the limit of operating systems: resolving one of a megabyte took 13 s."""
MOST_STEPS = 10**6
"""Limit on the summed depths of all nodes of a scene: placing a node takes as many steps as its depth."""
_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
_NUMBERS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}


def check(path: Path) -> tuple[dict[str, Any], bytes | None, int]:
    """Validate a .gltf or .glb; returns its JSON, the binary chunk of a .glb, and the total bytes of all files.

    An accessor without a buffer stands for any number of zeros, and one buffer may be read any number of times.

    Raises:
        OSError, ValueError: if it is not a regular file, not a glTF, or declares implausible sizes.
    """
    content = read_regular(path, LARGEST_FILE)
    length, binary = int.from_bytes(content[12:16], "little"), content[:4] == b"glTF"
    if binary and content[4:8] != b"\2\0\0\0":
        raise ValueError(f"a .glb must be of version 2, got {int.from_bytes(content[4:8], 'little')}")
    tree = parse_json(content[20 : 20 + length] if binary else content.removeprefix(b"\xef\xbb\xbf"))
    names = [_text(buffer.get("uri")) for buffer in _entries(tree, "buffers")]
    beside = {_beside(path.parent, name) for name in names if not name.startswith("data:")}
    limit = len(content) + _bytes_of(beside)
    whole, sizes = 0, []
    for accessor in _entries(tree, "accessors"):
        counts = [
            accessor.get("count", 0),
            *(part.get("count", 0) for part in _parts(accessor.get("sparse"))),
        ]
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError(f"a glTF must count in whole numbers, got {printable(counts)[:60]}")
        if max(counts) > limit:
            raise ValueError(f"a glTF must hold the {max(counts)} values it counts, got {limit} bytes")
        kind, type_ = accessor.get("componentType"), accessor.get("type")
        sizes.append(
            counts[0] * _BYTES.get(kind if type(kind) is int else 0, 4) * _NUMBERS.get(_text(type_), 16)
        )
    whole = sum(sizes) + sum(sizes[i] for i in _read_again(tree) if 0 <= i < len(sizes))
    if whole > may_hold(limit):
        raise ValueError(f"a glTF must hold the {whole} bytes of its accessors and parts, got {limit}")
    _check_tree(_entries(tree, "nodes"))
    start = 20 + length
    chunk = content[start + 8 : start + 8 + int.from_bytes(content[start : start + 4], "little")]
    return tree, chunk if binary and content[start + 4 : start + 8] == b"BIN\0" else None, limit


def files_beside(path: Path) -> list[Path]:
    """The files that a .gltf or .glb references, in order; none if it is unreadable, which is reported later."""
    try:
        with open_regular(path, LARGEST_FILE) as stream:
            head = stream.read(20)
            binary = head[:4] == b"glTF"
            tree = parse_json(
                stream.read(int.from_bytes(head[12:16], "little"))
                if binary
                else (head + stream.read()).removeprefix(b"\xef\xbb\xbf")
            )
        names = [_text(buffer.get("uri")) for buffer in _entries(tree, "buffers")]
        return [_beside(path.parent, name) for name in names if not name.startswith("data:")]
    except (OSError, ValueError, RecursionError):
        return []


def _bytes_of(files: Iterable[Path]) -> int:
    """Total bytes of regular files, each counted once under any name; unreadable ones count as zero."""
    sizes = {}
    for file in files:
        with suppress(OSError, ValueError), open_regular(file, LARGEST_FILE) as stream:
            about = os.fstat(stream.fileno())
            sizes[about.st_dev, about.st_ino] = about.st_size
    return sum(sizes.values())


def _beside(folder: Path, uri: str) -> Path:
    """The file that a URI names: verbatim if it exists, else percent-decoded.

    Raises:
        ValueError: if it is outside the folder, or too long a name.
    """
    if len(uri) > LONGEST_NAME:
        raise ValueError(
            f"a mesh must name files by at most {LONGEST_NAME} letters, got {len(uri)}: {printable(uri[:60])}"
        )
    names = (uri, unquote(uri))
    if not all(real_path(folder / name).is_relative_to(real_path(folder)) for name in names):
        raise ValueError(f"a mesh must not name files outside its folder, got {printable(uri)[:100]}")
    return next((folder / name for name in names if is_regular(folder / name)), folder / names[1])


def _read_again(tree: Any) -> Iterator[int]:
    """The accessors used by mesh primitives, with repetitions, since each primitive reads its own."""
    for mesh in _entries(tree, "meshes"):
        for part in _entries(mesh, "primitives"):
            named = [
                part.get("indices"),
                *(a for each in _parts(part.get("attributes")) for a in each.values()),
            ]
            yield from (number for number in named if type(number) is int)


def _check_tree(nodes: list[dict[str, Any]]) -> None:
    below = [node.get("children", []) for node in nodes]
    if odd := [those for those in below if not isinstance(those, list)]:
        raise ValueError(f"the children of a node must be a list of nodes, got {printable(odd[0])[:60]}")
    children: set[int] = set()
    for child in (c for those in below for c in those):
        if type(child) is not int or not 0 <= child < len(nodes):
            raise ValueError(f"the children of a node must be nodes, got {printable(child)[:60]}")
        if child in children:  # three lists, each with a node a thousand times, show a billion
            raise ValueError("the nodes of a glTF must be a tree, got one with two parents")
        children.add(child)
    level, depth, left, steps = [n for n in range(len(nodes)) if n not in children], 0, len(nodes), 0
    while level:
        left, depth, steps = left - len(level), depth + 1, steps + len(level) * (depth + 1)
        level = [c for n in level for c in below[n]]
        if left < 0 or steps > MOST_STEPS:
            raise ValueError("the nodes of a glTF must be a tree that is not too deep")
    if left:
        raise ValueError("the nodes of a glTF must be a tree, got a circle")


def _entries(tree: Any, name: str) -> list[dict[str, Any]]:
    entries = tree.get(name, []) if isinstance(tree, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"a glTF must be an object with a list of {name}")
    return entries


def _parts(value: Any) -> list[dict[str, Any]]:
    return [value] if isinstance(value, dict) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "data:"


class Beside:
    """Gives the referenced files of a mesh: only regular files in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: Any) -> bytes:
        """Read a file.

        Raises:
            ValueError: if it is outside the folder or missing.
        """
        file = _beside(self.folder, str(name))
        if not file.exists():
            raise ValueError(
                f"a mesh must have its other files beside it: {printable(name)[:100]} is missing"
            )
        return read_regular(file, LARGEST_FILE)
