"""Which way is up: a guess that is told and never applied, and files that are turned once."""

from pathlib import Path

import numpy as np
import pytest

from ditmoe.modality import Samples
from modalities.pointcloud import Clouds, PointCloud, PointVoxelTokens
from modalities.pointcloud.data.axes import turned
from modalities.pointcloud.data.formats import write_npy
from modalities.pointcloud.data.prepare import prepare
from modalities.pointcloud.data.up_guess import guess_up

FURNITURE = [shape.source for split in ("train", "val", "test") for shape in Clouds(cc0=True).split(split)]


def lying(cloud: np.ndarray, up: str) -> np.ndarray:
    """A shape as it lies in files whose axis `up` points up."""
    return cloud if up == "y" else turned(turned(turned(cloud, up), up), up)


@pytest.mark.parametrize("up", "xyz")
def test_the_guess_is_right_or_silent(up: str) -> None:
    rng = np.random.default_rng(0)
    told = [
        guess_up([lying(FURNITURE[i], up) for i in rng.choice(len(FURNITURE), 32, replace=False)])
        for _ in range(12)
    ]
    assert set(told) <= {up, None}
    assert told.count(up) >= 9
    every = [turned(cloud, "xyz"[i % 3]) for i, cloud in enumerate(FURNITURE)]
    assert guess_up(every) is None
    assert guess_up(FURNITURE[:7]) is None


def test_the_guess_is_told_and_not_applied(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "raw" / "chair" / "train").mkdir(parents=True)
    for i, cloud in enumerate(FURNITURE[:40]):
        write_npy(tmp_path / "raw" / "chair" / "train" / f"{i}.npy", lying(cloud, "z")[:1024])
    raw = Clouds(tmp_path / "raw", num_points=64)
    assert "look as if their axis z were up" in str(raw.understood())
    assert "look as if" not in str(Clouds(tmp_path / "raw", num_points=64, up="z").understood())
    np.testing.assert_array_equal(
        np.sort(raw.files.read(raw.split("train")[0]), axis=0),
        np.sort(np.load(raw.split("train")[0].source), axis=0),
    )
    prepare(tmp_path / "raw", tmp_path / "data", num_points=1024, workers=1)
    assert "look as if z of the files were up, not y: modality.up=z" in capsys.readouterr().out
    prepare(tmp_path / "raw", tmp_path / "wrong", num_points=1024, workers=1, up="x")
    assert "look as if z of the files were up, not x: modality.up=z" in capsys.readouterr().out


def test_what_evaluate_reads_is_turned_as_prepare_does_and_only_once(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    clouds = np.random.default_rng(0).normal(size=(3, 50, 3)).astype(np.float32)
    for i, cloud in enumerate(clouds):
        write_npy(source / f"{i}.npy", cloud)
    flat = PointCloud(Clouds, PointVoxelTokens, up="z")
    upright = np.stack([turned(cloud, "z") for cloud in clouds])
    np.testing.assert_array_equal(flat.read(source).data, upright)
    np.testing.assert_array_equal(flat.read(source / "1.npy").data[0], upright[1])
    prepare(source, tmp_path / "data", num_points=50, workers=1, up="z")
    prepared = PointCloud(Clouds, PointVoxelTokens).read(tmp_path / "data")
    np.testing.assert_array_equal(flat.read(tmp_path / "data").data, prepared.data)
    flat._facts = {"classes": ["a"], "mean": [0.0] * 3, "scale": 1.0}
    for place in (tmp_path / "out", tmp_path / "out.npz"):
        flat.write(Samples(upright), place)
        np.testing.assert_array_equal(np.sort(flat.read(place).data, axis=0), np.sort(upright, axis=0))
