"""Patchify and unpatchify: from samples to tokens, and from token predictions to samples."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ditmoe.nn import Layout


class Tokens(nn.Module, ABC):
    """Cuts samples into tokens, and reassembles token predictions.

    It is a module since it *may* have weights (the point head of clouds has some); a plain patchifier has none.
    """

    in_features: int
    """P, values per token returned by `patchify`."""
    out_features: int
    """Q, values per token expected by `unpatchify`; often P."""
    axes: int
    """Axes of the token grid: 1 for a sequence, 2 for an image, 3 for a volume or a clip."""
    patch_size: tuple[int, ...]
    """Cells of a sample per token along each axis; needed only if samples may have any size."""

    @abstractmethod
    def grid(self, x: Float[Tensor, "B *sample"]) -> tuple[int, ...]:
        """Number of tokens along each axis, for samples of one size."""

    def layout(self, x: Float[Tensor, "B *sample"]) -> Layout:
        """The layout of the samples' tokens; by default one in each cell of the grid."""
        return Layout.even(self.grid(x), len(x), x.device)

    @abstractmethod
    def patchify(self, x: Float[Tensor, "B *sample"], layout: Layout) -> Float[Tensor, "R N P"]:
        """Cut samples into tokens, in the order of their layout."""

    def pack(self, samples: Sequence[Float[Tensor, "C ..."]]) -> tuple[Float[Tensor, "T P"], Layout]:
        """The tokens of samples of different sizes, concatenated."""
        layouts = [self.layout(x[None]) for x in samples]
        rows = [self.patchify(x[None], layout)[0] for x, layout in zip(samples, layouts, strict=True)]
        return torch.cat(rows), Layout.pack([layout.grids[0] for layout in layouts], rows[0].device)

    @abstractmethod
    def positions(self, layout: Layout) -> Float[Tensor, "N D"]:
        """Position embedding of each token, of the model's width."""

    def occupied(self, tokens: Float[Tensor, "R N P"]) -> Bool[Tensor, "R N"]:
        """Which tokens are not empty space; by default all."""
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)

    def coordinates(self, layout: Layout) -> Float[Tensor, "N A"]:
        """Coordinates of each token along each axis, for rotary positions; by default its cell in the grid."""
        return layout.cells.float()

    @abstractmethod
    def unpatchify(
        self,
        tokens: Float[Tensor, "R N Q"],
        layout: Layout,
        like: Float[Tensor, "B *sample"],
        t: Float[Tensor, "*t"],
        c: Float[Tensor, "*t D"],
    ) -> Float[Tensor, "B *prediction"]:
        """Reassemble tokens into a prediction shaped like `like`, possibly with more channels.

        The times t (0..1000; shapes: `ditmoe.nn.layout`) and the conditioning vectors c are for subclasses with their
        own head. If there is separate given content (`Condition.given`), it is a further argument `given`.
        """

    def embed_given(self, given: Mapping[str, Tensor], layout: Layout) -> Float[Tensor, "R N D"] | None:
        """An embedding of separate given content, added to the tokens; by default none."""
        return None

    def sample_times(
        self, t: Float[Tensor, "*t"], x: Float[Tensor, "B *sample"], layout: Layout | None = None
    ) -> Float[Tensor, "B *ones"]:
        """Reshape times in a shape of `ditmoe.nn.layout` to broadcast to samples: each value gets its token's time.

        Args:
            x: samples, by default (B, C, *cells) or (B, *cells), whose cells divide evenly among the tokens; or, with a
                layout, their tokens (T, P), as `pack` returns them.

        Raises:
            ValueError: for any other shape.
        """
        if layout is not None:
            token = torch.arange(len(x), device=t.device)
            return t.flatten()[layout.row_of(token, t.shape)][:, None]
        grid = self.grid(x)
        each = Layout.even(grid, len(x), t.device).cells_per_time(t.shape)
        if not each:
            return t.view(-1, *[1] * (x.ndim - 1))
        first = x.ndim - len(grid)  # of the axes of cells
        times = t.repeat_interleave(each, dim=1).view(len(x), *[1] * (first - 1), *grid)
        for axis, (tokens, size) in enumerate(zip(grid, x.shape[first:], strict=True), start=first):
            times = times.repeat_interleave(size // tokens, dim=axis)
        return times

    def initialize(self) -> bool:
        """Initialise its own weights so that the initial prediction is zero; returns whether it has any.

        Called without gradients, after `ditmoe.model.initialization` has initialised all modules within it.
        """
        return False
