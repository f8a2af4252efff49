"""Meshes and clouds made to do harm: counts that nothing stands behind, files beside them, columns without end."""

import json
from pathlib import Path

import numpy as np

from tests.hostile.pictures import Maker, png

_BOX = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}]}  # fmt: skip
_ZEROS = {"componentType": 5126, "type": "VEC3", "count": 10**8}
_POINTS = {"buffers": [{"byteLength": 36, "uri": "data:;base64," + "A" * 48}],
           "bufferViews": [{"buffer": 0, "byteLength": 36}],
           "accessors": [{"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": 3}]}  # fmt: skip
TREES = {
    "escaped": json.dumps({**_BOX, "accessors": [_ZEROS]}).replace('"count"', '"\\u0063ount"'),
    "many zeros": json.dumps({**_BOX, "accessors": [{**_ZEROS, "count": 400}] * 400_0}),
    "shared parts": json.dumps({**_BOX, **_POINTS, "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}] * 5000}],
                                "accessors": [{**_ZEROS, "count": 200_000}]}).ljust(400_000),
    "elsewhere": json.dumps({**_BOX, **_POINTS, "buffers": [{"byteLength": 36, "uri": "../../../../etc/passwd"}]}),
    "endless": json.dumps({**_BOX, **_POINTS, "buffers": [{"byteLength": 36, "uri": "/dev/zero"}]}),
    "chain": json.dumps({**_BOX, **_POINTS, "nodes": [{"children": [i + 1]} for i in range(20_000)] + [{"mesh": 0}]}),
    "children that are a number": json.dumps({**_BOX, **_POINTS, "nodes": [{"children": 5, "mesh": 0}]}),
    "circle": json.dumps({**_BOX, **_POINTS, "nodes": [{"children": [1]}, {"children": [0], "mesh": 0}]}),
    "deep": "[" * 100_000,
    "twice below": json.dumps({**_BOX, "nodes": [{"children": [1] * 30_000}, {"children": [2] * 30_000},
                               {"children": list(range(3, 60_003))}] + [{}] * 60_000}, separators=(",", ":")),
    "child from the end": json.dumps({**_BOX, "nodes": [{"children": [-1]}] + [{}] * 150_000
                                      + [{"children": [-1] * 150_000}]}, separators=(",", ":")),
    "instances of nothing": json.dumps({**_BOX, "accessors": [{**_ZEROS, "count": 0}, {**_ZEROS, "count": 900_000}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}] * 100}], "nodes": [{"mesh": 0, "extensions":
        {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": 1}}}}]}).ljust(900_000),
    "morphs": json.dumps({**_BOX, "accessors": [{**_ZEROS, "count": 400_000}], "meshes": [{"weights": [1] * 20_000,
        "primitives": [{"attributes": {"POSITION": 0}, "targets": [{"POSITION": 0}] * 20_000}]}]}),
    "joints": json.dumps({**_BOX, "accessors": [{**_ZEROS, "count": 0}], "scenes": [{"nodes": list(range(1000))}],
        "nodes": [{"mesh": 0, "skin": 0}] * 1000, "skins": [{"joints": [0] * 100_000}]}),
    "indices again": json.dumps({**_BOX, "accessors": [{**_ZEROS, "count": 3}, {"componentType": 5125, "type": "SCALAR",
        "count": 900_000}], "scenes": [{"nodes": list(range(1000))}], "nodes": [{"mesh": 0}] * 1000, "meshes": [
        {"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "mode": 0}]}]}).ljust(900_000),
    "lines again": json.dumps({**_BOX, "scenes": [{"nodes": list(range(20_000))}], "nodes": [{"mesh": 0}] * 20_000,
                               "meshes": [{"primitives": [{"mode": 1}] * 20_000}]}),
}  # fmt: skip


def gltf(tree: str) -> Maker:
    def make(place: Path) -> Path:
        (place / "a.gltf").write_text(tree)
        return place / "a.gltf"

    return make


def besides(hollow: bool) -> Maker:
    """A tree that counts as many zeros as the files beside it have bytes: one of holes, or one by many names."""

    def make(place: Path) -> Path:
        with open(place / "x.bin", "wb") as stream:
            stream.truncate(10**12) if hollow else stream.write(bytes(400_000))
        names = [f"../{place.name}/" * number + "x.bin" for number in range(100)]
        tree = {**_BOX, "accessors": [{**_ZEROS, "count": 30_000_000}],
                "buffers": [{"byteLength": 1, "uri": name} for name in names]}  # fmt: skip
        return gltf(json.dumps(tree))(place)

    return make


_XYZ = "element vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
_LIST = "property list uchar uchar "
TEXTS = {
    "a.xyz": "a\n" * 400_000,
    "b.xyz": "0\n" * 400_000,
    "c.xyz": "1\n0 0 0\n" * 100_000,
    "a.stl": "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
             "endsolid\n" * 8000,
    "a.ply": f"ply\nformat binary_little_endian 1.0\n{_XYZ}element face 60\n"
             + "".join(f"{_LIST}l{i}\n" for i in range(10_000)) + "end_header\n" + "\0" * 12
             + ("\1\0" + "\0" * 9999 + "\0" * 10_000) * 30,
    "b.ply": f"ply\nformat binary_little_endian 1.0\nelement none {10**10}\n{_XYZ}end_header\n" + "\0" * 12,
}  # fmt: skip
"""Of clouds and meshes: lines that are taken off one by one, counts of nothing, solids and columns without number."""


def text(name: str, content: str) -> Maker:
    def make(place: Path) -> Path:
        (place / name).write_bytes(content.encode("latin-1"))
        return place / name

    return make


def columns(place: Path) -> Path:
    """A list of labels of as many columns as rows."""
    (place / "a.png").write_bytes(png())
    (place / "metadata.csv").write_text("a," * 200_000 + "file_name,label\n" + "a\n" * 200_000)
    return place


def materials(place: Path) -> Path:
    """A mesh with a material for each face."""
    points = "".join(f"v {i} 0 {i % 7}\n" for i in range(20_000)) + "vt 0 0\nvn 0 0 1\n"
    faces = "".join(f"usemtl m{i}\nf 1/1/1 2/1/1 {i + 3}/1/1\n" for i in range(15_000))
    (place / "a.obj").write_text(points + faces)
    return place / "a.obj"


def far_cloud(place: Path) -> Path:
    np.save(place / "a.npy", np.full((9, 3), 1e38, np.float32))
    return place / "a.npy"


def hollow_rows(place: Path) -> Path:
    """A trillion rows of nothing."""
    with open(place / "a.npy", "wb") as stream:
        fields = [(axis, "|V0") for axis in "xyz"]
        header = {"descr": fields, "fortran_order": False, "shape": (10**12,)}
        np.lib.format.write_array_header_1_0(stream, header)
    return place / "a.npy"
