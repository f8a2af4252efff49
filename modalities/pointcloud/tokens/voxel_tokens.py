"""How a cloud becomes tokens: voxels, cut into 3-D patches, read back at the points."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ditmoe.conditioning import SHOWN
from ditmoe.modality import Tokens, check_number
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
from modalities.pointcloud.tokens.voxel import (
    devoxelize,
    grid_coordinates,
    interpolate,
    mean_at,
    mean_rows,
    voxelize,
)
from modalities.pointcloud.tokens.voxel_tables import (
    AllVoxels,
    PatchVoxels,
    PointVoxels,
    Voxels,
    numbered,
    touched,
)
from modalities.shared import patchify, sincos, unpatchify

MOST_VOXELS = 2**16
"""Per axis of a grid: the numbers of voxels of a batch still fit 64 bits, and places in it 32-bit floats."""


def check_grid(resolution: int, table: int) -> None:
    """Refuse a grid before it is made.

    Args:
        table: places per axis that there is a row of numbers, or at least one number, for.

    Raises:
        ValueError: saying what it needs.
    """
    check_number("resolution", resolution, 1, MOST_VOXELS, whole=True)
    row = 16 if table == resolution else 8  # coordinates and their number; or the number of a token
    check_memory(row * table**3, f"{table}^3 places of a grid of resolution={resolution}")


class VoxelTokens(Tokens):
    """DiT-3D's tokens (arXiv 2307.01831): the mean coordinates per voxel in, a vector per voxel out.

    The grid is fitted to each cloud, and the prediction at a point is read from the grid by trilinear
    interpolation, so points in one voxel are told apart by nothing else. Owns no weights.

    Args:
        hidden_size: width of the position embedding.
        resolution: R, voxels per axis; a multiple of `patch`.
        patch: voxels per axis of a token.
        extent: None fits the grid to each cloud as DiT-3D does, see `grid_coordinates`.
        channels: C, numbers of a point, of which the first three are its place.
        kept: "all" patches are tokens, or "occupied": those alone that points lie in or are interpolated from, found
            anew at each step. The prediction reads no others, but the transformer no longer attends to empty space.
    """

    axes = 3
    reads_given = False
    """Whether a clean cloud beside the noisy one is read."""

    def __init__(
        self,
        hidden_size: int,
        resolution: int = 32,
        patch: int = 4,
        extent: float | None = None,
        kept: str = "all",
        channels: int = 3,
    ) -> None:
        super().__init__()
        if kept not in ("all", "occupied"):
            raise ValueError(f"kept must be all or occupied, got {kept!r}")
        check_number("channels", channels, 3, whole=True)
        self.kept, self.channels = kept, channels
        if extent is not None:
            check_number("extent", extent, above=0)
        if min(resolution, patch) < 1 or resolution % patch:
            raise ValueError(f"resolution must be a multiple of patch, got {resolution} and {patch}")
        check_grid(resolution, resolution // patch if kept == "occupied" else resolution)
        self.hidden_size, self.resolution, self.patch, self.extent = hidden_size, resolution, patch, extent
        self.in_features = self.out_features = channels * patch**3

    def grid(self, x: Float[Tensor, "B M C"]) -> tuple[int, ...]:
        return (self.resolution // self.patch,) * 3

    def layout(self, x: Float[Tensor, "B M C"]) -> Layout:
        if self.kept == "all":
            return super().layout(x)
        return touched(self.coords(x), self.resolution, self.patch)

    def patchify(self, x: Float[Tensor, "B M C"], layout: Layout) -> Float[Tensor, "R N P"]:
        coords = self.coords(x)
        if not layout.packed:
            return patchify(voxelize(x, coords, self.resolution)[0], [self.patch] * 3)
        return self.packed(mean_rows(x, coords, PatchVoxels(layout, self.patch)))

    def positions(self, layout: Layout) -> Float[Tensor, "N D"]:
        return sincos(layout.cells, self.hidden_size)

    def occupied(self, tokens: Float[Tensor, "R N P"]) -> Bool[Tensor, "R N"]:
        return tokens.any(dim=-1)  # what a patch without points holds is zero

    def unpatchify(
        self,
        tokens: Float[Tensor, "R N Q"],
        layout: Layout,
        like: Float[Tensor, "B M C"],
        t: Float[Tensor, "*t"],
        c: Float[Tensor, "*t D"],
    ) -> Float[Tensor, "B M C"]:
        return self.read(tokens, layout, self.coords(like))

    def read(
        self, tokens: Float[Tensor, "R N Q"], layout: Layout, coords: Float[Tensor, "B M 3"]
    ) -> Float[Tensor, "B M F"]:
        """What the voxels of the tokens say at points."""
        if layout.packed:
            rows = tokens.view(tokens.shape[1] * self.patch**3, -1)
            return interpolate(rows, coords, PatchVoxels(layout, self.patch))
        return devoxelize(unpatchify(tokens, [self.resolution] * 3, [self.patch] * 3), coords)

    def packed(self, rows: Float[Tensor, "size C"]) -> Float[Tensor, "1 T P"]:
        """Rows of the voxels of patches as tokens."""
        return rows.view(1, -1, self.in_features)

    def sample_times(
        self, t: Float[Tensor, "*t"], x: Float[Tensor, "B *sample"], layout: Layout | None = None
    ) -> Float[Tensor, "B *ones"]:
        """Each point has the time of the patch that it lies in.

        In training that is where the clean point lies; the noised one may lie in a patch of another time, which the
        head then goes by. In sampling both are the same.
        """
        if t.ndim == 1 or layout is not None:
            return super().sample_times(t, x, layout)
        Layout.even(self.grid(x), len(x), t.device).cells_per_time(t.shape)  # refuses what fits none
        return self.of_points(t[..., None], self.coords(x))

    def of_points(
        self, vectors: Float[Tensor, "*t C"], coords: Float[Tensor, "B M 3"]
    ) -> Float[Tensor, "B _ C"]:
        """One vector per time, for the points: (B, 1, C) for one per sample, else each point has its patch's."""
        if vectors.ndim == 2:
            return vectors[:, None]
        places = self.resolution // self.patch
        vectors = vectors.reshape(len(coords), -1, vectors.shape[-1])
        cell = numbered(coords.round().long() // self.patch, places) % places**3
        row = cell // (places**3 // vectors.shape[1])
        return vectors.gather(1, row[..., None].expand(-1, -1, vectors.shape[-1]))

    def coords(self, x: Float[Tensor, "B M C"]) -> Float[Tensor, "B M 3"]:
        """Where the points lie in the grid."""
        return grid_coordinates(x[..., :3], self.resolution, self.extent)


class PointVoxelTokens(VoxelTokens):
    """Voxels that know how their points lie, and a head that answers for each point (see `point_head`).

    Args:
        extent: the grid covers this many standard deviations of each cloud.
        features: F, numbers per voxel that the transformer hands to the points.
        width: of the head.
        fine: a second, finer grid for the local statistics has this many voxels per voxel; 1 is none.
        points: of a larger cloud the first so many make the tokens, and all are read from the field that these become:
            voxels of more points would be less noisy than any in training. A smaller one counts as one of so many. None
            takes all as they are.
        given: share of the training samples that have a clean cloud beside them; above 0 there are layers that read it
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
        """What all voxels hold, of points that count so often each."""
        size = self.resolution
        sums = moments(coords, AllVoxels(len(coords), size), weight).view(len(coords), *[size] * 3, -1)
        centres = cells([size] * 3, coords.device).view(*[size] * 3, 3)
        return voxel_features(sums, centres, size)

    def means_beside(
        self, features: Float[Tensor, "*n F"], x: Float[Tensor, "B M C"], coords: Tensor, voxels: Voxels
    ) -> Float[Tensor, "*n G"]:
        """Features of voxels, and behind them the means of the further channels of the points in each."""
        if self.channels == 3:
            return features
        means = mean_rows(x[..., 3:], coords, voxels)
        return torch.cat([features, means.view(*features.shape[:-1], -1)], dim=-1)

    def embed_given(self, given: Mapping[str, Tensor], layout: Layout) -> Float[Tensor, "R N D"] | None:
        """A clean cloud, on a grid of its own: that of clouds of unit deviation, whatever the noise."""
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
            # on the straight path; the gate learns the factor elsewhere
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
        """What a clean cloud says to noisy points z, in their unit: shrunk, as their mean is, on the straight path.

        Where times differ within a cloud, their mean counts.
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
        """Means of the further channels over the neighbours of each point, in a grid."""
        found = []
        for part, own in zip(coords.split(sizes, dim=1), values.split(sizes, dim=1), strict=True):
            found.append(mean_at(own, part, self.around(part, resolution), part))
        return found

    def first(self, x: Float[Tensor, "B M C"]) -> Float[Tensor, "B L C"]:
        """The points that make the tokens."""
        return x[:, : self.points]

    def parts(self, num: int) -> list[int]:
        """A cloud of so many points as clouds of the size that training saw, about; each is its own neighbourhood."""
        if self.points is None or num <= self.points:
            return [num]
        left = num - self.points
        size, more = divmod(left, count := -(-left // self.points))
        return [self.points, *(size + (i < more) for i in range(count))]

    def weight(self, x: Float[Tensor, "B M C"]) -> float:
        """How often a point counts."""
        return 1.0 if self.points is None else self.points / max(1, x.shape[1])

    def around(self, coords: Float[Tensor, "B M 3"], resolution: int, readers: int | None = None) -> Voxels:
        """Voxels for the statistics around points, read by so many; which is a matter of speed alone."""
        if resolution**3 > 32 * (readers or coords.shape[1]):
            return PointVoxels(coords, resolution)
        return AllVoxels(len(coords), resolution)

    def coords(self, x: Float[Tensor, "B M C"]) -> Float[Tensor, "B M 3"]:
        return grid_coordinates(x[..., :3] / deviation(self.first(x)), self.resolution, self.reach)

    def initialize(self) -> bool:
        return True  # the head's last layer


def deviation(x: Float[Tensor, "B M C"]) -> Float[Tensor, "B 1 1"]:
    """Root mean square of the coordinates of each cloud: the unit of its grid, whatever the noise in it."""
    return x[..., :3].square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-6)
