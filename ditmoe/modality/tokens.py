"""How samples become tokens, and predictions of tokens samples again."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ditmoe.nn import Layout


class Tokens(nn.Module, ABC):
    """Cuts a sample into tokens and puts a prediction together again.

    A module only so that an adapter *may* own weights (the point head of clouds); a patchifier has none.
    """

    in_features: int
    """P, numbers per token that `patchify` gives."""
    out_features: int
    """Q, numbers per token that `unpatchify` expects; P where the two are the same cut."""
    axes: int
    """Of the grid on which the tokens lie: 1 a sequence, 2 an image, 3 a volume or a clip."""
    patch_size: tuple[int, ...]
    """Cells of a token along each axis, of samples that may have any size."""

    @abstractmethod
    def grid(self, x: Float[Tensor, "B *sample"]) -> tuple[int, ...]:
        """Tokens along each axis, of samples of one size."""

    def layout(self, x: Float[Tensor, "B *sample"]) -> Layout:
        """Which tokens the samples have; by default one for each cell of the grid."""
        return Layout.even(self.grid(x), len(x), x.device)

    @abstractmethod
    def patchify(self, x: Float[Tensor, "B *sample"], layout: Layout) -> Float[Tensor, "R N P"]:
        """Cut samples into the tokens of their layout."""

    def pack(self, samples: Sequence[Float[Tensor, "C ..."]]) -> tuple[Float[Tensor, "T P"], Layout]:
        """Samples of any sizes as rows of tokens, end to end."""
        layouts = [self.layout(x[None]) for x in samples]
        rows = [self.patchify(x[None], layout)[0] for x, layout in zip(samples, layouts, strict=True)]
        return torch.cat(rows), Layout.pack([layout.grids[0] for layout in layouts], rows[0].device)

    @abstractmethod
    def positions(self, layout: Layout) -> Float[Tensor, "N D"]:
        """Position embedding of each token, of the model's width."""

    def occupied(self, tokens: Float[Tensor, "R N P"]) -> Bool[Tensor, "R N"]:
        """Which tokens hold more than empty space; by default all."""
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)

    def coordinates(self, layout: Layout) -> Float[Tensor, "N A"]:
        """Where each token lies along each axis, for rotary positions; by default counted in tokens."""
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
        """Put tokens together into a prediction shaped like `like` (more channels where it is asked for more).

        Times t (0..1000; shapes: `ditmoe.nn.layout`) and the conditioning vectors c are there for adapters with a
        head of their own. What lies beside the samples comes as a further argument `given`, where there is some.
        """

    def embed_given(self, given: Mapping[str, Tensor], layout: Layout) -> Float[Tensor, "R N D"] | None:
        """What lies beside the samples (`Condition.given`), to be added to the tokens; by default nothing is read."""
        return None

    def sample_times(
        self, t: Float[Tensor, "*t"], x: Float[Tensor, "B *sample"], layout: Layout | None = None
    ) -> Float[Tensor, "B *ones"]:
        """Times in a shape of `ditmoe.nn.layout`, each for the numbers of its token: shaped to multiply samples.

        Args:
            x: samples, by default (B, C, *cells) or (B, *cells), of which a token covers so many along each axis; or,
                with a layout, their tokens (T, P), as `pack` gives them.

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
        """Initialise weights of its own, if any, so that it predicts zero at birth; whether it has any.

        Called without gradient, when `ditmoe.model.initialization` has been through all within it.
        """
        return False
