"""Numbers of points and moments that were kept are those of the files as they are."""

import time
from pathlib import Path

import numpy as np
import pytest

from modalities.pointcloud import Clouds
from modalities.pointcloud.data import cloud_files, kept
from modalities.pointcloud.data.cloud_files import CloudFiles


def test_what_is_kept_is_what_the_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "LEAST", 1)
    monkeypatch.setattr(kept, "SETTLED", 0)
    rng, root, opened = np.random.default_rng(0), tmp_path / "data", []
    for split in ("train", "val", "test"):
        (root / "chair" / split).mkdir(parents=True)
        for i in range(3):
            np.save(root / "chair" / split / f"{i}.npy", rng.normal(size=(30 + i, 3)).astype(np.float32))
    plain = cloud_files._points_in
    monkeypatch.setattr(cloud_files, "_points_in", lambda file: opened.append(file) or plain(file))

    def check(num: int, reads: bool) -> None:
        """So many headers are read, and clouds only where normalisation is not known."""
        time.sleep(0.02)
        fresh = Clouds(root, num_points=31, few="leave_out")
        own = Clouds(root, num_points=31, few="leave_out", index=tmp_path / "kept")
        assert fresh.count("train") == len([*fresh.split("train")])
        opened.clear()
        assert [s.name for s in own.split("train")] == [s.name for s in fresh.split("train")]
        assert len(opened) == num
        read: list[object] = []
        monkeypatch.setattr(
            own.files, "read", lambda shape: read.append(shape) or CloudFiles.read(own.files, shape)
        )
        assert (own.mean == fresh.mean).all()
        assert own.scale == fresh.scale
        assert bool(read) == reads

    check(9, True)
    check(0, False)
    # Of the same size.
    np.save(root / "chair" / "train" / "1.npy", rng.normal(size=(31, 3)).astype(np.float32))
    check(1, True)
    (root / "chair" / "train" / "2.npy").rename(root / "chair" / "train" / "3.npy")
    check(1, True)
    check(0, False)
    for file in (tmp_path / "kept").iterdir():
        file.write_bytes(b"damaged")
    check(9, True)
    (root / "chair" / "train" / "3.npy").write_bytes(b"no array")
    check(1, True)
    check(0, False)


def test_a_header_of_any_length_tells_the_shape(tmp_path: Path) -> None:
    from ditmoe.outside import array_shape, load_array

    for shape in ((5, 3), (1,) * 30, ()):
        np.save(tmp_path / "a.npy", np.zeros(shape))
        assert array_shape(tmp_path / "a.npy") == load_array(tmp_path / "a.npy").shape == shape
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    for read in (array_shape, load_array):
        with pytest.raises(ValueError, match=r"must have .* bytes by its header, got"):
            read(tmp_path / "a.npy")


def test_items_of_an_array_are_read_alone(tmp_path: Path) -> None:
    """Not mapped: what is cut off meanwhile is an error, where it would be the end of the process."""
    from ditmoe.outside import load_array

    for array in (np.arange(24.0).reshape(4, 3, 2), np.arange(4, dtype=np.int8), np.zeros((4, 0), "f4,i2")):
        for saved in (array, np.asfortranarray(array)):
            np.save(tmp_path / "a.npy", saved)
            for rows in (None, 2, -1, [3, 0, 0]):
                wanted = array if rows is None else array[rows]
                assert np.array_equal(load_array(tmp_path / "a.npy", rows), wanted)
    np.save(tmp_path / "a.npy", np.zeros((10**12, 0)))
    with pytest.raises(IndexError, match="got the index 1000000000000"):
        load_array(tmp_path / "a.npy", 10**12)
