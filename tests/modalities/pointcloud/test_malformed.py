"""Bad content of files of points, whatever the format, ends in one clear sentence."""

import json
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modalities.pointcloud.data import gltf
from modalities.pointcloud.data.formats import (
    CLOUD_SUFFIXES,
    MESH_SUFFIXES,
    read_points,
    read_set,
    read_surface,
)
from modalities.pointcloud.data.gltf import files_beside
from tests.modalities.pointcloud.test_formats import POINTS, pcd, write_cloud, write_mesh

FUZZ = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def write_any(path: Path) -> Path:
    return write_mesh(path) if path.suffix in MESH_SUFFIXES else write_cloud(path)


BAD_ARRAYS = {
    "shape (N, 3), got float32 of (3, 50) (its last two axes must be swapped)": POINTS.T,
    "got float32 of (50, 40)": np.ones((50, 40), np.float32),
    "shape (N, 3), got float32 of (50, 2)": POINTS[:, :2],
    "got float32 of (0, 3)": POINTS[:0],
    "got complex64": POINTS.astype(np.complex64),
    "got float32 of (1, 50, 3)": POINTS[None],
    "finite, got 50 of 50": np.full((50, 3), np.nan),
}


@pytest.mark.parametrize("message", BAD_ARRAYS)
def test_bad_points_are_named(tmp_path: Path, message: str) -> None:
    np.save(tmp_path / "a.npy", BAD_ARRAYS[message])
    with pytest.raises(ValueError, match=r"a\.npy: points must be") as error:
        read_points(tmp_path / "a.npy")
    assert message in str(error.value)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.savez(tmp_path / "a.npz", points=np.array([{"a": 1}]))
    torch.save({"a": Path("b")}, tmp_path / "a.pt")
    for suffix in (".npy", ".npz", ".pt"):
        with pytest.raises(ValueError, match=rf"a\{suffix}: "):
            read_points(tmp_path / f"a{suffix}")


BAD_TEXTS = {
    "empty.npy": b"",
    "huge.npy": b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 3), }".ljust(117)
    + b"\n",
    "huge.ply": b"ply\nformat binary_little_endian 1.0\nelement vertex 99999999999\nproperty float x\n"
    b"property float y\nproperty float z\nend_header\n",
    "short.ply": b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\n"
    b"property float z\nend_header\n0 0 0\n1 1 1\n",
    "words.xyz": b"three little words\n",
    "narrow.xyz": b"1 2\n3 4\n",
    "empty.xyz": b"# nothing\n",
    "other.doc": b"",
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_a_bad_file_ends_in_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD_TEXTS[name])
    for read in (read_points, read_set, lambda path: read_surface(path, 10, seed=0)):
        with pytest.raises(ValueError, match=name) as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value)


BAD_MESHES = {
    "flat.obj": (b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "zero area"),
    "nan.obj": (b"v nan 0 0\nv 1 0 0\nv 2 1 0\nf 1 2 3\n", "finite"),
    "cut.off": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n", "3 vertices and 1 faces"),
    "squared.off": (
        "OFF\n3 1 \u00b2\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n".encode("latin-1"),
        "must begin with its counts",
    ),
    "out.off": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "face"),
    "huge.off": (b"OFF\n99999999999 1 0\n0 0 0\n", "huge.off"),
    "empty.stl": (b"", "empty.stl"),
    "huge.gltf": (
        json.dumps(
            {"asset": {"version": "2.0"}, "accessors": [{"count": 10**12, "componentType": 5126}]}
        ).encode(),
        "1000000000000",
    ),
}


_SCENE = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
          "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
          "buffers": [{"byteLength": 39, "uri": "data:;base64,"
                       + b64encode(np.eye(3, dtype="<f4").tobytes() + bytes([0, 1, 2])).decode()}],
          "bufferViews": [{"buffer": 0, "byteLength": 36}, {"buffer": 0, "byteOffset": 36, "byteLength": 3}],
          "accessors": [{"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": 3},
                        {"bufferView": 1, "componentType": 5121, "type": "SCALAR", "count": 3}]}  # fmt: skip
