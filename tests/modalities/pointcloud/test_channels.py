"""Colour and normals beside the coordinates: kept on every way, and seen by no metric."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modalities.pointcloud import Clouds, PointCloud, PointVoxelTokens, VoxelTokens
from modalities.pointcloud.data.axes import turned
from modalities.pointcloud.data.channels import Channels, as_bytes
from modalities.pointcloud.data.formats import read_points, read_set, write_npy
from modalities.pointcloud.data.ply import write_ply
from modalities.pointcloud.data.prepare import prepare

RNG = np.random.default_rng(0)
N = 40
POINTS = RNG.normal(size=(N, 3)).astype(np.float32)
BYTES = RNG.integers(0, 256, (N, 3)).astype(np.uint8)
NORMALS = RNG.normal(size=(N, 3))
NORMALS = (NORMALS / np.linalg.norm(NORMALS, axis=1, keepdims=True)).astype(np.float32)
ALL = Channels(("xyz", "rgb", "normals"))
COLOURED, ORIENTED = Channels(("xyz", "rgb")), Channels(("xyz", "normals"))
WHOLE = np.concatenate([POINTS, BYTES / 255, NORMALS], axis=1)


def test_turning_turns_normals_and_no_colours() -> None:
    for up in "xz":
        after = turned(WHOLE, up, ALL)
        np.testing.assert_array_equal(after[:, 3:6], WHOLE[:, 3:6])
        np.testing.assert_array_equal(after[:, :3], turned(WHOLE[:, :3], up))
        np.testing.assert_array_equal(after[:, 6:], turned(WHOLE[:, 6:], up))


def folder(top: Path, channels: Channels = ALL) -> Path:
    """Six shapes as PLY, prepared: planes of one normal, with colours by place."""
    for i in range(6):
        points = RNG.uniform(-1, 1, (64, 3)).astype(np.float32)
        points[:, 1] = 0.5 * points[:, 0]  # the plane of the normal (-1, 2, 0)
        normals = np.tile(np.float32([-1, 2, 0]) / np.sqrt(np.float32(5)), (64, 1))
        place = top / "source" / "plane" / ("train", "test")[i > 3] / f"{i}.ply"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_ply(place, points, as_bytes((points + 1) / 2), normals)
    prepare(top / "source", top / "data", num_points=64, workers=1, channels=channels)
    return top / "data"


def test_prepared_and_augmented_shapes_keep_their_normals_upright_on_the_surface(tmp_path: Path) -> None:
    root = folder(tmp_path)
    assert json.loads((root / "prepare.json").read_text())["channels"] == ["xyz", "rgb", "normals"]
    clouds = Clouds(root, num_points=64, mirror=True, scale_jitter=0.5, channels=("xyz", "rgb", "normals"))
    points, _ = clouds.batch(8, seed=0, step=0)
    assert points.shape == (8, 64, 9)
    assert -1 <= points[..., 3:6].min() < -0.5 < points[..., 3:6].max() <= 1
    np.testing.assert_allclose(np.linalg.norm(points[..., 6:], axis=-1), 1, atol=1e-5)
    for cloud in points.astype(np.float64):
        across = (cloud[:, :3] - cloud[:, :3].mean(0)) @ cloud[0, 6:]
        assert np.abs(across).max() < 1e-4
    # The colour is still that of the place, whatever else was done to the cloud.
    coordinates = points[0, :, 2] - points[0, :, 2].mean()
    assert np.corrcoef(coordinates, points[0, :, 5])[0, 1] > 0.999
    some = Clouds(root, num_points=64, channels=("xyz", "normals")).batch(2, seed=0, step=0)[0]
    np.testing.assert_allclose(np.linalg.norm(some[..., 3:], axis=-1), 1, atol=1e-5)
    plain = Clouds(root, num_points=64).batch(2, seed=0, step=0)[0]
    np.testing.assert_array_equal(plain, some[..., :3])


def test_what_lacks_a_channel_is_left_out_by_name_and_none_at_all_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_ply(source / "a.ply", POINTS, BYTES)
    write_ply(source / "b.ply", POINTS + 1, BYTES)
    write_ply(source / "grey.ply", POINTS)
    report = prepare(source, tmp_path / "data", num_points=8, workers=1, channels=COLOURED)
    assert list(report["unreadable"]) == ["grey.ply"]
    assert "must have colours" in report["unreadable"]["grey.ply"]
    with pytest.raises(
        ValueError, match=r"without normals: prepare it again with modality.channels=\[xyz,normals\]"
    ):
        Clouds(tmp_path / "data", num_points=8, channels=("xyz", "normals")).batch(1, 0, 0)
    assert prepare(source, tmp_path / "data", num_points=8, workers=1)["made"] == 3
    assert "was prepared with channels ['xyz', 'rgb']: all of it is made again" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"built-in set has channels=\[xyz\] alone"):
        Clouds(channels=("xyz", "rgb")).batch(1, 0, 0)


def modality(root: Path, **options: Any) -> PointCloud:
    data = partial(Clouds, root)
    tokens = partial(PointVoxelTokens, resolution=8, patch=4, width=8, features=4)
    return PointCloud(data, tokens, num_points=64, channels=("xyz", "rgb", "normals"), **options)


def test_the_models_space_is_undone_and_files_have_every_channel(tmp_path: Path) -> None:
    cloud = modality(folder(tmp_path), evaluation={"emd": None})
    real = cloud.reference("test")
    assert (2, *cloud.sample_shape) == (2, *cloud.shape_of()) == real.data.shape == (2, 64, 9)
    facts = cloud.data_facts()
    x = real.data.copy()
    x[..., :3] = (x[..., :3] - facts["mean"]) / facts["scale"]
    x[..., 3:6] = 2 * x[..., 3:6] - 1
    np.testing.assert_allclose(cloud.decode(torch.from_numpy(x)), real.data, atol=1e-5)
    wild = cloud.decode(3 * torch.randn(2, 64, 9))
    assert (wild[..., 3:6].min(), wild[..., 3:6].max()) == (0, 1)
    np.testing.assert_allclose(np.linalg.norm(wild[..., 6:], axis=-1), 1, atol=1e-5)

    paths = cloud.write(replace(real, labels=np.zeros(2, np.int64)), tmp_path / "out")
    np.testing.assert_allclose(read_points(paths[1], channels=ALL), real.data[0], atol=1 / 255)
    np.testing.assert_allclose(read_points(paths[2], channels=ALL), real.data[0], atol=1e-6)
    cloud.write(real, tmp_path / "set.npz")
    np.testing.assert_allclose(read_set(tmp_path / "set.npz", channels=ALL).data, real.data, atol=1e-6)
    assert cloud.read(tmp_path / "set.npz").data.shape == (2, 64, 3)


def test_metrics_see_the_places_alone(tmp_path: Path) -> None:
    cloud = modality(folder(tmp_path), evaluation={"emd": None, "workers": 1, "progress": False})
    real, train = cloud.reference("test"), cloud.reference("train")
    other = replace(real, data=np.concatenate([real.data[..., :3], RNG.random((2, 64, 6))], axis=-1))
    assert cloud.evaluate(other, real, train).values == cloud.evaluate(real, real, train).values


def test_a_checkpoint_of_other_channels_is_refused(tmp_path: Path) -> None:
    cloud = modality(folder(tmp_path))
    facts = cloud.data_facts()
    assert modality(tmp_path, data_facts=facts).data_facts() == facts
    with pytest.raises(
        ValueError, match=r"must be those of the checkpoint, \[xyz\], got \[xyz,rgb,normals\]"
    ):
        modality(tmp_path, data_facts={k: v for k, v in facts.items() if k != "channels"})


@pytest.mark.parametrize("make", [VoxelTokens, PointVoxelTokens])
@pytest.mark.parametrize("kept", ["all", "occupied"])
def test_tokens_see_and_answer_for_every_channel(make: Any, kept: str) -> None:
    tokens = make(12, resolution=8, patch=4, kept=kept, channels=9)
    x = torch.randn(2, 50, 9)
    layout = tokens.layout(x)
    cut = tokens.patchify(x, layout)
    assert cut.shape[-1] == tokens.in_features
    for column in range(9):
        changed = x.clone()
        changed[:, :, column] *= 0.5
        assert not torch.equal(tokens.patchify(changed, tokens.layout(changed)), cut)
    torch.nn.init.normal_(tokens.head.output.weight) if make is PointVoxelTokens else None
    out = torch.randn(*cut.shape[:2], tokens.out_features)
    answer = tokens.unpatchify(out, layout, x, torch.full((2,), 500.0), torch.randn(2, 12))
    assert answer.shape == x.shape
    assert (answer.flatten(0, 1).std(0) > 0).all()


def test_pictures_have_the_colours_of_the_points(tmp_path: Path) -> None:
    cloud = modality(folder(tmp_path))
    real = cloud.reference("test")
    real.data[..., 3:6] = [1, 0, 0]
    cloud.save_picture(real, tmp_path / "sheet.png")
    write_npy(tmp_path / "own.npy", real.data[0])
    cloud.view([tmp_path / "own.npy"], tmp_path / "view.png")
    for name in ("sheet.png", "view.png"):
        red, green, blue = np.moveaxis(
            np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int), -1, 0
        )
        drawn = abs(red - green) + abs(red - blue) > 60
        assert drawn.any()
        assert (red[drawn] > np.maximum(green, blue)[drawn]).all()


@pytest.mark.parametrize("names", [["rgb"], ["xyz", "normals", "rgb"], ["xyz", "xyz"], []])
def test_other_channels_are_refused_in_one_line(names: list[str]) -> None:
    with pytest.raises(ValueError, match="channels must be"):
        Channels.of(names)
