"""Voxels of which only some exist say what the whole grid says, and occupied patches are a model of their own."""

import itertools
from functools import partial

import pytest
import torch

from ditmoe import DiTMoE
from ditmoe.moe import TokenChoice
from modalities.pointcloud import PointVoxelTokens, VoxelTokens
from modalities.pointcloud.tokens.point_head import local_features, moments
from modalities.pointcloud.tokens.voxel import devoxelize, interpolate, mean_rows, voxelize
from modalities.pointcloud.tokens.voxel_tables import AllVoxels, PatchVoxels, PointVoxels, touched

R, PATCH = 16, 4


def points(size: int = 2, number: int = 60) -> torch.Tensor:
    """Clouds in a corner of the grid and one far away, so that most patches are empty."""
    coords = torch.rand(size, number, 3, generator=torch.Generator().manual_seed(0)) * 5 + 3
    coords[:, 0] = 15.0
    return coords


def test_touched_patches_are_those_around_the_points() -> None:
    coords = points()
    layout = touched(coords, R, PATCH)
    expected = [
        {
            tuple(min(int(v) + o, R - 1) // PATCH for v, o in zip(point, corner, strict=True))
            for point in cloud
            for corner in itertools.product((0, 1), repeat=3)
        }
        for cloud in coords.tolist()
    ]
    for b, patches in enumerate(expected):
        assert {tuple(cell) for cell in layout.cells[layout.sample == b].tolist()} == patches
        assert layout.lengths[b] == len(patches)


def test_rows_of_patches_hold_what_the_grid_holds() -> None:
    coords, values = points(), torch.randn(2, 60, 5)
    layout = touched(coords, R, PATCH)
    some = PatchVoxels(layout, PATCH)
    whole, _ = voxelize(values, coords, R)
    where = some.centres()
    sample = layout.sample.repeat_interleave(PATCH**3)
    assert torch.equal(mean_rows(values, coords, some), whole[(sample, *where.unbind(-1))])
    assert whole.abs().sum() == pytest.approx(mean_rows(values, coords, some).abs().sum().item(), rel=1e-5)
    field = torch.randn(2, R, R, R, 4)
    rows = field[(sample, *where.unbind(-1))]
    assert torch.allclose(interpolate(rows, coords, some), devoxelize(field, coords), atol=1e-6)


def test_statistics_around_points_need_no_grid() -> None:
    coords, noise = points(), torch.tensor([0.5, 2.0]).view(2, 1, 1)
    grid, near = AllVoxels(2, R), PointVoxels(coords, R)
    assert near.size < 200
    assert torch.allclose(moments(coords, grid).sum(0), moments(coords, near).sum(0), atol=1e-3)
    assert torch.allclose(local_features(coords, grid, noise), local_features(coords, near, noise), atol=1e-6)


def model(kind: type, kept: str, **options: int) -> DiTMoE:
    torch.manual_seed(0)
    router = partial(TokenChoice, num_experts=4, top_k=2)
    net = DiTMoE(kind(24, R, PATCH, extent=3.0, kept=kept, **options), 3, 24, 3, 4, router)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.1)
    return net


KINDS = pytest.mark.parametrize("kind", [VoxelTokens, PointVoxelTokens])


@KINDS
def test_occupied_equals_all_where_every_patch_is(kind: type) -> None:
    x = 3.4 * torch.rand(2, 3000, 3) - 1.7  # a cube of deviation 1
    t, y = torch.tensor([30.0, 700.0]), torch.tensor([0, 2])
    found = []
    for kept in ("all", "occupied"):
        net = model(kind, kept)
        net.tokens.reach = net.tokens.extent = 1.7
        out, _ = net(x, t, y)
        out.square().mean().backward()
        found.append([out, *(p.grad for p in net.parameters())])
        if kept == "occupied":
            assert net.tokens.layout(x).lengths == (64, 64)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@KINDS
@torch.no_grad()
def test_occupied_samples_do_not_see_each_other(kind: type) -> None:
    net = model(kind, "occupied").eval()
    x, t, y = torch.randn(3, 80, 3), torch.tensor([5.0, 300.0, 990.0]), torch.tensor([0, 1, 3])
    x[1] *= torch.tensor([1.0, 0.1, 0.01])  # flat: few patches
    whole = net(x, t, y)[0]
    assert len(set(net.tokens.layout(x).lengths)) > 1
    for i in range(3):
        assert torch.allclose(whole[i : i + 1], net(x[i : i + 1], t[i : i + 1], y[i : i + 1])[0], atol=1e-4)
    order = torch.randperm(80)
    assert torch.allclose(whole[:, order], net(x[:, order], t, y)[0], atol=1e-4)


def test_what_occupies_nothing_is_named() -> None:
    net = model(PointVoxelTokens, "occupied")
    with pytest.raises(ValueError, match="occupies nothing"):
        net(torch.zeros(1, 0, 3), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="kept must be all or occupied, got 'some'"):
        VoxelTokens(24, kept="some")


@pytest.mark.parametrize("resolution", [1, 2, R])
def test_corners_are_the_eight_voxels_from_the_lowest_on(resolution: int) -> None:
    coords = points() * (resolution - 1) / (R - 1)
    low = coords.long().clamp(max=max(resolution - 2, 0))
    layout = touched(coords, resolution, 1)
    for voxels in (AllVoxels(2, resolution), PointVoxels(coords, resolution), PatchVoxels(layout, 1)):
        corners = [
            voxels.find((low + torch.tensor(corner)).clamp(max=resolution - 1))
            for corner in itertools.product((0, 1), repeat=3)
        ]
        assert torch.equal(voxels.corners(low), torch.stack(corners, dim=-1))