_PRIMITIVE = {"attributes": {"POSITION": 0}, "indices": 1}
_DRACO = {"extensions": {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {}}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"scene": -1}, "one of its 1 scenes, got number -1"),
        ({"scene": True}, "one of its 1 scenes, got number True"),
        ({"scenes": [{"nodes": [-1]}]}, "one of its 1 nodes, got number -1"),
        ({"nodes": [{"mesh": -1}]}, "one of its 1 meshes, got number -1"),
        ({"nodes": [{"mesh": 7}]}, "one of its 1 meshes, got number 7"),
        ({"meshes": [{"primitives": [{"attributes": {"POSITION": -2}}]}]}, "one of its 2 accessors, got number -2"),
        ({"meshes": [{"primitives": [_PRIMITIVE | {"indices": -1}]}]}, "one of its 2 accessors, got number -1"),
        ({"bufferViews": [{"buffer": -1, "byteLength": 36}] * 2}, "one of its 1 buffers, got number -1"),
        ({"accessors": [_SCENE["accessors"][0], {**_SCENE["accessors"][1], "bufferView": -1}]},
         "one of its 2 bufferViews, got number -1"),
        ({"nodes": [{"mesh": 0, "skin": -1}], "skins": [{"joints": [0]}]}, "one of its 1 skins, got number -1"),
        ({"nodes": [{"mesh": 0, "skin": 0}], "skins": [{"joints": [-1]}]}, "one of its 1 nodes, got number -1"),
        ({"accessors": [_SCENE["accessors"][0], {**_SCENE["accessors"][1], "bufferView": 2, "componentType": 5120}],
          "bufferViews": [*_SCENE["bufferViews"], {"buffer": 1, "byteLength": 3}],
          "buffers": [*_SCENE["buffers"], {"byteLength": 3, "uri": "data:;base64," + b64encode(b"\0\1\xff").decode()}]},
         "faces must name one of 3 vertices, got number -1"),
        ({"meshes": [{"primitives": [_PRIMITIVE | _DRACO]}]}, ""),
        ({"meshes": [{"primitives": [_PRIMITIVE | _DRACO]}],
          "accessors": [_SCENE["accessors"][0], {"componentType": 5121, "type": "SCALAR", "count": 3}]},
         "KHR_draco_mesh_compression is not decoded"),
    ],
)  # fmt: skip
def test_what_a_gltf_names_is_there(change: dict, message: str, tmp_path: Path) -> None:
    """-1 is nothing, and not the last; what Draco holds is read where it stands uncompressed, too."""
    (tmp_path / "a.gltf").write_text(json.dumps(_SCENE | change))
    if not message:
        assert read_surface(tmp_path / "a.gltf", 10, seed=0).shape == (10, 3)
        return
    with pytest.raises(ValueError, match=message):
        read_surface(tmp_path / "a.gltf", 10, seed=0)


@pytest.mark.parametrize("name", ["a/" * 100_000, "a/../" * 40_000])
def test_a_file_named_at_length_is_not_looked_for(name: str, tmp_path: Path) -> None:
    """The system resolves a name part by part, each with all before: a megabyte of them took minutes."""
    (tmp_path / "a.gltf").write_text(json.dumps(_SCENE | {"buffers": [{"byteLength": 39, "uri": name}]}))
    with pytest.raises(
        ValueError, match=r"^[^\n]{,300} must name files by at most 4096 letters, got 200000: a/"
    ):
        read_surface(tmp_path / "a.gltf", 10, seed=0)
    assert gltf.files_beside(tmp_path / "a.gltf") == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "x.off",
            f"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n{'9' * 5000} 0 1 2\n",
            "it holds a number of 5000 digits",
        ),
        ("x.obj", f"v 0 0 0\nf {'9' * 5000} 1 1\n", "it holds a number of 5000 digits"),
        ("x.fbx", "Kaydara", r"a shape must be one of \.npy .* \.obj \.stl \.glb .* got \.fbx"),
    ],
)
def test_what_is_not_read_is_told(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"^\S*{name}: {said}$"):
        read_points(tmp_path / name)


