"""Sets of clouds: in one file, as others write them, or all files of a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from modalities.pointcloud.data.formats import count_shapes, read_set, write_npy
from modalities.pointcloud.data.ply import write_ply
from tests.modalities.pointcloud.sets import shapes
from tests.modalities.pointcloud.test_formats import POINTS, write_cloud, write_mesh


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt"])
def test_a_set_is_read_from_one_file(tmp_path: Path, suffix: str) -> None:
    sets = np.stack([POINTS, POINTS + 1])
    path = write_cloud(tmp_path / f"a{suffix}", sets)
    if suffix == ".npz":
        np.savez(path, points=sets, labels=np.array([3, 1], np.int32))
    samples = read_set(path)
    np.testing.assert_array_equal(samples.data, sets)
    assert (samples.labels is not None) == (suffix == ".npz")


def test_labels_must_match(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", points=POINTS[None], labels=np.array([0.5]))
    with pytest.raises(ValueError, match="labels must be 1 integers"):
        read_set(tmp_path / "a.npz")


def test_a_folder_is_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b").mkdir()
    write_cloud(tmp_path / "b" / "c.npy", POINTS[:40])
    write_cloud(tmp_path / "a.ply")
    write_mesh(tmp_path / "z.obj")
    (tmp_path / "v.obj").write_text("".join(f"v {x:.9g} {y:.9g} {z:.9g}\n" for x, y, z in POINTS[:40]))
    for i in range(7):
        (tmp_path / f"bad{i}.npy").write_bytes(b"x")
    (tmp_path / ".hidden.ply").write_bytes(b"x")
    samples = read_set(tmp_path)
    assert list(samples.names) == ["a", "b/c", "v", "z"]
    assert samples.data.shape == (4, 40, 3)
    np.testing.assert_array_equal(samples.data, read_set(tmp_path).data)
    assert len(np.unique(samples.data[0], axis=0)) == 40
    np.testing.assert_array_equal(samples.data[1], POINTS[:40])
    np.testing.assert_array_equal(samples.data[2], POINTS[:40])
    told = capsys.readouterr().err
    assert "7 of 11 files" in told
    assert "bad4.npy" in told
    assert "bad5.npy" not in told
    assert "40 to 2048 points" in told


def test_sets_in_a_folder_are_clouds_and_far_fewer_points_do_not_shrink_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npy(tmp_path / "a.npy", np.stack([POINTS, POINTS + 1]))
    write_npy(tmp_path / "b.npy", POINTS + 2)
    write_npy(tmp_path / "few.npy", POINTS[:3])
    samples = read_set(tmp_path)
    assert list(samples.names) == ["a/0000", "a/0001", "b"]
    np.testing.assert_array_equal(samples.data, np.stack([POINTS, POINTS + 1, POINTS + 2]))
    assert samples.left_out == 1
    assert "1 of 4 clouds" in (told := capsys.readouterr().err)
    assert "few of 3" in told


def test_a_text_for_people_is_no_cloud_of_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        write_npy(tmp_path / f"{i}.npy", POINTS)
    (tmp_path / "license.txt").write_text("MIT 1 2 3\n")
    assert read_set(tmp_path).data.shape == (2, *POINTS.shape)
    assert ".txt 1" in capsys.readouterr().out


def test_a_folder_without_a_cloud_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_set(tmp_path)
    (tmp_path / "a.npy").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"1 unreadable files, the first: .*a\.npy"):
        read_set(tmp_path)


def test_a_shape_in_two_formats_is_one_shape(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_ply(tmp_path / f"{name}.ply", POINTS)
        write_npy(tmp_path / f"{name}.npy", POINTS)
    assert read_set(tmp_path).names == ["a", "b"]


def test_files_of_others(tmp_path: Path, capsys):
    points = shapes(0, 3, 20).astype(np.float32)
    np.savez(tmp_path / "any.npz", smp=points)
    torch.save({"points": torch.from_numpy(points), "epoch": 3}, tmp_path / "named.pt")
    torch.save({"x": torch.from_numpy(points)}, tmp_path / "one.pt")
    torch.save([torch.from_numpy(cloud) for cloud in points], tmp_path / "list.pt")
    torch.save(
        {"ref": torch.from_numpy(points), "mean": torch.zeros(3), "std": torch.ones(3)}, tmp_path / "ref.pt"
    )
    for name in ("any.npz", "named.pt", "one.pt", "list.pt", "ref.pt"):
        np.testing.assert_array_equal(read_set(tmp_path / name).data, points)
    assert capsys.readouterr().err == f"{tmp_path / 'ref.pt'}: ref is read as it is, without mean, std\n"
    torch.save([torch.from_numpy(points[0]), torch.from_numpy(points[1][:15])], tmp_path / "mixed.pt")
    assert read_set(tmp_path / "mixed.pt").data.shape == (2, 15, 3)
    assert "15 to 20 points, 15 of each were drawn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((4, 3, 20), np.float32), r"\(4, 3, 20\) \(its last two axes must be swapped\)"),
        (
            np.zeros((4, 0, 3), np.float32),
            r"must be numbers of shape \(S, N, 3\), got float32 of \(4, 0, 3\)",
        ),
        (np.full((4, 9, 3), np.nan, np.float32), "finite, got 36 of 36 with NaN"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}, "must hold just one of points, .*, got a, b"),
        (
            {"ref": torch.zeros(2, 3), "gen": torch.zeros(2, 3)},
            "must hold just one of points, .*, got ref, gen",
        ),
        ({}, "must hold just one of points, .*, got none"),
        ([torch.zeros(4, 3), torch.zeros(0, 3)], r"got float64 of \(0, 3\)"),
        (["a"], "must hold one dense tensor"),
    ],
)
def test_a_file_that_is_no_set_ends_in_one_sentence(tmp_path: Path, content, message):
    path = tmp_path / ("a.npy" if isinstance(content, np.ndarray) else "a.pt")
    np.save(path, content) if path.suffix == ".npy" else torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        read_set(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_small_file_is_no_set_of_millions(tmp_path: Path) -> None:
    """Each of which would be a shape to be made, or shown."""
    np.savez_compressed(tmp_path / "a.npz", points=np.zeros((300_000, 1, 3), np.float16))
    message = r"^[^\n]*a set must have 16 bytes of its file for each sample, got 300000 in \d+ bytes$"
    with pytest.raises(ValueError, match=message):
        read_set(tmp_path / "a.npz")
    assert count_shapes(tmp_path / "a.npz") is None
    np.savez_compressed(
        tmp_path / "b.npz", points=np.tile(POINTS[:8], (2000, 1, 1)) + np.arange(2000)[:, None, None]
    )
    assert count_shapes(tmp_path / "b.npz") == len(read_set(tmp_path / "b.npz")) == 2000
