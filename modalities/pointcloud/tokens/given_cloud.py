"""Conditioning on a clean cloud beside the noisy one: a scan, or some of the points.

Tokens and points both read the moments of its points (see `point_head`): a token those of its voxels, a noisy point
those around it. They pass through a zero-initialised layer, so that a trained model can be fine-tuned with it.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from modalities.pointcloud.tokens.point_head import NUM_MOMENTS, moments, products, solve
from modalities.pointcloud.tokens.voxel import interpolate
from modalities.pointcloud.tokens.voxel_tables import Voxels

POINTS = "points"
"""Name of the cloud in `Condition.given`, in the model's space: (B, K, 3), or as `with_there` has it."""
NUM_NEAR = 15


class GivenCloud(nn.Module):
    """Two linear layers without bias: to the width of the tokens and of the head; zero for samples without a cloud.

    Args:
        voxels: voxels of a token.
        num_grids: number of grids in which points read their neighbourhood.
        more: columns of the cloud after x, y, z.
    """

    def __init__(self, hidden_size: int, width: int, voxels: int, num_grids: int, more: int = 0) -> None:
        super().__init__()
        self.to_tokens = nn.Linear((NUM_MOMENTS + more) * voxels + 1, hidden_size, bias=False)
        self.to_points = nn.Linear((NUM_NEAR + more) * num_grids + 1, width, bias=False)

    def of_tokens(
        self, features: Float[Tensor, "B N P"], shown: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B N D"]:
        """From `voxel_features` of each token's voxels."""
        return self.to_tokens(_seen(features, shown).to(self.to_tokens.weight.dtype))

    def of_points(
        self, features: Float[Tensor, "B M f"], shown: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B M w"]:
        """From `near_features` of each grid."""
        return self.to_points(_seen(features, shown).to(self.to_points.weight.dtype))

    def initialize(self) -> None:
        """Initialise to zero."""
        nn.init.zeros_(self.to_tokens.weight)
        nn.init.zeros_(self.to_points.weight)


def with_there(points: Float[Tensor, "*B K C"], there: Float[Tensor, "*B K c"]) -> Float[Tensor, "*B K W"]:
    """Append a presence mask (1 or 0) for each further column of a cloud with channels besides x, y, z.

    Missing values, such as the colours of a scan without any, are 0. With x, y, z only, nothing is appended.
    """
    places, more = points[..., :3], points[..., 3:]
    return torch.cat([places, torch.where(there > 0, more, 0), there], dim=-1)


def _seen(features: Float[Tensor, "B n f"], shown: Bool[Tensor, " B"]) -> Float[Tensor, "B n f1"]:
    """Append a one, which distinguishes empty from hidden features; all zero if hidden."""
    return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1) * shown[:, None, None]


@torch.no_grad()
def near_features(
    given: Float[Tensor, "B K 3"],
    voxels: Voxels,
    weight: float,
    coords: Float[Tensor, "B M 3"],
    noise: Float[Tensor, "B 1 1"],
    share: Float[Tensor, "B 1 1"],
) -> Float[Tensor, "B M 15"]:
    """A Gaussian fitted to the given points around each noisy point, and its estimate of the point's noise.

    As `local_features`, but the mean m and the covariance C are of clean points, so that Tweedie's formula reads
        E[noise / s | u] = s (C + s^2)^-1 (u - m).
    Zero without nearby points.

    Args:
        given: grid coordinates of the given points, shrunk like the mean of the noisy ones.
        coords: grid coordinates of the noisy points.
        noise: s in voxels.
        share: factor by which the given points are shrunk.
    """
    at = interpolate(moments(given, voxels, weight), coords, voxels)
    count = at[..., :1]
    mean, second = (at[..., 1:] / count.clamp_min(1e-3)).split([3, 6], dim=-1)
    spread = second - products(mean)
    spread[..., :3].clamp_min_(0)
    away = coords - voxels.resolution / 2 - mean
    ridge = (noise.square() + 0.01).expand_as(mean)
    estimate = noise * solve(spread + torch.cat([ridge, torch.zeros_like(mean)], dim=-1), away)
    estimate = estimate / (1 + estimate.norm(dim=-1, keepdim=True) / 4)
    shape = torch.cat([4 * spread[..., :3], 6 * spread[..., 3:]], dim=-1)
    one = torch.ones_like(count)
    features = torch.cat([estimate, 2 * away, count.log1p(), shape, one, share * one], dim=-1)
    return torch.where(count > 1e-3, features, 0)