def test_points_at_infinity_are_told_in_one_line(tmp_path: Path) -> None:
    """Without NumPy's own warnings, which name lines of this program."""
    (tmp_path / "a.off").write_text("4OFF\n3 1 0\n0 0 0 0\n1 0 0 0\n0 1 0 0\n3 0 1 2\n")
    nodes = [{"mesh": 0, "matrix": [float("nan")] * 16}]
    (tmp_path / "a.gltf").write_text(json.dumps(_SCENE | {"nodes": nodes}))
    for name in ("a.off", "a.gltf"):
        with pytest.raises(ValueError, match="the vertices of a mesh must be finite"):
            read_surface(tmp_path / name, 10, seed=0)


@pytest.mark.parametrize(
    "counted", [b"WIDTH 3\nHEIGHT 1\nPOINTS -3", b"WIDTH -3\nHEIGHT -1", b"WIDTH -3\nHEIGHT 1"]
)
@pytest.mark.parametrize("form", ["ascii", "binary"])
def test_a_pcd_counts_its_points(counted: bytes, form: str, tmp_path: Path) -> None:
    body = b"1 2 3\n" * 3 if form == "ascii" else np.ones((3, 3), np.float32).tobytes()
    head = pcd(form).replace(b"WIDTH %d\nHEIGHT 1\nPOINTS %d" % (len(POINTS), len(POINTS)), counted)
    assert counted in head
    (tmp_path / "a.pcd").write_bytes(head + body)
    with pytest.raises(ValueError, match="a PCD must count its points, got -"):
        read_points(tmp_path / "a.pcd")


@pytest.mark.parametrize("name", BAD_MESHES)
def test_a_bad_mesh_ends_in_one_sentence(tmp_path: Path, name: str) -> None:
    content, message = BAD_MESHES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_surface(tmp_path / name, 10, seed=0)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_an_expanded_tensor_takes_no_memory(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(10**10, 3), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="expanded view"):
        read_points(tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", sorted({*CLOUD_SUFFIXES, *MESH_SUFFIXES}))
@FUZZ
@given(data=st.data())
def test_only_value_and_os_errors_come_out_of_broken_files(
    tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    whole = tmp_path / f"whole{suffix}"
    content = (whole if whole.exists() else write_any(whole)).read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    middle = data.draw(st.binary(max_size=20))
    skip = data.draw(st.integers(0, 20))
    tail = content[cut + skip :] if data.draw(st.booleans()) else b""
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(content[:cut] + middle + tail)
    for read in (lambda path: read_surface(path, 10, seed=0), read_points, read_set):
        try:
            read(broken)
        except (ValueError, OSError) as error:
            assert broken.name in str(error)  # noqa: PT017


def test_bytes_that_would_become_too_many_numbers_are_refused_before_they_are_read(tmp_path: Path) -> None:
    """A hundred thousand bytes of zeros would be a gigabyte in double precision."""
    np.savez_compressed(tmp_path / "a.npz", points=np.zeros((9_000_000, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"^[^\n]*must not be a bomb: points would be 216000000 bytes[^\n]*$"
    ):
        read_points(tmp_path / "a.npz")


def test_a_mesh_beside_a_circle_of_links_ends_no_search(tmp_path: Path) -> None:
    """All files are looked at before the first is read: one of a stranger's would end the whole `prepare`."""
    (tmp_path / "a.bin").symlink_to("a.bin")
    (tmp_path / "a.gltf").write_text(json.dumps({"buffers": [{"uri": "a.bin", "byteLength": 4}]}))
    assert files_beside(tmp_path / "a.gltf") == [tmp_path / "a.bin"]
