"""The point branch, for details below the voxel size.

DiT-3D gives every voxel the mean of its points and reads its prediction by interpolation, so points that
share a voxel are hardly distinguished, and a surface is only resolved to a voxel. Here the grid has the
moments of the points (count, mean, spread), which distinguish a plane from a blob within a voxel, and a small
network per point maps what it reads from the grid to a prediction.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from modalities.pointcloud.tokens.voxel import add_rows_, interpolate
from modalities.pointcloud.tokens.voxel_tables import Voxels

NUM_MOMENTS = 10
NUM_LOCAL = 13


def products(u: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 6"]:
    """xx, yy, zz, xy, yz, zx."""
    return torch.cat([u * u, u * u.roll(-1, dims=-1)], dim=-1)


@torch.no_grad()
def moments(coords: Float[Tensor, "B M 3"], voxels: Voxels, weight: float = 1.0) -> Float[Tensor, "size 10"]:
    """Sums over the points of each voxel of 1, u and `products(u)`, with u the offset from the grid's centre.

    Lengths are in voxels; each point counts `weight` times.
    """
    u = coords - voxels.resolution / 2
    rows = torch.cat([torch.ones_like(u[..., :1]), u, products(u)], dim=-1).flatten(0, 1)
    index = voxels.find(coords.round().long()).flatten()
    return add_rows_(rows.new_zeros(voxels.size, NUM_MOMENTS), index, weight * rows)


@torch.no_grad()
def voxel_features(
    sums: Float[Tensor, "*n 10"], centre: Shaped[Tensor, "*m 3"], resolution: int
) -> Float[Tensor, "*n 10"]:
    """Features of voxels with these centres for a token: log count, mean offset, covariance; of order one."""
    count = sums[..., :1]
    mean, second = (sums[..., 1:] / count.clamp_min(1e-6)).split([3, 6], dim=-1)
    offset = torch.where(count > 0, mean - (centre - resolution / 2), 0)
    return torch.cat([0.8 * count.log1p(), 3 * offset, 12 * (second - products(mean))], dim=-1)


@torch.no_grad()
def local_features(
    coords: Float[Tensor, "B M 3"], voxels: Voxels, noise: Float[Tensor, "B _ 1"], weight: float = 1.0
) -> Float[Tensor, "B M 13"]:
    """A Gaussian fitted to the neighbours of each point, and its estimate of the point's noise.

    The moments of the voxels are interpolated at the point and give a mean m and a covariance C. If noise of
    deviation s was added to points of that distribution, Tweedie's formula says
        E[noise / s | u] = s C^-1 (u - m):
    across a thin surface C is little more than s^2 and the point is pulled onto it, along the surface C is
    large and the point stays. The first three features are this estimate, softly limited; then u - m, the log
    count and C.

    Args:
        noise: s in voxels, of each cloud or each point.
    """
    at = interpolate(moments(coords, voxels, weight), coords, voxels)
    count = at[..., :1].clamp_min(1e-3)
    mean, second = (at[..., 1:] / count).split([3, 6], dim=-1)
    spread = second - products(mean)
    spread[..., :3].clamp_min_(0)
    away = coords - coords.new_tensor(voxels.resolution / 2) - mean
    ridge = torch.cat([(0.002 + 0.02 / count).expand_as(mean), torch.zeros_like(mean)], dim=-1)
    estimate = noise * solve(spread + ridge, away)
    estimate = estimate / (1 + estimate.norm(dim=-1, keepdim=True) / 4)
    shape = torch.cat([4 * spread[..., :3] - 1, 6 * spread[..., 3:]], dim=-1)
    return torch.cat([estimate, 2 * away, count.log1p() - 1, shape], dim=-1)


def solve(matrix: Float[Tensor, "*n 6"], right: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """Solve symmetric 3 x 3 systems given as `products`, by cross products of the columns."""
    xx, yy, zz, xy, yz, zx = matrix.unbind(-1)
    a, b, c = (torch.stack(column, dim=-1) for column in ((xx, xy, zx), (xy, yy, yz), (zx, yz, zz)))
    rows = [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)]
    determinant = (a * rows[0]).sum(dim=-1, keepdim=True)
    return torch.stack([(row * right).sum(dim=-1) for row in rows], dim=-1) / determinant


class PointHead(nn.Module):
    """Maps the features of a point to its prediction: two layers, modulated by the conditioning.

        y = W f(x),   prediction = y[:C];   of x, y, z: y[:3] + sum over the grids of y[C + g] * estimate_g

    with one gate per grid for the local noise estimate, and C values per point. The last layer is zero-initialised.
    `modulation` is applied to the conditioning of clouds or of their tokens, which are fewer than points. The features
    of a given cloud are added to the first layer before modulation (`given_cloud`).
    """

    def __init__(
        self, in_features: int, hidden_size: int, width: int, num_grids: int, channels: int = 3
    ) -> None:
        super().__init__()
        self.channels = channels
        self.inputs = nn.Linear(in_features, width)
        self.hidden = nn.Linear(width, width)
        self.modulation = nn.Linear(hidden_size, 4 * width)
        self.output = nn.Linear(width, channels + num_grids)

    def forward(
        self,
        features: Float[Tensor, "B M f"],
        estimates: list[Float[Tensor, "B M 3"]],
        modulation: Float[Tensor, "B _ D4"],
        beside: Float[Tensor, "B M w"] | None = None,
    ) -> Float[Tensor, "B M C"]:
        scale1, shift1, scale2, shift2 = modulation.chunk(4, dim=-1)
        h = self.inputs(features)
        h = F.silu(torch.addcmul(shift1, h if beside is None else h + beside, 1 + scale1))
        h = F.silu(torch.addcmul(shift2, self.hidden(h), 1 + scale2))
        y = self.output(h).float()
        places = y[..., :3] + sum(y[..., self.channels + g, None] * e for g, e in enumerate(estimates))
        return torch.cat([places, y[..., 3 : self.channels]], dim=-1) if self.channels > 3 else places

    def initialize(self) -> None:
        """Initialise to predict zero."""
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.output.weight)
