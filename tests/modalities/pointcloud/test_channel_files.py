"""Colours and normals of files: read from every format, told from other columns, and given by meshes."""

from pathlib import Path

import numpy as np
import pytest
import trimesh

from ditmoe.modality import Samples
from modalities.pointcloud.data.channels import Channels, colours
from modalities.pointcloud.data.formats import (
    read_cloud,
    read_points,
    read_set,
    read_surface,
    write_npy,
    write_npz,
)
from modalities.pointcloud.data.pcd import read_pcd
from modalities.pointcloud.data.ply import write_ply
from tests.modalities.pointcloud.test_channels import (
    ALL,
    BYTES,
    COLOURED,
    NORMALS,
    ORIENTED,
    POINTS,
    WHOLE,
    N,
)


def text(path: Path, rows: np.ndarray, header: str = "") -> None:
    path.write_text(header + "\n".join(" ".join(f"{v:.9g}" for v in row) for row in rows) + "\n")


def ply(path: Path, kind: str, values: np.ndarray) -> None:
    names = [
        *(f"float {a}" for a in ("x", "y", "z", "nx", "ny", "nz")),
        *(f"{kind} {c}" for c in ("red", "green", "blue")),
    ]
    head = f"ply\nformat ascii 1.0\nelement vertex {N}\n" + "".join(f"property {name}\n" for name in names)
    text(path, np.concatenate([POINTS, NORMALS, values], axis=1), head + "end_header\n")


def pcd(path: Path, form: str) -> None:
    packed = (BYTES.astype(np.uint32) << [16, 8, 0]).sum(1, dtype=np.uint32)
    kind = [
        *((name, "<f4") for name in ("x", "y", "z")),
        ("rgb", "<f4"),
        *((f"normal_{a}", "<f4") for a in "xyz"),
    ]
    rows = np.empty(N, kind)
    for i, axis in enumerate("xyz"):
        rows[axis], rows[f"normal_{axis}"] = POINTS[:, i], NORMALS[:, i]
    rows["rgb"] = packed.view(np.float32)
    head = (
        f"VERSION .7\nFIELDS {' '.join(rows.dtype.names)}\nSIZE 4 4 4 4 4 4 4\nTYPE F F F F F F F\n"
        f"COUNT 1 1 1 1 1 1 1\nWIDTH {N}\nHEIGHT 1\nPOINTS {N}\nDATA {form}\n"
    )
    if form == "ascii":
        text(path, np.array([list(row) for row in rows.tolist()]), head)
        return
    body = rows.tobytes()
    if form == "binary_compressed":
        plain = b"".join(rows[name].tobytes() for name in rows.dtype.names)
        packed_bytes = lzf(plain)
        body = len(packed_bytes).to_bytes(4, "little") + len(plain).to_bytes(4, "little") + packed_bytes
    path.write_bytes(head.encode() + body)


def lzf(plain: bytes) -> bytes:
    """A plain encoder of LZF: the nearest earlier three bytes alike, as far as they go."""
    out, literal, seen, at = bytearray(), bytearray(), {}, 0

    def flush() -> None:
        for start in range(0, len(literal), 32):
            piece = literal[start : start + 32]
            out.extend([len(piece) - 1, *piece])
        literal.clear()

    while at < len(plain):
        key = plain[at : at + 3]
        before = seen.get(key)
        seen[key] = at
        if len(key) < 3 or before is None or at - before > 8192:
            literal.append(plain[at])
            at += 1
            continue
        length = 3
        while at + length < len(plain) and length < 264 and plain[before + length] == plain[at + length]:
            length += 1
        flush()
        back, size = at - before - 1, length - 2
        out.extend([size << 5 | back >> 8] if size < 7 else [7 << 5 | back >> 8, size - 7])
        out.append(back & 255)
        at += length
    flush()
    return bytes(out)


def write(path: Path) -> None:
    """The same cloud in one of the formats, with colours and normals."""
    match path.name:
        case "bytes.ply":
            ply(path, "uchar", BYTES)
        case "shorts.ply":
            ply(path, "ushort", BYTES * 257.0)
        case "floats.ply":
            ply(path, "float", BYTES / 255)
        case "own.ply":
            write_ply(path, POINTS, BYTES, NORMALS)
        case "a.obj":
            rows = np.concatenate([POINTS, BYTES / 255], axis=1)
            lines = ["v " + " ".join(map(str, row)) for row in rows] + [
                "vn " + " ".join(map(str, n)) for n in NORMALS
            ]
            path.write_text("\n".join(lines))
        case "a.txt" | "b.npy":  # normals stand first
            values = np.concatenate([POINTS, NORMALS, BYTES], axis=1)
            text(path, values) if path.suffix == ".txt" else np.save(path, values)
        case "named.csv":
            values = np.concatenate([POINTS, np.ones((N, 1)), NORMALS, BYTES], axis=1)
            path.write_text(
                "x,y,z,i,nx,ny,nz,R,G,B\n" + "\n".join(",".join(map(str, row)) for row in values.tolist())
            )
        case "a.npz":
            np.savez(path, points=POINTS, colors=BYTES, normals=2 * NORMALS)
        case "set.npz":
            write_npz(path, Samples(WHOLE[None]), ALL)
        case "ascii.pcd" | "binary.pcd" | "binary_compressed.pcd":
            pcd(path, path.stem)
        case "a.off":
            rows = np.concatenate([POINTS, NORMALS, BYTES], axis=1)
            text(path, rows, f"CNOFF\n{N} 0 0\n")


