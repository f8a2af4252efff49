"""Exact nearest-neighbour search by EMD, without solving most pairs.

1-NNA, COV and MMD only need the nearest clouds of each cloud. These are found by a best-first search: of all
pairs of a cloud, the one with the lowest bound is refined by a more expensive bound (`bounds.Ladder`) and finally
by an exact solution, until the lowest bound is above the distance of the nearest found. All bounds are
valid, so skipped pairs are farther: the answer is that of all pairs, including ties.
"""

import time
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path
from threading import Event, Lock
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int8

from ditmoe.outside import tell
from modalities.pointcloud import kernels
from modalities.pointcloud.metrics.bounds import Ladder, Level, Projections, ordered
from modalities.pointcloud.metrics.distance import check_equal_sizes, solver
from modalities.pointcloud.metrics.threads import num_threads, threads
from modalities.shared import cache

FLUSH = 30.0
"""Seconds between writes of results to the cache."""


@dataclass(frozen=True)
class Nearest:
    """Distances of all nearest-neighbour pairs; infinity for the others, which are farther.

    `scores.one_nna(rr, rs, ss)` and `scores.mmd_cov(rs)` of these matrices are those of the full ones.

    Attributes:
        rr, rs, ss: distances; the diagonals of rr and ss are zero.
        low_rr, low_rs, low_ss: lower bounds of all pairs, or the distance if known.
        decided: level -> number of pairs known to exactly this level when the search ended.
        reused: number of solved pairs from the cache.
    """

    rr: Float[np.ndarray, "R R"]
    rs: Float[np.ndarray, "R S"]
    ss: Float[np.ndarray, "S S"]
    low_rr: Float[np.ndarray, "R R"]
    low_rs: Float[np.ndarray, "R S"]
    low_ss: Float[np.ndarray, "S S"]
    decided: dict[Level, int]
    reused: int

    @property
    def num_pairs(self) -> int:
        return sum(self.decided.values())

    def described(self) -> str:
        """A line on how many pairs each bound decided."""
        share = {level: 100 * count / max(1, self.num_pairs) for level, count in self.decided.items()}
        return (
            f"{self.num_pairs:,} pairs: {share[Level.PROJECTED]:.1f} % decided by projections, "
            f"{share[Level.COARSE] + share[Level.FINE] + share[Level.PRICED]:.1f} % by dual bounds, "
            f"{share[Level.SOLVED]:.2f} % solved exactly"
        )


def nearest(
    reference: Sequence[np.ndarray],
    generated: Sequence[np.ndarray],
    *,
    cost: str = "l2",
    neighbours: int = 1,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
    folder: Path | None = None,
) -> Nearest:
    """Find the nearest clouds by exact EMD of every cloud of two sets: in the other set, and in both together.

    Args:
        reference, generated: (R, N, 3) and (S, N, 3), or lists of (N, 3), all finite and of equal N.
        cost: "l2" or "sq", the ground cost of the EMD: `distance.emd`.
        neighbours: number of nearest clouds, including ties.
        workers: threads; None takes as many as this process has cores. The distances do not depend on it.
        progress: called with the number of pairs decided since the last call, like a tqdm bar's `update`; the calls add
            up to `num_pairs(reference, generated)`.
        folder: where results are cached, so that an interrupted search resumes, and another one with the same reference
            reuses the distances within it. None disables it.

    Raises ValueError for empty sets, unequal numbers of points, points that are not finite, or an unknown cost.
    """
    if cost not in ("l2", "sq"):
        raise ValueError(f"cost must be l2 or sq, got {cost!r}")
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    workers = num_threads(workers)
    search = _Search(reference, generated, cost == "sq", neighbours)
    kept = None if folder is None else _Kept(Path(folder), reference, generated, cost)
    reused = 0
    if kept is not None:
        kept.restore(search)
        reused = int(np.triu(search.level == Level.SOLVED, 1).sum())
    try:
        _run(search, workers, progress or (lambda done: None), kept)
    finally:
        if kept is not None:
            kept.keep(search)
    return search.result(reused)


def num_pairs(reference: Sequence[np.ndarray], generated: Sequence[np.ndarray]) -> int:
    """Pairs among the clouds of both sets."""
    count = len(reference) + len(generated)
    return count * (count - 1) // 2


