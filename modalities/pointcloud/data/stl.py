"""STL, text or binary: looked at before trimesh reads it, so that a count that does not fit is told."""

import io
import logging
import re

import numpy as np

_HEADER, _RECORD = 84, 50
_UNKNOWN = (0, 2**32 - 1)
"""Counts of programs that write triangles before they know how many there will be."""


def read_stl(content: bytes, note: object = None) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and triangles (F, 3) of all solids.

    Raises:
        ValueError: if the count does not fit the triangles that are there. One that was left open (0) is taken from the
            size of the file, and bytes behind the last triangle are told.
    """
    content = _sound_binary(content, note) if _is_binary(content) else _sound_text(content)
    import trimesh  # takes a second, which only those who read meshes should wait for

    if not (logger := logging.getLogger("trimesh")).handlers:
        # Without a handler its warnings, stack traces among them, would go to stderr.
        logger.addHandler(logging.NullHandler())
    scene = trimesh.load_scene(io.BytesIO(content), file_type="stl", process=False)
    parts = [scene.geometry[name] for name in sorted(scene.geometry)]
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    vertices = [np.asarray(part.vertices, np.float64) for part in parts]
    faces = [np.asarray(part.faces, np.int64) + start for part, start in zip(parts, starts, strict=False)]
    return np.concatenate([np.empty((0, 3)), *vertices]), np.concatenate([np.empty((0, 3), np.int64), *faces])


def _is_binary(content: bytes) -> bool:
    """Whether a file is binary; also many a binary one begins with "solid"."""
    if len(content) >= _HEADER and len(content) == _HEADER + _RECORD * int.from_bytes(
        content[80:84], "little"
    ):
        return True
    begins = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return not (begins.startswith(b"solid") and b"\0" not in content[:4096])


def _sound_binary(content: bytes, note: object) -> bytes:
    if len(content) < _HEADER:
        raise ValueError(f"an STL must be text that begins with 'solid', or binary, got {len(content)} bytes")
    counted = int.from_bytes(content[80:84], "little")
    there, rest = divmod(len(content) - _HEADER, _RECORD)
    if counted in _UNKNOWN and there and not rest:
        if callable(note):
            note(f"the STL counts {counted} triangles: the {there} that it holds are read")
        return content[:80] + there.to_bytes(4, "little") + content[_HEADER:]
    if counted > there or (counted < there and (not rest or not counted)):
        raise ValueError(
            f"a binary STL must hold as many triangles as it counts: {counted} are counted, {there} and {rest} bytes "
            f"are there{' (truncated?)' if counted > there else ''}"
        )
    if (behind := len(content) - _HEADER - _RECORD * counted) and callable(note):
        note(f"{behind} bytes behind the {counted} triangles that the STL counts are not read")
    return content[: _HEADER + _RECORD * counted]


def _sound_text(content: bytes) -> bytes:
    facets, corners = (
        len(re.findall(rb"(?i)(?<!end)\b" + word, content)) for word in (rb"facet\s+normal\b", rb"vertex\s")
    )
    if corners != 3 * facets:
        raise ValueError(
            f"a text STL must have three vertices a facet, got {facets} facets with {corners} vertices (truncated?)"
        )
    return content
