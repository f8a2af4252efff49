"""How a cloud becomes tokens: voxels, cut into 3-D patches, read back at the points."""

from jaxtyping import Float
from torch import Tensor

from ditmoe.modality import Tokens
from modalities.grid import coordinates, patchify, sincos, unpatchify
from modalities.pointcloud.voxel import devoxelize, grid_coordinates, voxelize


class VoxelTokens(Tokens):
    """DiT-3D's tokens (arXiv 2307.01831): the mean coordinates per voxel in, a vector per voxel out.

    The grid is fitted to each cloud, and the prediction at a point is read from the grid by trilinear
    interpolation, so points in one voxel are told apart by nothing else. Owns no weights.

    Args:
        hidden_size: width of the position embedding.
        resolution: R, voxels per axis; a multiple of `patch`.
        patch: voxels per axis of a token.
        extent: None fits the grid to each cloud; a number covers [-extent, extent].
    """

    def __init__(
        self, hidden_size: int, resolution: int = 32, patch: int = 4, extent: float | None = None
    ) -> None:
        super().__init__()
        if resolution % patch:
            raise ValueError(f"resolution must be a multiple of patch, got {resolution} and {patch}")
        self.hidden_size, self.resolution, self.patch, self.extent = hidden_size, resolution, patch, extent
        self.in_features = self.out_features = 3 * patch**3

    def patchify(self, x: Float[Tensor, "B M 3"]) -> Float[Tensor, "B N P"]:
        grid, _ = voxelize(x, self.coords(x), self.resolution)
        return patchify(grid, [self.patch] * 3)

    def positions(self, x: Float[Tensor, "B M 3"]) -> Float[Tensor, "N D"]:
        return sincos(coordinates([self.resolution // self.patch] * 3, x.device), self.hidden_size)

    def inverse(
        self, tokens: Float[Tensor, "B N Q"], like: Float[Tensor, "B M 3"], c: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B M 3"]:
        return devoxelize(self.grid(tokens), self.coords(like))

    def coords(self, x: Float[Tensor, "B M 3"]) -> Float[Tensor, "B M 3"]:
        """Where the points lie in the grid."""
        return grid_coordinates(x, self.resolution, self.extent)

    def grid(self, tokens: Float[Tensor, "B N Q"]) -> Float[Tensor, "B R R R F"]:
        """Tokens laid out as voxels."""
        return unpatchify(tokens, [self.resolution] * 3, [self.patch] * 3)
