"""Voxel tokens with point moments, and a per-point head."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ditmoe.conditioning import SHOWN
from ditmoe.modality import check_number
from ditmoe.nn import Layout, cells
from ditmoe.outside import check_memory
from modalities.pointcloud.tokens.given_cloud import POINTS, GivenCloud, near_features
from modalities.pointcloud.tokens.point_head import (
    NUM_LOCAL,
    NUM_MOMENTS,
    PointHead,
    local_features,
    moments,
    voxel_features,
)
from modalities.pointcloud.tokens.voxel import grid_coordinates, mean_at, mean_rows
from modalities.pointcloud.tokens.voxel_tables import AllVoxels, PatchVoxels, PointVoxels, Voxels
from modalities.pointcloud.tokens.voxel_tokens import MOST_VOXELS, VoxelTokens
from modalities.shared import patchify


class PointVoxelTokens(VoxelTokens):
    """Voxel tokens with the moments of their points, and a per-point head (see `point_head`).

    Args:
        extent: the grid covers this many standard deviations of each cloud.
        features: F, features per voxel from the transformer to the points.
        width: width of the head.
        fine: refinement factor of a second, finer grid for local statistics; 1 is none.
        points: of a larger cloud, only the first so many make the tokens, and all points are read from their field, as
            voxels with more points would be less noisy than in training. A smaller cloud is weighted as one of so many.
            None uses all points unweighted.
        given: fraction of the training samples with a clean cloud beside them; above 0 there are layers that read it
            (see `given_cloud`).
    """

    def __init__(
        self,
        hidden_size: int,
        resolution: int = 16,
        patch: int = 4,
        extent: float = 3.0,
        features: int = 16,
        width: int = 64,
        fine: int = 2,
        kept: str = "all",
        points: int | None = None,
        channels: int = 3,
        given: float = 0.0,
    ) -> None:
        super().__init__(hidden_size, resolution, patch, kept=kept, channels=channels)
        check_number("given", given, 0, 1)
        if points is not None and points < 1:
            raise ValueError(f"points must be at least 1, got {points}")
        for name, value in {"features": features, "width": width, "fine": fine}.items():
            check_number(name, value, 1, whole=True)
        check_number("extent", extent, above=0)
        check_number("fine * resolution", fine * resolution, 1, MOST_VOXELS, whole=True)
        check_memory(
            4 * features * patch**3 * hidden_size, f"weights for features={features} and patch={patch}"
        )
        check_memory(4 * width * (hidden_size + features + width), f"weights for width={width}")
        self.points = points
        self.reach = extent
        more = channels - 3
        self.in_features, self.out_features = (NUM_MOMENTS + more) * patch**3, features * patch**3
        self.resolutions = [resolution, fine * resolution] if fine > 1 else [resolution]
        num_inputs = features + 3 + 3 + 12 + more + (NUM_LOCAL + more) * len(self.resolutions)
        self.head = PointHead(num_inputs, hidden_size, width, len(self.resolutions), channels)
        self.reads_given = given > 0
        if self.reads_given:
            self.given_cloud = GivenCloud(hidden_size, width, patch**3, len(self.resolutions), 2 * more)

    def patchify(self, x: Float[Tensor, "B M C"], layout: Layout) -> Float[Tensor, "R N P"]:
        x = self.first(x)
        coords, size = self.coords(x), self.resolution
        if layout.packed:
            kept = PatchVoxels(layout, self.patch)
            rows = voxel_features(moments(coords, kept, self.weight(x)), kept.centres(), size)
            return self.packed(self.means_beside(rows, x, coords, kept))
        features = self.of_all(coords, self.weight(x))
        return patchify(self.means_beside(features, x, coords, AllVoxels(len(x), size)), [self.patch] * 3)

    def of_all(self, coords: Float[Tensor, "B M 3"], weight: float) -> Float[Tensor, "B R R R F"]:
        """Features of all voxels, with a weight per point."""
        size = self.resolution
        sums = moments(coords, AllVoxels(len(coords), size), weight).view(len(coords), *[size] * 3, -1)
        centres = cells([size] * 3, coords.device).view(*[size] * 3, 3)
        return voxel_features(sums, centres, size)

    def means_beside(
        self, features: Float[Tensor, "*n F"], x: Float[Tensor, "B M C"], coords: Tensor, voxels: Voxels
    ) -> Float[Tensor, "*n G"]:
        """Append to the features of voxels the means of the further channels of their points."""
        if self.channels == 3:
            return features
        means = mean_rows(x[..., 3:], coords, voxels)
        return torch.cat([features, means.view(*features.shape[:-1], -1)], dim=-1)

    def embed_given(self, given: Mapping[str, Tensor], layout: Layout) -> Float[Tensor, "R N D"] | None:
        """Embed a clean cloud on its own grid, that of clouds of unit deviation, independent of the noise."""
        if not self.reads_given:
            return None
        cloud, size = given[POINTS], self.resolution
        coords = grid_coordinates(cloud[..., :3], size, self.reach)
        features = self.of_all(coords, self.weight(coords))
        features = self.means_beside(features, cloud, coords, AllVoxels(len(cloud), size))
        tokens = self.given_cloud.of_tokens(patchify(features, [self.patch] * 3), given[SHOWN])
        return tokens.flatten(0, 1)[layout.cell][None] if layout.packed else tokens

    def unpatchify(
        self,
        tokens: Float[Tensor, "R N Q"],
        layout: Layout,
        like: Float[Tensor, "B M C"],
        t: Float[Tensor, "*t"],
        c: Float[Tensor, "*t D"],
        given: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "B M C"]:
        unit = deviation(self.first(like))
        coords = self.coords(like)
        z, more = like[..., :3] / unit, like[..., 3:]
        waves = torch.cat([2.0 * z, 4.2 * z], dim=-1)
        read = self.read(tokens.float(), layout, coords)
        features = [read, 0.7 * z, 2 * (coords - coords.floor()) - 1, waves.sin(), waves.cos()]
        features += [more] * (self.channels > 3)
        estimates = []
        for resolution in self.resolutions:
            fine = grid_coordinates(z, resolution, self.reach)
            voxel = unit * 2 * self.reach / resolution
            # for the linear path; elsewhere the gate learns the factor
            noise = self.of_points(t[..., None], coords) / 1000 / voxel
            sizes = self.parts(fine.shape[1])
            noises = noise.split(sizes, dim=1) if noise.shape[1] > 1 else [noise] * len(sizes)
            parts = [
                local_features(part, self.around(part, resolution), own, self.weight(part))
                for part, own in zip(fine.split(sizes, dim=1), noises, strict=True)
            ]
            local = torch.cat(parts, dim=1)
            estimates.append(local[..., :3])
            features.append(local)
            if self.channels > 3:
                features.append(torch.cat(self.means_around(more, fine, sizes, resolution), dim=1))
        modulation = self.of_points(self.head.modulation(F.silu(c)), coords)
        near = None if given is None or not self.reads_given else self.near(given, z, unit, t)
        return self.head(torch.cat(features, dim=-1), estimates, modulation, near)

    def near(
        self,
        given: Mapping[str, Tensor],
        z: Float[Tensor, "B M 3"],
        unit: Float[Tensor, "B 1 1"],
        t: Float[Tensor, "*t"],
    ) -> Float[Tensor, "B M w"]:
        """Features of a clean cloud for noisy points z, in their unit: shrunk like their mean on the linear path.

        If timesteps differ within a cloud, their mean is used.
        """
        noise = t.view(len(z), -1).mean(dim=1).view(-1, 1, 1) / 1000
        points, more = given[POINTS][..., :3], given[POINTS][..., 3:]
        points, features = (1 - noise) * points / unit, []
        for resolution in self.resolutions:
            clean, noisy = (grid_coordinates(x, resolution, self.reach) for x in (points, z))
            voxel = unit * 2 * self.reach / resolution
            voxels = self.around(clean, resolution, z.shape[1])
            features.append(near_features(clean, voxels, self.weight(clean), noisy, noise / voxel, 1 - noise))
            if self.channels > 3:
                features.append(mean_at(more, clean, voxels, noisy))
        return self.given_cloud.of_points(torch.cat(features, dim=-1), given[SHOWN])

    def means_around(
        self,
        values: Float[Tensor, "B M c"],
        coords: Float[Tensor, "B M 3"],
        sizes: list[int],
        resolution: int,
    ) -> list[Float[Tensor, "B m c"]]:
        """Means of the further channels over the neighbours of each point in a grid."""
        found = []
        for part, own in zip(coords.split(sizes, dim=1), values.split(sizes, dim=1), strict=True):
            found.append(mean_at(own, part, self.around(part, resolution), part))
        return found

    def first(self, x: Float[Tensor, "B M C"]) -> Float[Tensor, "B L C"]:
        """The points that make the tokens."""
        return x[:, : self.points]

    def parts(self, num: int) -> list[int]:
        """Split a cloud into parts of about the training size, each with its own neighbourhoods."""
        if self.points is None or num <= self.points:
            return [num]
        left = num - self.points
        size, more = divmod(left, count := -(-left // self.points))
        return [self.points, *(size + (i < more) for i in range(count))]

    def weight(self, x: Float[Tensor, "B M C"]) -> float:
        """The weight of a point."""
        return 1.0 if self.points is None else self.points / max(1, x.shape[1])

    def around(self, coords: Float[Tensor, "B M 3"], resolution: int, readers: int | None = None) -> Voxels:
        """Voxels for local statistics around points; `readers`, the number of reading points, only affects speed."""
        if resolution**3 > 32 * (readers or coords.shape[1]):
            return PointVoxels(coords, resolution)
        return AllVoxels(len(coords), resolution)

    def coords(self, x: Float[Tensor, "B M C"]) -> Float[Tensor, "B M 3"]:
        return grid_coordinates(x[..., :3] / deviation(self.first(x)), self.resolution, self.reach)

    def initialize(self) -> bool:
        return True  # the head's last layer


def deviation(x: Float[Tensor, "B M C"]) -> Float[Tensor, "B 1 1"]:
    """Root mean square of the coordinates of each cloud: the unit of its grid at any noise level."""
    return x[..., :3].square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-6)
