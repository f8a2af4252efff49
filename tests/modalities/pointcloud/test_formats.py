"""Files of points: what is written is read, whatever the format."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from modalities.pointcloud.data import parsing
from modalities.pointcloud.data.formats import (
    CLOUD_SUFFIXES,
    MESH_SUFFIXES,
    read_points,
    read_set,
    read_surface,
    write_npy,
)
from modalities.pointcloud.data.ply import write_ply

POINTS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


def pcd(form: str, kind: str = "F 4", num: int = len(POINTS)) -> bytes:
    letter, size = kind.split()
    rows = f"SIZE {size} {size} {size}\nTYPE {letter} {letter} {letter}\nCOUNT 1 1 1\nWIDTH {num}\nHEIGHT 1\n"
    return f"# .PCD v0.7\nVERSION 0.7\nFIELDS x y z\n{rows}POINTS {num}\nDATA {form}\n".encode()


def write_cloud(path: Path, points: np.ndarray = POINTS) -> Path:
    match path.suffix:
        case ".npy":
            write_npy(path, points)
        case ".npz":
            np.savez(path, points=points)
        case ".ply":
            write_ply(path, points)
        case ".pcd":
            path.write_bytes(pcd("binary") + points.astype(np.float32).tobytes())
        case ".pt":
            torch.save(torch.from_numpy(points), path)
        case _:
            np.savetxt(path, points, fmt="%.9g")
    return path


def write_mesh(path: Path) -> Path:
    trimesh.creation.box((1, 2, 3)).export(path)
    return path


@pytest.mark.parametrize("suffix", CLOUD_SUFFIXES)
def test_a_written_cloud_is_read_back(tmp_path: Path, suffix: str) -> None:
    read = read_points(write_cloud(tmp_path / f"a{suffix}"))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, POINTS)


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_a_ply_of_another_writer_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(trimesh.exchange.ply.export_ply(trimesh.creation.box(), encoding=encoding))
    np.testing.assert_allclose(read_points(path), trimesh.creation.box().vertices)


def test_a_ply_may_be_big_endian_double_and_have_more_properties(tmp_path: Path) -> None:
    header = "ply\nformat binary_big_endian 1.0\ncomment c\nelement camera 2\nproperty int id\n"
    header += f"element vertex {len(POINTS)}\nproperty uchar red\n"
    header += "".join(f"property double {axis}\n" for axis in "zyx") + "end_header\n"
    rows = b"".join(struct.pack(">B3d", 7, z, y, x) for x, y, z in POINTS)
    (tmp_path / "a.ply").write_bytes(header.encode() + struct.pack(">2i", 1, 2) + rows)
    np.testing.assert_array_equal(read_points(tmp_path / "a.ply"), POINTS)


def test_a_written_ply_is_what_trimesh_reads(tmp_path: Path) -> None:
    colors = np.arange(150, dtype=np.uint8).reshape(50, 3)
    write_ply(tmp_path / "a.ply", POINTS, colors)
    cloud = trimesh.load(tmp_path / "a.ply")
    np.testing.assert_array_equal(np.asarray(cloud.vertices, np.float32), POINTS)
    np.testing.assert_array_equal(cloud.colors[:, :3], colors)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


@pytest.mark.parametrize("suffix", [*MESH_SUFFIXES])
def test_a_surface_is_sampled_by_area(tmp_path: Path, suffix: str) -> None:
    path = write_mesh(tmp_path / f"a{suffix}")
    points = read_surface(path, 20_000, seed=1)
    np.testing.assert_array_equal(points, read_surface(path, 20_000, seed=1))
    assert not np.array_equal(points, read_surface(path, 20_000, seed=2))
    on_face = np.isclose(np.abs(points), [0.5, 1, 1.5], atol=1e-6)
    assert on_face.any(axis=1).all()
    # Of the surface of a 1 x 2 x 3 box, 6/11 is across x, 3/11 across y and 2/11 across z.
    np.testing.assert_allclose(on_face.mean(axis=0), [6 / 11, 3 / 11, 2 / 11], atol=0.02)


TETRAHEDRON = "0 0 0 1 0 0 0 1 0 0 0 1 3 0 1 2 3 0 1 3 3 0 2 3 3 1 2 3"
DRESSES = {
    "line.off": f"OFF {'4 4 6 ' + TETRAHEDRON}\n".encode(),
    "two.off": f"OFF\n4 4 6 {TETRAHEDRON}".encode(),
    "wrapped.off": f"OFF\n4\n4\n6\n{TETRAHEDRON}\n".replace(" ", "\n").encode(),
    "capitals.ply": b"ply\nformat ascii 1.0\nelement Vertex 4\nproperty float X\nproperty float Y\nproperty float Z\n"
    b"element Face 4\nproperty list uchar int Vertex_Indices\nend_header\n" + TETRAHEDRON.encode() + b"\n",
}


@pytest.mark.parametrize("name", [*DRESSES, "mesh.npz"])
def test_a_mesh_comes_in_many_dresses(tmp_path: Path, name: str) -> None:
    if name in DRESSES:
        (tmp_path / name).write_bytes(DRESSES[name])
    else:
        words = np.array(TETRAHEDRON.split(), int)
        np.savez(
            tmp_path / name, vertices=words[:12].reshape(4, 3) / 1.0, faces=words[12:].reshape(4, 4)[:, 1:]
        )
    points = read_surface(tmp_path / name, 500, seed=0)
    on = [np.isclose(points[:, axis], 0) for axis in range(3)] + [np.isclose(points.sum(1), 1)]
    assert np.any(on, axis=0).all()
    assert all(side.mean() > 0.1 for side in on)
    assert read_set(tmp_path / name, 30).data.shape == (1, 30, 3)


def test_the_parts_of_a_scene_are_in_place(tmp_path: Path) -> None:
    scene = trimesh.Scene([trimesh.creation.box()])
    scene.add_geometry(
        trimesh.creation.box(), transform=trimesh.transformations.translation_matrix([10, 0, 0])
    )
    scene.export(tmp_path / "a.glb")
    x = read_surface(tmp_path / "a.glb", 1000, seed=0)[:, 0]
    assert x.min() == pytest.approx(-0.5)
    assert x.max() == pytest.approx(10.5)
    assert not ((x > 0.51) & (x < 9.49)).any()


@pytest.mark.parametrize("suffix", [".npy", ".ply", ".xyz"])
def test_points_of_a_cloud_are_drawn_without_replacement(tmp_path: Path, suffix: str) -> None:
    path = write_cloud(tmp_path / f"a{suffix}")
    assert len(np.unique(read_surface(path, 20, seed=0), axis=0)) == 20
    assert {tuple(p) for p in read_surface(path, 99, seed=0).astype(np.float32)} == {tuple(p) for p in POINTS}


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_npy(tmp_path / "a.npy", POINTS)
    with pytest.raises(ValueError, match="Object arrays"):
        write_npy(tmp_path / "a.npy", np.array([{}]))
    np.testing.assert_array_equal(read_points(tmp_path / "a.npy"), POINTS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_a_set_is_read_once_for_all_of_its_clouds(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it for each would take the square of its size; changed content is read again."""
    opened: list[Path] = []
    for name in ("read_npz", "read_tensors"):
        real = getattr(parsing, name)
        monkeypatch.setattr(
            parsing, name, lambda path, *more, real=real: opened.append(path) or real(path, *more)
        )
    file = tmp_path / f"a{suffix}"

    def write(clouds: np.ndarray) -> None:
        torch.save(torch.from_numpy(clouds), file) if suffix == ".pt" else np.savez(file, points=clouds)

    for offset in (0, 7):
        clouds = np.stack([POINTS + number + offset for number in range(4)])
        write(clouds if offset else np.concatenate([clouds, clouds]))
        for number in (0, 1, 3, 1):
            found = read_surface(file, 50, 0, item=number)
            found[:] = 0  # which changes no other cloud
            assert sorted(read_surface(file, 50, 0, item=number)[:, 0]) == sorted(clouds[number][:, 0])
    assert opened == [file, file]
