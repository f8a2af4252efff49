"""Stray points of generated clouds move onto the surface, and nothing else changes."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from ditmoe.pipelines.output import finished
from modalities.pointcloud import Clouds, PointCloud, PointVoxelTokens
from modalities.pointcloud.strays import STRAY, far, onto_surface

FACTS = {"classes": ["chair"], "mean": [0.0, 0.0, 0.0], "scale": 1.0}


@pytest.fixture(scope="module")
def furniture() -> np.ndarray:
    """Real shapes, 2,048 points each."""
    return Clouds().reference("test").data


def sprinkled(cloud: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A cloud of which some points were thrown into the box around it, and which."""
    rng = np.random.default_rng(seed)
    thrown = rng.choice(len(cloud), count, replace=False)
    made = cloud.copy()
    made[thrown] = rng.uniform(cloud.min(0) - 0.1, cloud.max(0) + 0.1, (count, cloud.shape[1]))
    return made, thrown


def test_strays_move_onto_the_surface_and_all_others_stay(furniture: np.ndarray) -> None:
    for seed, cloud in enumerate(furniture):
        made, _ = sprinkled(cloud, 20, seed)
        strays = far(made)
        moved = onto_surface(made, STRAY)
        assert (moved.shape, moved.dtype) == (made.shape, made.dtype)
        np.testing.assert_array_equal(moved[~strays], made[~strays])
        distance = cKDTree(made[~strays]).query(moved[strays])[0]
        spacing = cKDTree(made[~strays]).query(made[~strays], 10)[0].max(axis=1)
        assert strays.any()
        assert (distance <= spacing.max() / 2).all()
        assert far(moved).sum() <= strays.sum() / 4


def test_place_and_size_of_a_cloud_do_not_matter(furniture: np.ndarray) -> None:
    made = sprinkled(furniture[0].astype(np.float64), 20)[0]
    np.testing.assert_allclose(onto_surface(5 * made + 100, STRAY), 5 * onto_surface(made, STRAY) + 100)


def test_strays_of_one_place_spread_and_take_the_other_channels_along() -> None:
    grid = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0), [0.0]), -1).reshape(-1, 3)
    lone = np.array([[50.0, 4, 4], [4.0, 50, 4], [4, 4, 50], [4.1, 4, 90], [4, 4.1, 130]])
    cloud = np.concatenate([grid, lone])
    colours = np.arange(len(cloud))[:, None] / len(cloud)
    moved = onto_surface(np.concatenate([cloud, colours], axis=1), STRAY)
    assert len(np.unique(moved[-3:, :3], axis=0)) == 3
    nearest = cKDTree(grid).query(lone)[1]
    np.testing.assert_array_equal(moved[-5:, 3], colours[nearest, 0])


@pytest.mark.parametrize(
    "cloud",
    [
        np.zeros((40, 3)),
        np.eye(3),
        np.full((40, 3), np.nan),
        np.repeat(np.eye(3), 9, axis=0),
        np.zeros((0, 3)),
    ],
    ids=["one place", "three points", "nan", "three places", "empty"],
)
def test_clouds_without_a_spacing_are_returned_as_they_are(cloud: np.ndarray) -> None:
    assert onto_surface(cloud, STRAY) is cloud


def modality(**options: object) -> PointCloud:
    return PointCloud(Clouds, partial(PointVoxelTokens), 2048, data_facts=FACTS, **options)  # type: ignore[arg-type]


def test_samples_and_pipelines_move_them_and_decoding_does_not(furniture: np.ndarray) -> None:
    made = torch.from_numpy(np.stack([sprinkled(cloud, 20)[0] for cloud in furniture[:2]])).float()
    keeping, moving = modality(strays=None), modality()
    np.testing.assert_array_equal(finished(made, keeping, "np"), made.numpy())
    np.testing.assert_array_equal(moving.decode(made), made.numpy())
    told = finished(made, moving, "np")
    np.testing.assert_array_equal(told, moving.refined(made.numpy()))
    assert (told != made.numpy()).any()


@pytest.mark.parametrize("strays", [0.5, 0, float("nan")])
def test_a_limit_below_the_median_is_refused(strays: object) -> None:
    with pytest.raises(ValueError, match=r"modality\.strays must be"):
        modality(strays=strays)
