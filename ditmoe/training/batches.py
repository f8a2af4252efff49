"""Training batches: functions of seed and index alone, independent of the number of processes."""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ditmoe.conditioning import Condition
from ditmoe.diffusion import HORIZON, Process, torch_generator
from ditmoe.modality import GivenParts, Modality, NativeSizes, Tokens
from ditmoe.nn import Layout
from ditmoe.outside import check_number
from ditmoe.parallel import Mesh
from ditmoe.training.batch import Batch
from ditmoe.training.given_masks import BY_TOKEN, draw_places
from ditmoe.training.read_ahead import reader_of


@dataclass(frozen=True)
class Reading:
    """Reads the data of this process's part of a batch, by the batch's index; picklable.

    Attributes:
        read: the first step of a `Reader`.
        size: samples per batch, over all processes.
        rows: packed rows per batch, at native sizes.
    """

    read: Callable[..., Any]
    size: int
    rows: int
    seed: int
    rank: int
    world: int

    def __call__(self, index: int) -> Any:
        """Read a batch; at native sizes, a list with one item per row."""
        if self.rows:
            return [
                self.read(self.seed, row) for row in self.rows_of(self.rows, index, self.rank, self.world)
            ]
        return self.read(self.size // self.world, self.seed, index, self.rank, self.world)

    @staticmethod
    def rows_of(rows: int, index: int, rank: int, world: int) -> range:
        """Indices of a process's packed rows."""
        num = rows // world
        first = index * rows + rank * num
        return range(first, first + num)


@dataclass(frozen=True)
class GivenShares:
    """How often training gives parts of a sample, `given=0.7`.

    Attributes:
        share: of the samples that have given parts.
        hidden: of these, share for which the parts are hidden, to train guidance by them.
        noisy: of these, share whose given places are slightly noised, at the matching timestep, so that the model can
            continue from its own samples.
    """

    share: float = 0.0
    hidden: float = 0.15
    noisy: float = 0.0

    def __post_init__(self) -> None:
        check_number("given", self.share, 0, 1)
        check_number("trainer.given_hidden", self.hidden, 0, 1)
        check_number("trainer.given_noisy", self.noisy, 0, 1)


class Batches:
    """Training samples of a modality with noise, times and conditions.

    Every process draws all random numbers of a batch and keeps its own part; at native sizes those of each of its
    packed rows, since it does not know the samples of the others.

    Args:
        mesh: the processes.
        size: samples per batch; at native sizes `modality.rows` is used instead.
        condition_dropout: share of samples that are trained without condition.
        read: converts the conditions of the modality's data.
        time_per: "sample", "frame" or "token", see `ditmoe.training.options.TIME_PER`.
        given: how often parts are given.
        further: additional uniform numbers drawn per sample (`Batch.further`).

    Attributes:
        reader: the two steps that make samples.
        source: the first step, as a function of the index; may be replaced by a `ReadAhead`.

    Raises:
        ValueError: unless a batch divides evenly among the processes.
    """

    def __init__(
        self,
        modality: Modality,
        tokens: Tokens,
        process: Process,
        mesh: Mesh,
        seed: int,
        size: int,
        condition_dropout: float,
        read: Callable[[Any], Condition],
        time_per: str = "sample",
        given: GivenShares | None = None,
        further: int = 0,
    ) -> None:
        self.further = further
        self.native = modality if isinstance(modality, NativeSizes) and modality.rows else None
        shared = ("trainer.batch_size", size) if self.native is None else ("modality.rows", self.native.rows)
        mesh.check_batch(*shared)
        self.modality, self.tokens, self.process, self.mesh = modality, tokens, process, mesh
        self.seed, self.size, self.condition_dropout, self.time_per = seed, size, condition_dropout, time_per
        self.read, self.reader = read, reader_of(modality)
        rows = 0 if self.native is None else self.native.rows
        self.source: Callable[[int], Any] = Reading(self.reader.read, size, rows, seed, mesh.rank, mesh.world)
        self.shares = given or GivenShares()
        self.giver = GivenParts.of(modality, "train given=") if self.shares.share else None

    def __call__(self, index: int) -> Batch:
        """This process's part of a batch."""
        return self._even(index) if self.native is None else self._packed(index, self.native)

    def _even(self, index: int) -> Batch:
        x0, asked = self.reader.finish(self.source(index))
        grid = self.tokens.grid(x0)
        noise, t, dropped, further = self._drawn((self.size, *x0.shape[1:]), [grid] * self.size, index)
        if self.time_per != "sample":
            t = t.view(self.size, -1)
        noise, t, dropped, further = (self.mesh.own(x) for x in (noise, t, dropped, further))
        t = self.process.shifted(t, math.prod(grid))
        asked = self.read(asked).drop(dropped)
        if self.giver is None:
            each = self.tokens.sample_times(t, x0)
            return Batch(index, x0, noise, t, each, asked, None, self.size, x0.numel(), further=further)
        first = (index * self.mesh.world + self.mesh.rank) * len(x0)
        rngs = [self._rng(first + i) for i in range(len(x0))]
        drawn, hidden = zip(*(self._whether(rng) for rng in rngs), strict=True)
        unseen = ~torch.tensor(drawn) | torch.tensor(hidden)
        if self.giver.given_per:
            per = self._per(index)
            places = np.stack([draw_places(grid, per, rng) for rng in rngs]) & np.array(drawn)[:, None]
            least = torch.tensor([self._least(first + i) for i in range(len(x0))])
            t, known = self._with_given(t, torch.from_numpy(places), torch.tensor(hidden), least)
            mask = 1 - self.tokens.sample_times(known.to(x0.dtype), x0)
        asked = asked.beside(self.giver.draw_beside(x0, rngs), unseen)
        each = self.tokens.sample_times(t, x0)
        batch = Batch(index, x0, noise, t, each, asked, None, self.size, x0.numel(), further=further)
        if not self.giver.given_per:
            return batch
        return replace(batch.only(mask, self.mesh.ranks), known=known)

    def _packed(self, index: int, native: NativeSizes) -> Batch:
        addresses = Reading.rows_of(native.rows, index, self.mesh.rank, self.mesh.world)
        grids: list[tuple[int, ...]] = []
        rows, asked, knowns, others = [], [], [], []
        for row, each in zip(addresses, self.source(index), strict=True):
            samples, own = self.reader.finish(each)
            x0, layout = self.tokens.pack(samples)
            noise, t, dropped, further = self._drawn(x0.shape, layout.grids, row)
            others.append(further)
            counts, lengths = (torch.tensor(n) for n in (self._counts(layout.grids), layout.lengths))
            t = self.process.shifted(t, lengths.repeat_interleave(counts))
            if self.time_per != "sample" or self.giver is not None:
                t = t.repeat_interleave((lengths // counts).repeat_interleave(counts))
            if self.giver is not None:
                t, known = self._given_in_row(t, layout, row)
                knowns.append(known)
            grids += layout.grids
            rows.append((x0, noise, t))
            asked.append(self.read(own).drop(dropped))
        x0, noise, t = (torch.cat(parts) for parts in zip(*rows, strict=True))
        layout = Layout.pack(grids, x0.device)
        size, numbers = self.mesh.ranks.total(torch.tensor([len(grids), x0.numel()])).tolist()
        t = t if self.time_per == "sample" and self.giver is None else t[None]
        each = self.tokens.sample_times(t, x0, layout)
        share = numbers / self.mesh.world
        further = torch.cat(others)
        batch = Batch(index, x0, noise, t, each, Condition.cat(asked), layout, size, share, further=further)
        if not knowns:
            return batch
        known = torch.cat(knowns)
        return replace(batch.only(1 - known.to(x0.dtype)[:, None], self.mesh.ranks), known=known[None])

    def _drawn(
        self, shape: Sequence[int], grids: Sequence[Sequence[int]], address: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw noise, the times of all samples end to end, the condition dropout mask, and the further numbers."""
        generator = torch_generator("train", self.seed, address)
        noise = torch.randn(tuple(shape), generator=generator)
        return (
            noise,
            self.process.draw_times(sum(self._counts(grids)), generator),
            torch.rand(len(grids), generator=generator) < self.condition_dropout,
            torch.rand(len(grids), self.further, generator=generator),
        )

    def _counts(self, grids: Sequence[Sequence[int]]) -> list[int]:
        """The number of times per sample, for samples of these token grids."""
        count = {"sample": lambda grid: 1, "frame": lambda grid: grid[0], "token": math.prod}[self.time_per]
        return [count(grid) for grid in grids]

    def _rng(self, *address: int) -> np.random.Generator:
        """A generator for given parts."""
        return np.random.default_rng([zlib.crc32(b"given"), self.seed, *address])

    def _whether(self, rng: np.random.Generator) -> tuple[bool, bool]:
        """Draw whether a sample has given parts, and whether these are hidden."""
        drawn, hidden = rng.random(2)
        return bool(drawn < self.shares.share), bool(hidden < self.shares.hidden)

    def _least(self, *address: int) -> float:
        """Time of a sample's given places: 0, or with probability `noisy` 1000 exp(N(-2.3, 0.8)), at most 500."""
        if not self.shares.noisy:
            return 0.0
        rng = self._rng(*address, 3)
        noisy, s = rng.random() < self.shares.noisy, float(np.exp(rng.normal(-2.3, 0.8)))
        return HORIZON * min(s, 0.5) if noisy else 0.0

    def _per(self, index: int) -> str:
        """Draw the unit of a batch's given places (`given_per`), the same on all processes."""
        names, shares = zip(*self.giver.given_per.items(), strict=True)  # type: ignore[union-attr]
        return str(self._rng(index, 1).choice(names, p=shares))

    def _with_given(
        self,
        t: Float[Tensor, "*t"],
        places: Bool[Tensor, "B n"],
        hidden: Bool[Tensor, " B"],
        least: Float[Tensor, " B"],
    ) -> tuple[Float[Tensor, "B m"], Bool[Tensor, "B m"]]:
        """Set the times of given places to `least`, or to the last time if hidden; also returns their mask."""
        t = t.view(len(t), -1)
        num = max(t.shape[1], places.shape[1])  # one divides the other: samples, frames, tokens
        t, places = (x.repeat_interleave(num // x.shape[1], dim=1) for x in (t, places))
        of = torch.where(hidden, self.process.last, least)[:, None]
        return torch.where(places, of.to(t.dtype), t), places

    def _given_in_row(
        self, t: Float[Tensor, " T"], layout: Layout, row: int
    ) -> tuple[Float[Tensor, " T"], Bool[Tensor, " T"]]:
        """The same for the tokens of a packed row."""
        found = []
        for number, (own, grid) in enumerate(zip(t.split(layout.lengths), layout.grids, strict=True)):
            rng = self._rng(row, number, 2)
            drawn, hidden = self._whether(rng)
            places = torch.from_numpy(draw_places(grid, BY_TOKEN, rng)) & drawn
            least = torch.tensor([self._least(row, number)])
            found.append(self._with_given(own[None], places[None], torch.tensor([hidden]), least))
        times, known = zip(*found, strict=True)
        return torch.cat(times, dim=1)[0], torch.cat(known, dim=1)[0]
