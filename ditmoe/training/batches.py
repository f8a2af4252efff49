"""Training batches: a function of seed and number alone, however many processes share them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditmoe.diffusion import Process, torch_generator
from ditmoe.distributed import Ranks
from ditmoe.modality import Modality, Tokens
from ditmoe.nn import Layout
from ditmoe.parallel import Mesh


@dataclass(frozen=True)
class Batch:
    """What a forward pass sees: of this process its part, counted over all of them.

    Attributes:
        index: its number.
        x0: (B, *sample) samples of one size; or (T, P) the tokens of samples of different sizes, end to end.
        noise: like `x0`.
        t: (B,) times.
        y: (B,) labels, some of which are the null class.
        layout: of the tokens, where sizes differ.
        size: samples of all processes together.
        share: numbers of x0 that count, of all processes together, over the number of processes.
        mask: shaped to multiply x0, 1 where a number counts in the loss; None counts all.
    """

    index: int
    x0: Float[Tensor, "..."]
    noise: Float[Tensor, "..."]
    t: Float[Tensor, " B"]
    y: Int[Tensor, " B"]
    layout: Layout | None
    size: int
    share: float
    mask: Float[Tensor, "..."] | None = None

    @property
    def each(self) -> Float[Tensor, " _"]:
        """A time for each row of x0."""
        return self.t if self.layout is None else self.t[self.layout.sample]

    def shaped(self, rows: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Rows like x0 as the model takes them and gives them back."""
        return rows if self.layout is None else rows[None]

    def only(self, mask: Float[Tensor, "..."], ranks: Ranks) -> "Batch":
        """The same, of which numbers count only where the mask is 1; all processes ask, each with its own."""
        counted = ranks.total(mask.expand_as(self.x0).sum(dtype=torch.float64)).item()
        return replace(self, mask=mask, share=max(counted, 1.0) / ranks.size)

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        tensors = {name: getattr(self, name) for name in ("x0", "noise", "t", "y", "mask")}
        moved = {name: x.to(device, non_blocking=True) for name, x in tensors.items() if x is not None}
        return replace(self, **moved, layout=self.layout and replace(self.layout, device=device))


class Batches:
    """Samples of a modality with noise, times and labels to train on.

    All that is random is drawn for the whole batch on every process, which keeps its own part; at native sizes for each
    packed row, since a process does not know the samples of the others'.

    Args:
        mesh: the processes.
        size: samples of a batch; at native sizes `modality.rows` tells.
        label_dropout: share of samples whose label becomes the null class.

    Raises:
        ValueError: unless the processes can share out a batch evenly.
    """

    def __init__(
        self,
        modality: Modality,
        tokens: Tokens,
        process: Process,
        mesh: Mesh,
        seed: int,
        size: int,
        label_dropout: float,
    ) -> None:
        given = ("modality.rows", modality.rows) if modality.rows else ("trainer.batch_size", size)
        mesh.check_batch(*given)
        self.modality, self.tokens, self.process, self.mesh = modality, tokens, process, mesh
        self.seed, self.size, self.label_dropout = seed, size, label_dropout

    def __call__(self, index: int) -> Batch:
        """This process's part of a batch."""
        return self._packed(index) if self.modality.rows else self._even(index)

    def _even(self, index: int) -> Batch:
        rank, world = self.mesh.rank, self.mesh.world
        x0, y = self.modality.batch(self.size // world, self.seed, index, rank, world)
        noise, t, dropped = self._drawn((self.size, *x0.shape[1:]), self.size, index)
        noise, t, dropped = (self.mesh.own(x) for x in (noise, t, dropped))
        t = self.process.shifted(t, torch.Size(self.tokens.grid(x0)).numel())
        return Batch(index, x0, noise, t, self._with_null(y, dropped), None, self.size, x0.numel())

    def _packed(self, index: int) -> Batch:
        own = self.modality.rows // self.mesh.world
        first = index * self.modality.rows + self.mesh.rank * own
        grids, rows = [], []
        for row in range(first, first + own):
            samples, y = self.modality.packed_batch(self.seed, row)
            x0, layout = self.tokens.pack(samples)
            noise, t, dropped = self._drawn(x0.shape, len(y), row)
            t = self.process.shifted(t, torch.tensor(layout.lengths))
            grids.append(layout.grids)
            rows.append((x0, noise, t, self._with_null(y, dropped)))
        x0, noise, t, y = (torch.cat(parts) for parts in zip(*rows, strict=True))
        layout = Layout.pack(list(itertools.chain(*grids)), x0.device)
        size, numbers = self.mesh.ranks.total(torch.tensor([len(y), x0.numel()])).tolist()
        return Batch(index, x0, noise, t, y, layout, size, numbers / self.mesh.world)

    def _drawn(self, shape: Sequence[int], size: int, address: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noise, times, and whose labels are dropped."""
        generator = torch_generator("train", self.seed, address)
        noise = torch.randn(tuple(shape), generator=generator)
        return (
            noise,
            self.process.draw_times(size, generator),
            torch.rand(size, generator=generator) < self.label_dropout,
        )

    def _with_null(self, y: Int[Tensor, " B"], dropped: Tensor) -> Int[Tensor, " B"]:
        return torch.where(dropped, len(self.modality.classes), y)
