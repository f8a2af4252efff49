"""HDF5, LAS and LAZ, where the extra `scans` is installed."""

from pathlib import Path

import numpy as np
import pytest

from modalities.pointcloud.data import scans
from modalities.pointcloud.data.formats import read_set, read_surface

POINTS = np.random.default_rng(0).random((50, 3)).round(3)
FAR = np.array([694386, 5155487, 381])


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "find_spec", lambda name: None)
    (tmp_path / "a.las").write_bytes(b"LASF")
    with pytest.raises(ValueError, match=r"a\.las: \.las needs laspy: pip install 'ditmoe\[scans\]'"):
        read_surface(tmp_path / "a.las", 10, 0)


def test_a_set_of_modelnet_is_read_and_no_other_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra `scans` is not installed")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.stack([POINTS, POINTS + 1])
    np.testing.assert_array_equal(read_set(tmp_path / "a.h5").data, np.float32([POINTS, POINTS + 1]))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data"] = h5py.ExternalLink("a.h5", "data")
    with pytest.raises(ValueError, match="must not name other files"):
        read_set(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("data", (10**9, 3), "f4", chunks=(1000, 3))
    with pytest.raises(ValueError, match="must hold the 3000000000 numbers"):
        read_set(tmp_path / "c.h5")


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_a_scan_keeps_its_digits(tmp_path: Path, suffix: str) -> None:
    laspy = pytest.importorskip("laspy", reason="the extra `scans` is not installed")
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = np.full(3, 0.001), FAR
    las = laspy.LasData(header)
    las.x, las.y, las.z = (POINTS + FAR).T
    las.write(tmp_path / f"a{suffix}")
    read = read_surface(tmp_path / f"a{suffix}", 50, 0) - FAR
    np.testing.assert_allclose(np.sort(read, axis=0), np.sort(POINTS, axis=0), atol=1e-6)