class _Search:
    """Bounds and levels of all pairs of the clouds of both sets, the reference first.

    Shared by threads, which read it without a lock: bounds only improve.
    """

    low: Float[np.ndarray, "A A"]
    level: Int8[np.ndarray, "A A"]

    def __init__(
        self, reference: Sequence[np.ndarray], generated: Sequence[np.ndarray], squared: bool, neighbours: int
    ):
        self.num_ref, self.neighbours = len(reference), neighbours
        self.clouds = [ordered(cloud) for cloud in _checked(reference, generated)]
        self.ladder = Ladder(len(self.clouds[0]), squared)
        self.low = Projections(self.clouds, squared).all()
        self.low = np.minimum(self.low, self.low.T)  # symmetric up to rounding
        self.level = np.zeros(self.low.shape, np.int8)
        self.interrupted, self.writing = Event(), Lock()

    def row(self, i: int) -> None:
        """Find the nearest clouds of cloud i."""
        across = (np.arange(len(self.clouds)) < self.num_ref) != (i < self.num_ref)
        solved = self.level[i] == Level.SOLVED
        solved[i] = True
        known = solved & (np.arange(len(self.clouds)) != i)
        # Distances of the nearest clouds so far, in the other set and in both.
        other = sorted(self.low[i, known & across].tolist())[: self.neighbours]
        both = sorted(self.low[i, known].tolist())[: self.neighbours]
        heap = [(float(self.low[i, j]), int(j)) for j in np.flatnonzero(~solved)]
        heapify(heap)
        while heap and not self.interrupted.is_set():
            bound, j = heappop(heap)
            limit = self._farthest(other if across[j] else both)
            if bound > limit:
                if across[j]:
                    return  # the rest has higher bounds, and the limit within the own set is lower
                continue
            if self.low[i, j] <= bound and self.level[i, j] != Level.SOLVED:
                self._ask(i, j, limit)
            if self.level[i, j] != Level.SOLVED:
                heappush(heap, (float(self.low[i, j]), j))
                continue
            for distances in (other, both) if across[j] else (both,):
                insort(distances, float(self.low[i, j]))
                del distances[self.neighbours :]

    def _farthest(self, distances: list[float]) -> float:
        return distances[-1] if len(distances) == self.neighbours else np.inf

    def _ask(self, i: int, j: int, limit: float) -> None:
        """Refine a pair by one level."""
        i, j = min(i, j), max(i, j)
        level = self.ladder.above(Level(self.level[i, j]))
        value, level = self.ladder.ask(self.clouds[i], self.clouds[j], level, limit)
        with self.writing:
            if level < self.level[i, j] or self.level[i, j] == Level.SOLVED:
                return  # another thread has refined it
            # Write the value before its level, so that a reader of "solved" finds the distance.
            self.low[i, j] = self.low[j, i] = value if level == Level.SOLVED else max(value, self.low[i, j])
            self.level[i, j] = self.level[j, i] = level

    def result(self, reused: int) -> Nearest:
        np.fill_diagonal(self.level, Level.SOLVED)
        np.fill_diagonal(self.low, 0)
        exact = np.where(self.level == Level.SOLVED, self.low, np.inf)
        r = self.num_ref
        upper = self.level[np.triu_indices(len(self.level), 1)]
        return Nearest(
            *(exact[:r, :r], exact[:r, r:], exact[r:, r:]),
            *(self.low[:r, :r], self.low[:r, r:], self.low[r:, r:]),
            decided={level: int((upper == level).sum()) for level in Level},
            reused=reused,
        )


class _Kept:
    """The cache files of a search: within the reference, across, within the generated set."""

    FORMS: ClassVar[cache.Forms] = {
        "i": ("i4", ("n",)), "j": ("i4", ("n",)), "level": ("i1", ("n",)), "value": ("f8", ("n",)),
    }  # fmt: skip

    def __init__(
        self, folder: Path, reference: Sequence[np.ndarray], generated: Sequence[np.ndarray], cost: str
    ):
        r, s, num_ref = cache.content_hash(reference), cache.content_hash(generated), len(reference)
        ref, gen = slice(0, num_ref), slice(num_ref, None)
        # What could change a number: the code version (2), and the solver.
        variant = f"emd-exact_{cost}-2-{solver('emd')}"
        self.files = [
            (cache.file_of(folder, variant, r), (ref, ref)),
            (cache.file_of(folder, variant, r, s), (ref, gen)),
            (cache.file_of(folder, variant, s), (gen, gen)),
        ]

    def restore(self, search: _Search) -> None:
        for file, (rows, columns) in self.files:
            found = cache.load(file, self.FORMS)
            if found is None:
                continue
            known = search.level[rows, columns].shape
            if not _fit(found, known):
                tell(f"{file} is damaged and computed anew (it holds pairs that are none)")
                continue
            i, j = found["i"] + (rows.start or 0), found["j"] + (columns.start or 0)
            better = found["level"] > search.level[i, j]
            i, j, values, levels = i[better], j[better], found["value"][better], found["level"][better]
            search.low[i, j] = search.low[j, i] = values
            search.level[i, j] = search.level[j, i] = levels

    def keep(self, search: _Search) -> None:
        """Write the current state."""
        with search.writing:  # otherwise a bound could be read as a solved distance
            every_level, every_low = search.level.copy(), search.low.copy()
        for file, (rows, columns) in self.files:
            level, low = every_level[rows, columns], every_low[rows, columns]
            i, j = np.nonzero(np.triu(level, 1) if rows == columns else level)
            places = {"i": i.astype(np.int32), "j": j.astype(np.int32)}
            cache.store(file, **places, level=level[i, j], value=low[i, j])


def _fit(found: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> bool:
    """Whether cached values have the right shape and valid levels."""
    places = all(((found[k] >= 0) & (found[k] < n)).all() for k, n in zip("ij", shape, strict=True))
    return bool(places and np.isin(found["level"], list(Level)).all())


def _run(search: _Search, workers: int, progress: Callable[[int], object], kept: _Kept | None) -> None:
    count = len(search.clouds)
    # In random order, so that progress so far predicts the rest.
    rows = np.random.default_rng(0).permutation(count).tolist()
    total, told = count * (count - 1) // 2, 0
    flushed = time.monotonic()
    with threads(workers, search.interrupted) as pool:
        left = {pool.submit(search.row, i) for i in rows}
        while left:
            done, left = wait(left, timeout=1, return_when=FIRST_COMPLETED)
            for job in done:
                job.result()
            # Some pairs of a row were already handled by earlier rows: as measured, about half of them.
            part = 1 - len(left) / count
            told, before = round(total * part * (3 - part) / 2), told
            progress(told - before)
            if kept is not None and time.monotonic() > flushed + FLUSH:
                kept.keep(search)
                flushed = time.monotonic()


def _checked(reference: Sequence[np.ndarray], generated: Sequence[np.ndarray]) -> list[np.ndarray]:
    if len(reference) == 0 or len(generated) == 0:
        raise ValueError(f"both sets must have at least one cloud, got {len(reference)} and {len(generated)}")
    clouds = [kernels.points_of(cloud) for cloud in (*reference, *generated)]
    check_equal_sizes(clouds)
    return clouds
