"""The point branch: moments equal their definition, the local estimate finds noise, the head knows its points."""

from functools import partial

import torch

from ditmoe import DiTMoE
from ditmoe.moe import TokenChoice
from ditmoe.nn import cells
from modalities.pointcloud import PointVoxelTokens
from modalities.pointcloud.tokens.point_head import local_features, moments, products, solve, voxel_features
from modalities.pointcloud.tokens.voxel import grid_coordinates
from modalities.pointcloud.tokens.voxel_tables import AllVoxels


def model() -> DiTMoE:
    torch.manual_seed(0)
    tokens = PointVoxelTokens(24, resolution=8, patch=4, features=4, width=16)
    model = DiTMoE(tokens, 3, 24, 2, 4, router=partial(TokenChoice, num_experts=4, top_k=2))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1 and not p.any():
                p.normal_(std=0.1)
    return model.eval()


def test_predicts_nothing_at_birth_but_learns_at_once() -> None:
    fresh = DiTMoE(PointVoxelTokens(24, 8, 4), 3, 24, 2, 4)
    x = torch.randn(2, 80, 3)
    out, _ = fresh(x, torch.tensor([10.0, 900.0]), torch.tensor([0, 3]))
    assert not out.any()
    (out - x).square().mean().backward()
    assert fresh.tokens.head.output.weight.grad.any()


@torch.no_grad()
def test_order_of_points_and_other_samples_do_not_matter() -> None:
    net, x = model(), torch.randn(3, 90, 3)
    t, y, order = torch.tensor([5.0, 400.0, 950.0]), torch.tensor([0, 1, 3]), torch.randperm(90)
    whole = net(x, t, y)[0]
    assert torch.allclose(whole[:, order], net(x[:, order], t, y)[0], atol=1e-4)
    assert torch.allclose(whole[1:2], net(x[1:2], t[1:2], y[1:2])[0], atol=1e-4)


@torch.no_grad()
def test_points_that_share_a_voxel_are_told_apart() -> None:
    net, x = model(), torch.randn(1, 90, 3)
    x[0, 1] = x[0, 0] + 0.01
    out = net(x, torch.tensor([50.0]), torch.tensor([0]))[0][0]
    assert (out[0] - out[1]).abs().max() > 1e-4


@torch.no_grad()
def test_the_points_of_a_larger_cloud_are_read_from_the_field_of_the_first() -> None:
    net, x = model(), torch.randn(2, 90, 3)
    t, y = torch.tensor([50.0, 700.0]), torch.tensor([0, 2])
    plain, more = net(x, t, y)[0], x.repeat(1, 5, 1)
    assert not torch.allclose(net(more, t, y)[0][:, :90], plain, atol=1e-3)
    net.tokens.points = 90
    assert torch.equal(net(x, t, y)[0], plain)
    for part in net(more, t, y)[0].split(90, dim=1):
        assert torch.allclose(part, plain, atol=1e-4)
    others = torch.cat([x, 2 * torch.randn(2, 200, 3)], dim=1)
    assert torch.allclose(net(others, t, y)[0][:, :90], plain, atol=1e-5)
    assert net.tokens.parts(290) == [90, 67, 67, 66]
    net.tokens.kept = "occupied"
    assert net(others, t, y)[0].isfinite().all()


def test_solve_equals_linear_algebra() -> None:
    a = torch.randn(50, 3, 3, dtype=torch.float64)
    matrix = a @ a.mT + 0.1 * torch.eye(3)
    right = torch.randn(50, 3, dtype=torch.float64)
    packed = torch.stack(
        [matrix[:, i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0))], dim=-1
    )
    assert torch.allclose(solve(packed, right), torch.linalg.solve(matrix, right))


def test_moments_and_voxel_features_equal_their_definition() -> None:
    coords = torch.rand(1, 60, 3, dtype=torch.float64) * 3
    sums = moments(coords, AllVoxels(1, 4)).view(1, 4, 4, 4, 10)
    features = voxel_features(sums, cells([4] * 3).view(4, 4, 4, 3), 4)
    voxel = coords[0].round().long()
    for where in voxel.unique(dim=0):
        own = coords[0][(voxel == where).all(dim=1)]
        x, y, z = where.tolist()
        expected = torch.cat([torch.tensor([float(len(own))]), (own - 2).sum(0), products(own - 2).sum(0)])
        assert torch.allclose(sums[0, x, y, z], expected)
        mean = own.mean(0)
        covariance = products(own - mean).mean(0)
        assert torch.allclose(features[0, x, y, z, 1:4], 3 * (mean - where))
        assert torch.allclose(features[0, x, y, z, 4:], 12 * covariance, atol=1e-9)
    assert (features[sums[..., 0] == 0] == 0).all()


def test_the_local_estimate_finds_the_noise_across_a_plane() -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.rand(1, 8000, 3, generator=generator) * 4 - 2
    plane[..., 1] = 0.1
    noise = torch.randn(plane.shape, generator=generator)
    x = plane + 0.1 * noise
    coords = grid_coordinates(x, 32, 3.0)
    unit = 32 / 6  # voxels per unit of length
    estimate = local_features(coords, AllVoxels(1, 32), torch.full((1, 1, 1), 0.1 * unit))[..., :3]
    inside = (x[0, :, [0, 2]].abs() < 1.5).all(dim=1)
    across, along = estimate[0, inside, 1], estimate[0, inside, 0]
    assert torch.corrcoef(torch.stack([across, noise[0, inside, 1]]))[0, 1] > 0.85
    assert along.std() < 0.4 * across.std()
