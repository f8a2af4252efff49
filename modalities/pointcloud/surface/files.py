"""Writes meshes as GLB (Khronos glTF 2.0) and Wavefront OBJ, atomically."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ditmoe.checkpoint import replacing
from ditmoe.outside import file_name
from modalities.pointcloud.surface.mesh import Mesh

_FLOAT, _BYTE, _INDEX = 5126, 5121, 5125
_VERTICES, _FACES = 34962, 34963


def write_glb(path: Path, mesh: Mesh, name: str) -> None:
    """Write one mesh in a node of that name; y is up, as in glTF, and colours are written unchanged."""
    parts: list[tuple[np.ndarray, int, str, int, dict[str, Any]]] = []
    positions = mesh.vertices.astype("<f4")
    bounds = {"min": positions.min(axis=0).tolist(), "max": positions.max(axis=0).tolist()}
    parts.append((positions, _FLOAT, "VEC3", _VERTICES, bounds))
    parts.append((mesh.normals.astype("<f4"), _FLOAT, "VEC3", _VERTICES, {}))
    attributes = {"POSITION": 0, "NORMAL": 1}
    if mesh.colors is not None:
        # With a fourth byte, since rows must be aligned to four bytes.
        opaque = np.full((len(mesh.colors), 1), 255, np.uint8)
        colors = np.concatenate([mesh.colors, opaque], axis=1)
        attributes["COLOR_0"] = len(parts)
        parts.append((colors, _BYTE, "VEC4", _VERTICES, {"normalized": True}))
    parts.append((mesh.faces.astype("<u4").reshape(-1), _INDEX, "SCALAR", _FACES, {}))
    views, accessors, start = [], [], 0
    for number, (array, kind, shape, target, more) in enumerate(parts):
        views.append({"buffer": 0, "byteOffset": start, "byteLength": array.nbytes, "target": target})
        accessors.append(
            {"bufferView": number, "componentType": kind, "count": len(array), "type": shape, **more}
        )
        start += array.nbytes
    material = {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.9}}
    primitive = {"attributes": attributes, "indices": len(parts) - 1, "material": 0}
    tree = {
        "asset": {"version": "2.0", "generator": "ditmoe"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [{"name": name, "primitives": [primitive]}],
        "materials": [material],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": start}],
    }
    said = json.dumps(tree).encode()
    said += b" " * (-len(said) % 4)
    lengths = [12 + 8 + len(said) + 8 + start, len(said), start]
    header = np.array([0x46546C67, 2, lengths[0], lengths[1], 0x4E4F534A], "<u4").tobytes()
    with replacing(path) as stream:
        stream.write(header + said + np.array([start, 0x004E4942], "<u4").tobytes())
        for array, *_ in parts:
            stream.write(np.ascontiguousarray(array).tobytes())


def write_obj(path: Path, mesh: Mesh, name: str) -> None:
    """Write one object of that name, with spaces replaced; vertex colours follow the positions."""
    lines = [f"o {file_name(name).replace(' ', '_')}\n"]
    if mesh.colors is None:
        lines += ["v %.9g %.9g %.9g\n" % tuple(row) for row in mesh.vertices.tolist()]  # noqa: UP031  (three times as fast)
    else:
        rows = np.concatenate([mesh.vertices, mesh.colors / 255], axis=1)
        lines += ["v %.9g %.9g %.9g %.6g %.6g %.6g\n" % tuple(row) for row in rows.tolist()]  # noqa: UP031
    lines += ["vn %.5f %.5f %.5f\n" % tuple(row) for row in mesh.normals.tolist()]  # noqa: UP031
    corners = np.repeat(mesh.faces + 1, 2, axis=1)
    lines += ["f %d//%d %d//%d %d//%d\n" % tuple(row) for row in corners.tolist()]  # noqa: UP031
    with replacing(path) as stream:
        stream.write("".join(lines).encode())
