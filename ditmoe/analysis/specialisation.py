"""Dependence of routing on time, place and condition.

Assignments, (token, expert) pairs, are counted; for soft routers their shares. The null distribution permutes:

    time     the time bins within each sample, which was evaluated in all of them
    place    no tokens, but shifts all cells of a sample cyclically by one random step, so that neighbours stay
             neighbours. Permuting tokens would take any patch of one expert for a dependence on place
    class    the conditions among the samples

Time and class are also tested given the place, with the same permutations, since an expert that moves from one place
to another is chosen equally often.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from ditmoe.analysis.factors import Factor
from ditmoe.analysis.record import Record
from ditmoe.analysis.statistics import Dependence, dependence, given

PLACES = {1: 64, 2: 8, 3: 4}
"""Most places along each axis, by the number of axes; cells of larger grids are pooled into them."""


@dataclass(frozen=True)
class Specialisation:
    """For each factor ("time", "place", "axis 0", "class") its dependence with routing and the counts.

    Attributes:
        whole: over all times, (L,).
        by_time: within each time bin, (L, B); without "time".
        counts: assignments, (L, F, E).
        names: of the F values.
    """

    whole: dict[str, Dependence] = field(default_factory=dict)
    by_time: dict[str, Dependence] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)


def specialise(
    record: Record, factors: list[Factor], bins: list[str], permutations: int, seed: int
) -> Specialisation:
    """Measure the dependence of routing on time, place and all factors.

    Args:
        bins: names of the bins of time.
    """
    found = Specialisation()
    totals = by_sample_and_time(record)  # (S, B, L, E)
    _of_time(found, totals, bins, permutations, seed)
    places = Places(record)
    _of_places(found, places, permutations, seed)
    for number, factor in enumerate(factors):
        _of_factor(found, totals, factor, permutations, (seed, 2, number))
    if places.count.prod() > 1:
        _given_place(found, places, factors, permutations, seed)
    return found


def by_sample_and_time(record: Record) -> Float[np.ndarray, "S B L E"]:
    """Numbers of assignments in each pass."""
    size, bins = record.loss.shape
    rows = record.sample * bins + record.time
    return summed(rows, record.chosen, size * bins).reshape(size, bins, *record.chosen.shape[1:])


def summed(rows: Int[np.ndarray, " T"], values: Float[np.ndarray, "T *n"], num: int) -> np.ndarray:
    """Sums of the values with the same row index, (num, *n)."""
    flat = values.reshape(len(values), -1)
    found = np.stack([np.bincount(rows, flat[:, i], num) for i in range(flat.shape[1])], axis=1)
    return found.reshape(num, *values.shape[1:])


def _of_time(
    found: Specialisation, totals: np.ndarray, bins: list[str], permutations: int, seed: int
) -> None:
    tables = totals.transpose(0, 2, 1, 3)  # (S, L, B, E)

    def permuted(rng: np.random.Generator) -> np.ndarray:
        order = rng.random(totals.shape[:2]).argsort(1)
        return np.take_along_axis(totals, order[:, :, None, None], 1).sum(0).transpose(1, 0, 2)

    if len(bins) > 1:
        found.whole["time"] = dependence(tables, permuted, permutations, np.random.default_rng([seed, 0]))
    found.counts["time"], found.names["time"] = tables.sum(0), bins


def _of_factor(
    found: Specialisation, totals: np.ndarray, factor: Factor, permutations: int, address: tuple[int, ...]
) -> None:
    def tables_of(each: np.ndarray) -> np.ndarray:
        hot = np.eye(len(factor.names))[factor.of]  # (S, F)
        return hot.reshape(len(hot), *[1] * (each.ndim - 2), -1, 1) * each[..., None, :]

    def table_of(each: np.ndarray, of: np.ndarray) -> np.ndarray:
        hot = np.eye(len(factor.names))[of]
        return np.einsum("sf,s...e->...fe", hot, each)

    def measured(each: np.ndarray, more: int) -> Dependence:
        rng = np.random.default_rng([*address, more])
        return dependence(
            tables_of(each), lambda rng: table_of(each, rng.permutation(factor.of)), permutations, rng
        )

    over_times = totals.sum(1)
    found.whole[factor.name] = measured(over_times, 0)
    found.by_time[factor.name] = measured(totals.transpose(0, 2, 1, 3), 1)  # (S, L, B, E)
    found.counts[factor.name] = table_of(over_times, factor.of)
    found.names[factor.name] = list(factor.names)


@dataclass(frozen=True)
class Places:
    """Counts assignments by place: the cells of a grid are pooled into a few places along each axis."""

    record: Record

    @property
    def count(self) -> Int[np.ndarray, " A"]:
        """Number of places along each axis."""
        return np.minimum(self.record.grid.max(0), PLACES.get(self.record.cell.shape[1], 2))

    def number(
        self, kept: Sequence[int], shift: Int[np.ndarray, "S A"] | None = None
    ) -> Int[np.ndarray, " T"]:
        """The place of each token along the `kept` axes, after a cyclic shift of its sample's cells."""
        cell, grid = self.record.cell, self.record.grid
        if shift is not None:
            cell = (cell + shift[self.record.sample] % grid) % grid
        along = cell * self.count // grid
        return np.ravel_multi_index(tuple(along[:, axis] for axis in kept), tuple(self.count[list(kept)]))

    def tables(self, kept: Sequence[int], shift: Int[np.ndarray, "S A"] | None = None) -> np.ndarray:
        """Assignments by place along the `kept` axes, (S, L, B, F, E)."""
        size, bins = self.record.loss.shape
        number = int(self.count[list(kept)].prod())
        rows = (self.record.sample * bins + self.record.time) * number + self.number(kept, shift)
        found = summed(rows, self.record.chosen, size * bins * number)
        return found.reshape(size, bins, number, *found.shape[1:]).transpose(0, 3, 1, 2, 4)


