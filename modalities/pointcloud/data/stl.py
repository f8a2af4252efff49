"""STL, text or binary, with validation of the triangle count."""

import re

import numpy as np

from modalities.pointcloud.data.channels import Geometry

_HEADER, _RECORD = 84, 50
_UNKNOWN = (0, 2**32 - 1)
"""Placeholder counts of programs that stream triangles."""


def read_stl(content: bytes, note: object = None) -> Geometry:
    """Read vertices (V, 3) and triangles (F, 3) of all solids.

    Raises:
        ValueError: if the count does not match the triangles. A placeholder count is replaced by the file size, and
            bytes after the last triangle are noted.
    """
    vertices = _binary(content, note) if _is_binary(content) else _text(content)
    return Geometry(vertices, np.arange(len(vertices)).reshape(-1, 3))


def _is_binary(content: bytes) -> bool:
    """Whether a file is binary; some binary files also begin with "solid"."""
    if len(content) >= _HEADER and len(content) == _HEADER + _RECORD * int.from_bytes(
        content[80:84], "little"
    ):
        return True
    begins = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return not (begins.startswith(b"solid") and b"\0" not in content[:4096])


def _binary(content: bytes, note: object) -> np.ndarray:
    if len(content) < _HEADER:
        raise ValueError(f"an STL must be text that begins with 'solid', or binary, got {len(content)} bytes")
    counted = int.from_bytes(content[80:84], "little")
    there, rest = divmod(len(content) - _HEADER, _RECORD)
    if counted in _UNKNOWN and there and not rest:
        if callable(note):
            note(f"the STL counts {counted} triangles: the {there} that it holds are read")
        counted = there
    if counted > there or (counted < there and (not rest or not counted)):
        raise ValueError(
            f"a binary STL must hold as many triangles as it counts: {counted} are counted, {there} and {rest} bytes "
            f"are there{' (truncated?)' if counted > there else ''}"
        )
    if (behind := len(content) - _HEADER - _RECORD * counted) and callable(note):
        note(f"{behind} bytes behind the {counted} triangles that the STL counts are not read")
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attributes", "<u2")])
    return np.frombuffer(content, record, counted, _HEADER)["corners"].reshape(-1, 3).astype(np.float64)


def _text(content: bytes) -> np.ndarray:
    """Parse in one pass over all solids, of which a small file can have a hundred thousand."""
    facets, corners = (
        len(re.findall(rb"(?i)(?<!end)\b" + word, content)) for word in (rb"facet\s+normal\b", rb"vertex\s")
    )
    if corners != 3 * facets:
        raise ValueError(
            f"a text STL must have three vertices a facet, got {facets} facets with {corners} vertices (truncated?)"
        )
    found = re.findall(rb"(?i)\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", content)
    if len(found) != corners:
        raise ValueError("a vertex of a text STL must have three coordinates")
    return np.array([[float(word) for word in words] for words in found], np.float64).reshape(-1, 3)
