"""Every distance that a report needs, measured under one bar that tells the time left."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from modalities.pointcloud import cache, nearest
from modalities.pointcloud.distance import Metric, is_approximate, num_cores, num_pairs, pairwise

Which = tuple[str, str, Metric]
"""Which matrix: the set of its rows, the set of its columns, the distance."""

Job = tuple[Sequence[np.ndarray], Sequence[np.ndarray], Metric]
"""What `pairwise` is asked for."""


def set_jobs(sets: Mapping[str, Sequence[np.ndarray]], kind: Metric) -> dict[Which, Job]:
    """What 1-NNA, COV and MMD of the generated set, and of the oracle where there is one, are made from."""
    roles = [role for role in ("generated", "oracle") if role in sets]
    pairs = [("reference", role) for role in roles] + [(role, role) for role in ("reference", *roles)]
    return {(a, b, kind): (sets[a], sets[b], kind) for a, b in pairs}


ROWS = 16
"""Of an approximate matrix, that are computed and kept together."""
SEARCH = 5_000
"""Pairs of two sets from which exact EMD is searched instead of computed for all."""


def search(
    sets: Mapping[str, Sequence[np.ndarray]],
    kind: Metric,
    folder: Path | None,
    workers: int | None,
    progress: bool,
) -> tuple[dict[Which, np.ndarray], list[str]]:
    """What `set_jobs` would give, without solving most pairs: exact where a cloud is a nearest one, below elsewhere.

    The lower bounds of the other pairs are above the distance of both clouds' nearest ones, so 1-NNA, COV and MMD
    of these matrices are those of the full ones (`nearest`). Intervals from parts of them are estimates.

    Returns:
        The matrices, and a line on how many pairs each bound decided for each set.
    """
    M: dict[Which, np.ndarray] = {}
    lines = []
    for role in (role for role in ("generated", "oracle") if role in sets):
        pair = sets["reference"], sets[role]
        cost = "sq" if kind.endswith("sq") else "l2"
        with tqdm(
            total=nearest.num_pairs(*pair),
            desc=f"{kind}, {role}",
            bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left",
            disable=not progress,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        ) as bar:
            found = nearest.nearest(*pair, cost=cost, workers=workers, progress=bar.update, folder=folder)
        own: Which = ("reference", "reference", kind)
        M[own] = np.maximum(M[own], found.low_rr) if own in M else found.low_rr  # both are true bounds
        M["reference", role, kind], M[role, role, kind] = found.low_rs, found.low_ss
        lines.append(f"{role} {found.described()}")
    return M, lines


def cross_jobs(sets: Mapping[str, Sequence[np.ndarray]]) -> dict[Which, Job]:
    """Chamfer distances that tell the nearest real shape of each generated one, and the nearest training shape."""
    pairs = [("reference", role) for role in ("generated", "oracle") if role in sets]
    pairs += [(role, "train") for role in ("reference", "generated") if "train" in sets]
    return {(a, b, "cd"): (sets[a], sets[b], "cd") for a, b in pairs}


def measure(
    jobs: Sequence[Mapping[Which, Job]], folder: Path | None, workers: int | None, progress: bool
) -> list[dict[Which, np.ndarray]]:
    """The matrices of all jobs, group by group; those of approximate distances, which take long, by way of `folder`."""
    every = [job for group in jobs for job in group.values()]
    # One bar for several metrics tells the time left only if it counts time, not pairs.
    cost = {kind: _seconds_a_pair([job for job in every if job[2] == kind]) for kind in {j[2] for j in every}}
    total = sum(cost[job[2]] * num_pairs(*job) for job in every)
    if (minutes := total / (workers or num_cores()) / 60) > 2:
        print(f"distances will take about {minutes:.0f} minutes", file=sys.stderr)
    with tqdm(
        total=total,
        desc="distances",
        bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left",
        disable=not progress,
        smoothing=0.05,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    ) as bar:

        def matrix(job: Job) -> np.ndarray:
            def told(done: int) -> None:
                bar.update(done * cost[job[2]])

            if folder is None or not is_approximate(job[2]):
                return pairwise(*job, workers, told)
            return _by_rows(job, folder, workers, told)

        return [{which: matrix(job) for which, job in group.items()} for group in jobs]


def _by_rows(job: Job, folder: Path, workers: int | None, told: Callable[[int], None]) -> np.ndarray:
    """`pairwise`, a few rows at a time, each kept by content, so that a stopped evaluation goes on."""
    a, b, kind = job
    columns, blocks = cache.content_hash(b), []
    for start in range(0, len(a), ROWS):
        some = a[start : start + ROWS]
        file = cache.file_of(folder, f"{kind}-1", cache.content_hash(some), columns)
        if (found := cache.load(file)) is not None:
            told(len(some) * len(b))
        else:
            found = {"block": pairwise(some, b, kind, workers, told)}
            cache.store(file, **found)
        blocks.append(found["block"])
    return np.concatenate(blocks)


def _seconds_a_pair(jobs: Sequence[Job]) -> float:
    """Median of the first pairs of the largest of these jobs, all of one metric."""
    a, b, kind = max(jobs, key=lambda job: num_pairs(*job))
    times = []
    for x, y in zip(a[:3], b[1:], strict=False):
        start = time.perf_counter()
        pairwise([x], [y], kind, workers=1)
        times.append(time.perf_counter() - start)
    return float(np.median(times))
