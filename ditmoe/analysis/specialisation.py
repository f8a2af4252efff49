"""What the choice of experts depends on: time, place, and what is asked for.

Counted are assignments, (token, expert) pairs; of soft routers shares. What is permuted for the null:

    time     the bins, within each sample: each was shown in all of them, so under the null they may change places
    place    nothing is permuted but moved: all cells of a sample by one random step round its grid, so that neighbours
             stay neighbours. Permuting tokens would call every patch of one expert a dependence on place
    class    what is asked for, among the samples
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from ditmoe.analysis.factors import Factor
from ditmoe.analysis.record import Record
from ditmoe.analysis.statistics import Dependence, dependence

PLACES = {1: 64, 2: 8, 3: 4}
"""Places along each axis that cells are counted in, by the number of axes; fewer where there are fewer cells."""


@dataclass(frozen=True)
class Specialisation:
    """By name ("time", "place", "axis 0", "class"): what depends on it, and how often each of its values took an expert.

    Attributes:
        whole: of all times together, (L,).
        by_time: of each bin by itself, (L, B); without "time".
        counts: (L, F, E), assignments.
        names: of the F values.
    """

    whole: dict[str, Dependence] = field(default_factory=dict)
    by_time: dict[str, Dependence] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)


def specialise(
    record: Record, factors: list[Factor], bins: list[str], permutations: int, seed: int
) -> Specialisation:
    """All that is to be said of a record.

    Args:
        bins: names of the bins of time.
    """
    found = Specialisation()
    totals = by_sample_and_time(record)  # (S, B, L, E)
    _of_time(found, totals, bins, permutations, seed)
    _of_places(found, record, permutations, seed)
    for number, factor in enumerate(factors):
        _of_factor(found, totals, factor, permutations, (seed, 2, number))
    return found


def by_sample_and_time(record: Record) -> Float[np.ndarray, "S B L E"]:
    """Assignments of each pass."""
    size, bins = record.loss.shape
    rows = record.sample * bins + record.time
    return summed(rows, record.chosen, size * bins).reshape(size, bins, *record.chosen.shape[1:])


def summed(rows: Int[np.ndarray, " T"], values: Float[np.ndarray, "T *n"], num: int) -> np.ndarray:
    """Sums of values by the number of their row."""
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


def _of_places(found: Specialisation, record: Record, permutations: int, seed: int) -> None:
    axes = record.cell.shape[1]
    sizes = record.grid.max(0)
    if sizes.prod() == 1:
        return
    count = np.minimum(sizes, PLACES.get(axes, 2))
    size, bins = record.loss.shape
    rows, cell, grid, chosen = _merged(record, bins)  # rows: sample * bins + time

    def tables(kept: np.ndarray, shift: np.ndarray | None = None) -> np.ndarray:
        """(S, B, F, L, E) of some axes, all cells moved round the grid of their sample."""
        moved = cell if shift is None else (cell + shift[rows // bins] % grid) % grid
        bin_of = moved * count // grid
        place, shape = np.zeros(len(cell), int), count[kept]
        for axis in kept:
            place = place * count[axis] + bin_of[:, axis]
        number = int(np.prod(shape))
        return summed(rows * number + place, chosen, size * bins * number).reshape(
            size, bins, number, *chosen.shape[1:]
        )

    kinds = {"place": np.arange(axes)} | {
        f"axis {axis}": np.array([axis]) for axis in range(axes) if axes > 1
    }
    for number, (name, kept) in enumerate(kinds.items()):
        if count[kept].prod() == 1:
            continue
        each = tables(kept).transpose(0, 3, 1, 2, 4)  # (S, L, B, F, E)

        def moved(rng: np.random.Generator, kept: np.ndarray = kept) -> np.ndarray:
            shift = rng.integers(0, np.iinfo(np.int64).max // 2, (size, axes))
            table = tables(kept, shift).sum(0).transpose(2, 0, 1, 3)  # (L, B, F, E)
            return np.concatenate([table.sum(1)[:, None], table], 1)

        both = np.concatenate([each.sum(2)[:, :, None], each], 2)
        measured = dependence(both, moved, permutations, np.random.default_rng([seed, 1, number]))
        found.whole[name], found.by_time[name] = _part(measured, 0), _part(measured, slice(1, None))
        found.counts[name] = each.sum((0, 2))
        found.names[name] = [",".join(map(str, place)) for place in np.ndindex(*count[kept].tolist())]


def _part(measured: Dependence, at: int | slice) -> Dependence:
    """Some of the bins of a dependence (L, B)."""
    value, error, entropy = (part[:, at] for part in (measured.value, measured.error, measured.entropy))
    return Dependence(value, measured.null[:, :, at], error, measured.df, entropy)


def _merged(record: Record, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return record.sample * bins + record.time, record.cell, record.grid, record.chosen.astype(np.float64)


def experts_per_token(
    record: Record, places: Int[np.ndarray, " T"], num: int
) -> tuple[np.ndarray, np.ndarray]:
    """Means by sample, bin and layer, (S, B, L); and by bin, layer and place, (B, L, F), NaN where no token was."""
    size, bins = record.loss.shape
    number = record.chosen.astype(np.float64).sum(-1)  # (T, L)
    one = np.ones(len(number))
    rows = record.sample * bins + record.time
    by_pass = summed(rows, number, size * bins) / np.maximum(np.bincount(rows, one, size * bins), 1)[:, None]
    at = record.time * num + places
    tokens = np.bincount(at, one, bins * num)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        by_place = summed(at, number, bins * num) / tokens
    layers = number.shape[1]
    return by_pass.reshape(size, bins, layers), by_place.reshape(bins, num, layers).transpose(0, 2, 1)


def places_of(record: Record) -> tuple[Int[np.ndarray, " T"], tuple[int, ...]]:
    """The place of each token, and how many there are along each axis."""
    count = np.minimum(record.grid.max(0), PLACES.get(record.cell.shape[1], 2))
    bin_of = record.cell * count // record.grid
    place = np.zeros(len(bin_of), int)
    for axis, along in enumerate(count):
        place = place * along + bin_of[:, axis]
    return place, tuple(count.tolist())