FILES = (
    "bytes.ply", "shorts.ply", "floats.ply", "own.ply", "a.obj", "a.txt", "b.npy", "named.csv", "a.npz", "set.npz",
    "ascii.pcd", "binary.pcd", "binary_compressed.pcd", "a.off",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_its_colours_and_normals(tmp_path: Path, name: str) -> None:
    write(path := tmp_path / name)
    if name == "set.npz":
        np.testing.assert_allclose(read_set(path, channels=ALL).data[0], WHOLE, atol=1e-6)
        return
    np.testing.assert_allclose(read_points(path, channels=ALL), WHOLE, atol=1e-5)
    np.testing.assert_array_equal(read_points(path, channels=ORIENTED)[:, :3], read_points(path))


def test_columns_say_what_values_cannot(tmp_path: Path) -> None:
    write_npy(tmp_path / "a.npy", np.concatenate([POINTS, np.abs(NORMALS)], axis=1))
    as_colours = Channels(("xyz", "rgb"), ("xyz", "rgb"))
    np.testing.assert_allclose(
        read_points(tmp_path / "a.npy", channels=as_colours)[:, 3:], np.abs(NORMALS), atol=1e-6
    )
    with pytest.raises(
        ValueError, match=r"a\.npy: a file must have colours for channels=\[xyz,rgb\], got none"
    ):
        read_points(tmp_path / "a.npy", channels=COLOURED)


def test_seven_columns_without_names_are_no_colours_unless_somebody_says_so(tmp_path: Path) -> None:
    text(tmp_path / "a.txt", np.concatenate([POINTS, np.full((N, 1), 7), BYTES], axis=1))
    with pytest.raises(ValueError, match=r"got none that is told apart \(modality.columns=\)"):
        read_points(tmp_path / "a.txt", channels=COLOURED)
    skipping = Channels(("xyz", "rgb"), ("xyz", "_", "rgb"))
    np.testing.assert_allclose(read_points(tmp_path / "a.txt", channels=skipping), WHOLE[:, :6], atol=1e-5)
    text(tmp_path / "b.txt", np.concatenate([POINTS, BYTES, np.full((N, 1), 7)], axis=1))
    said = Channels(("xyz", "rgb"), ("xyz", "rgb"))
    np.testing.assert_allclose(read_points(tmp_path / "b.txt", channels=said), WHOLE[:, :6], atol=1e-5)


@pytest.mark.parametrize("intensities", [(-1200, 900), (0, 1)])
def test_seven_columns_of_which_one_cannot_be_a_byte_have_colours(tmp_path: Path, intensities: tuple) -> None:
    own = np.linspace(*intensities, N)[:, None]
    for i, columns in enumerate(([POINTS, own, BYTES], [POINTS, BYTES, own])):
        text(tmp_path / f"{i}.txt", np.concatenate(columns, axis=1))
        np.testing.assert_allclose(
            read_points(tmp_path / f"{i}.txt", channels=COLOURED), WHOLE[:, :6], atol=1e-5
        )


def test_rounded_colours_are_not_taken_for_bytes() -> None:
    np.testing.assert_array_equal(colours(np.array([[1 + 1e-6, 0.5, -1e-7]])), [[1, 0.5, 0]])
    np.testing.assert_array_equal(colours(np.array([[1, 255, 0]])), [[1 / 255, 1, 0]])
    with pytest.raises(ValueError, match=r"got -3\.\.1"):
        colours(np.array([[-3.0, 1, 0]]))


def test_leica_keeps_its_intensity_before_the_colour(tmp_path: Path) -> None:
    text(tmp_path / "a.pts", np.concatenate([POINTS, np.full((N, 1), 7), BYTES], axis=1), f"{N}\n")
    np.testing.assert_allclose(read_points(tmp_path / "a.pts", channels=COLOURED), WHOLE[:, :6], atol=1e-5)


def test_a_mesh_gives_colours_between_its_vertices_and_normals_of_its_faces(tmp_path: Path) -> None:
    corners = [(0, 0, 0), (2, 0, 0), (0, 0, 2)]
    lines = [f"v {x} {y} {z} {x / 2} 0 {z / 2}" for x, y, z in corners]
    (tmp_path / "a.obj").write_text("\n".join([*lines, "f 1 3 2"]))
    points = read_surface(tmp_path / "a.obj", 50, 0, channels=ALL)
    np.testing.assert_allclose(points[:, 3:6], points[:, :3] / 2, atol=1e-12)
    np.testing.assert_allclose(points[:, 6:], np.tile([0, 1, 0], (50, 1)), atol=1e-12)
    np.testing.assert_array_equal(points[:, :3], read_surface(tmp_path / "a.obj", 50, 0))


def test_a_ply_gives_the_colours_of_its_vertices_also_beside_faces(tmp_path: Path) -> None:
    head = "ply\nformat ascii 1.0\nelement vertex 3\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    head += "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    head += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    corners = [f"{corner} 255 0 0\n" for corner in ("0 0 0", "1 0 0", "0 1 0")]
    (tmp_path / "a.ply").write_text(head + "".join(corners) + "3 0 1 2\n")
    assert (read_surface(tmp_path / "a.ply", 9, 0, channels=COLOURED)[:, 3:] == [1, 0, 0]).all()


def test_a_gltf_gives_colours_and_keeps_the_outside_of_what_is_mirrored(tmp_path: Path) -> None:
    box = trimesh.creation.box((2, 2, 2))
    box.visual.vertex_colors = [255, 51, 0, 255]
    scene = trimesh.Scene()
    scene.add_geometry(box, transform=np.diag([-1.0, 1, 1, 1]))
    (tmp_path / "a.glb").write_bytes(trimesh.exchange.gltf.export_glb(scene))
    points = read_surface(tmp_path / "a.glb", 200, 0, channels=ALL)
    np.testing.assert_allclose(points[:, 3:6], np.tile([1, 0.2, 0], (200, 1)), atol=1e-6)
    np.testing.assert_allclose((points[:, :3] * points[:, 6:]).sum(1), 1, atol=1e-6)  # normals look outwards
    trimesh.PointCloud(POINTS, np.concatenate([BYTES, BYTES[:, :1]], axis=1)).export(tmp_path / "b.glb")
    cloud = read_points(tmp_path / "b.glb", channels=COLOURED)
    np.testing.assert_allclose(cloud, WHOLE[:, :6], atol=1e-6)


def test_rows_without_a_direction_are_left_out_and_counted(tmp_path: Path) -> None:
    normals = NORMALS.copy()
    normals[3] = 0
    write_ply(tmp_path / "a.ply", POINTS, normals=normals)
    notes: list[str] = []
    assert len(read_points(tmp_path / "a.ply", notes.append, ORIENTED)) == N - 1
    assert notes[0].startswith(f"1 of {N} points")


def test_columns_that_a_given_cloud_lacks_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "mesh.npz", vertices=np.eye(3), faces=np.array([[0, 1, 2]]))
    corners = "v 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 0 1 0 0 0 1\n"
    (tmp_path / "mesh.obj").write_text(corners + "f 1 2 3\n")
    (tmp_path / "cloud.obj").write_text(corners)
    np.save(tmp_path / "cloud.npy", np.concatenate([POINTS, NORMALS], axis=1))
    for name, rows, rgb, normals in (
        ("mesh.npz", 7, False, True),
        ("mesh.obj", 7, True, True),
        ("cloud.obj", 3, True, False),
        ("cloud.npy", N, False, True),
    ):
        points = read_cloud(tmp_path / name, 7, print, ALL)
        assert points.shape == (rows, 9)
        assert np.isfinite(points).all(0).tolist() == [True] * 3 + [rgb] * 3 + [normals] * 3
        assert np.array_equal(points[:, :3], read_cloud(tmp_path / name, 7, print))


def test_a_small_pcd_is_no_large_cloud() -> None:
    """A megabyte of repetitions was fourteen million points, and more than a gigabyte in double precision."""
    num = 6_000_000
    again = b"\xe0\xff\0" * (3 * num // 264)  # 264 bytes each
    size = 1 + 264 * (len(again) // 3)
    counted = "\n".join(
        ["FIELDS x y z", "SIZE 1 1 1", "TYPE U U U", f"POINTS {size // 3}", "DATA binary_compressed\n"]
    )
    lengths = (len(again) + 2).to_bytes(4, "little") + size.to_bytes(4, "little")
    with pytest.raises(ValueError, match="a compressed PCD must hold its"):
        read_pcd(counted.encode() + lengths + b"\0\0" + again)
