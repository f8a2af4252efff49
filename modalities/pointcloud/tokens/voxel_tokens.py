"""Tokens of point clouds as in DiT-3D: voxels, cut into 3-D patches, and read back at the points."""

from jaxtyping import Bool, Float
from torch import Tensor

from ditmoe.modality import Tokens, check_number
from ditmoe.nn import Layout
from ditmoe.outside import check_memory
from modalities.pointcloud.tokens.voxel import devoxelize, grid_coordinates, interpolate, mean_rows, voxelize
from modalities.pointcloud.tokens.voxel_tables import PatchVoxels, numbered, touched
from modalities.shared import patchify, sincos, unpatchify

MOST_VOXELS = 2**16
"""Most voxels per axis: flat indices of a batch still fit 64 bits, and coordinates 32-bit floats."""


def check_grid(resolution: int, table: int) -> None:
    """Refuse a grid that is too large, before it is allocated.

    Args:
        table: number of positions per axis that have at least one table entry each.

    Raises:
        ValueError: with the memory it would need.
    """
    check_number("resolution", resolution, 1, MOST_VOXELS, whole=True)
    row = 16 if table == resolution else 8  # coordinates and their number; or the number of a token
    check_memory(row * table**3, f"{table}^3 places of a grid of resolution={resolution}")


class VoxelTokens(Tokens):
    """DiT-3D's tokens (arXiv 2307.01831): the mean coordinates per voxel in, a vector per voxel out.

    The grid is fitted to each cloud, and the prediction at a point is read from the grid by trilinear
    interpolation, so points in one voxel are not distinguished otherwise. Has no weights.

    Args:
        hidden_size: width of the position embedding.
        resolution: R, voxels per axis; a multiple of `patch`.
        patch: voxels per axis of a token.
        extent: None fits the grid to each cloud as DiT-3D does, see `grid_coordinates`.
        channels: C, values per point, of which the first three are its position.
        kept: "all" patches are tokens, or "occupied": only those that contain points or that points interpolate from,
            recomputed at each step. The prediction reads no others, but the transformer no longer attends to empty
            space.
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
        return tokens.any(dim=-1)  # a patch without points is zero

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
        """Interpolate the voxels of the tokens at points."""
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
        """Each point has the timestep of its patch.

        In training, that is the patch of the clean point; the noisy point may be in a patch with another timestep,
        which the head then uses. In sampling both are the same.
        """
        if t.ndim == 1 or layout is not None:
            return super().sample_times(t, x, layout)
        Layout.even(self.grid(x), len(x), t.device).cells_per_time(t.shape)  # refuses invalid shapes
        return self.of_points(t[..., None], self.coords(x))

    def of_points(
        self, vectors: Float[Tensor, "*t C"], coords: Float[Tensor, "B M 3"]
    ) -> Float[Tensor, "B _ C"]:
        """Vectors per timestep, for the points: (B, 1, C) for one per sample, else each point has that of its patch."""
        if vectors.ndim == 2:
            return vectors[:, None]
        places = self.resolution // self.patch
        vectors = vectors.reshape(len(coords), -1, vectors.shape[-1])
        cell = numbered(coords.round().long() // self.patch, places) % places**3
        row = cell // (places**3 // vectors.shape[1])
        return vectors.gather(1, row[..., None].expand(-1, -1, vectors.shape[-1]))

    def coords(self, x: Float[Tensor, "B M C"]) -> Float[Tensor, "B M 3"]:
        """Grid coordinates of the points."""
        return grid_coordinates(x[..., :3], self.resolution, self.extent)