def _of_places(found: Specialisation, places: Places, permutations: int, seed: int) -> None:
    axes = range(len(places.count))
    kinds = {"place": list(axes)} | {f"axis {axis}": [axis] for axis in axes if len(axes) > 1}
    for address, (name, kept) in enumerate(kinds.items()):
        if places.count[kept].prod() == 1:
            continue
        each = places.tables(kept)
        size = len(each)

        def moved(rng: np.random.Generator, kept: list[int] = kept, size: int = size) -> np.ndarray:
            shift = rng.integers(0, 2**62, (size, len(axes)))
            return _with_sum(places.tables(kept, shift).sum(0))

        rng = np.random.default_rng([seed, 1, address])
        measured = dependence(np.stack([_with_sum(one) for one in each]), moved, permutations, rng)
        found.whole[name], found.by_time[name] = _part(measured, 0), _part(measured, slice(1, None))
        found.counts[name] = each.sum((0, 2))
        found.names[name] = [",".join(map(str, place)) for place in np.ndindex(*places.count[kept].tolist())]


def _with_sum(tables: Float[np.ndarray, "L B F E"]) -> Float[np.ndarray, "L B1 F E"]:
    """The sum over all bins, followed by each bin."""
    return np.concatenate([tables.sum(1, keepdims=True), tables], 1)


def _given_place(
    found: Specialisation, places: Places, factors: Sequence[Factor], permutations: int, seed: int
) -> None:
    """The dependence on time and on each factor given the place, which finds experts that change their places."""
    each = places.tables(range(len(places.count))).transpose(0, 2, 1, 3, 4)  # (S, B, L, F, E)

    def of_times(tables: np.ndarray) -> np.ndarray:
        return tables.transpose(1, 2, 0, 3)  # (L, F, B, E)

    def other_times(rng: np.random.Generator) -> np.ndarray:
        order = rng.random(each.shape[:2]).argsort(1)[..., None, None, None]
        return of_times(np.take_along_axis(each, order, 1).sum(0))

    if each.shape[1] > 1:
        tables = np.stack([of_times(one) for one in each])
        rng = np.random.default_rng([seed, 4])
        found.whole["time given place"] = dependence(tables, other_times, permutations, rng, given)
    for address, factor in enumerate(factors):
        over, hot = each.sum(1), np.eye(len(factor.names))  # (S, L, F, E)
        tables = over[..., None, :] * hot[factor.of][:, None, None, :, None]

        def other_samples(
            rng: np.random.Generator,
            over: np.ndarray = over,
            hot: np.ndarray = hot,
            of: np.ndarray = factor.of,
        ) -> np.ndarray:
            return np.einsum("sk,slfe->lfke", hot[rng.permutation(of)], over, optimize=True)

        rng = np.random.default_rng([seed, 5, address])
        found.whole[f"{factor.name} given place"] = dependence(
            tables, other_samples, permutations, rng, given
        )


def _part(measured: Dependence, at: int | slice) -> Dependence:
    """Selected bins of a dependence (L, B)."""
    value, error, entropy = (part[:, at] for part in (measured.value, measured.error, measured.entropy))
    return Dependence(value, measured.null[:, :, at], error, measured.df, entropy)


def experts_per_token(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Mean number by sample, bin and layer, (S, B, L), and by bin, layer and place, (B, L, F), NaN without tokens."""
    places, (size, bins) = Places(record), record.loss.shape
    num = int(places.count.prod())
    number = record.chosen.astype(np.float64).sum(-1)  # (T, L)
    one = np.ones(len(number))
    rows = record.sample * bins + record.time
    by_pass = summed(rows, number, size * bins) / np.maximum(np.bincount(rows, one, size * bins), 1)[:, None]
    at = record.time * num + places.number(range(len(places.count)))
    tokens = np.bincount(at, one, bins * num)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        by_place = summed(at, number, bins * num) / tokens
    layers = number.shape[1]
    return by_pass.reshape(size, bins, layers), by_place.reshape(bins, num, layers).transpose(0, 2, 1)
