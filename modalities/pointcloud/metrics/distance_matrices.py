"""Computes all distance matrices of a report, under one progress bar with the time left."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from modalities.pointcloud.metrics import nearest
from modalities.pointcloud.metrics.distance import Metric, is_approximate, num_pairs, on_gpu, pairwise, solver
from modalities.shared import cache
from modalities.shared.isolation import num_cores

Which = tuple[str, str, Metric]
"""Key of a matrix: the set of its rows, the set of its columns, the distance."""

Job = tuple[Sequence[np.ndarray], Sequence[np.ndarray], Metric]
"""Arguments of `pairwise`."""


def set_jobs(sets: Mapping[str, Sequence[np.ndarray]], kind: Metric) -> dict[Which, Job]:
    """The matrices for 1-NNA, COV and MMD of the generated set, and of the oracle if there is one."""
    roles = [role for role in ("generated", "oracle") if role in sets]
    pairs = [("reference", role) for role in roles] + [(role, role) for role in ("reference", *roles)]
    return {(a, b, kind): (sets[a], sets[b], kind) for a, b in pairs}


BLOCK = 2**12
"""Pairs computed and cached together, for Chamfer 32 times as many: typically at most half a minute of work."""
KEEP = 10.0
"""Seconds of computation from which the matrices of a metric are cached."""
SEARCH = 5_000
"""Pairs of two sets from which exact EMD uses a nearest-neighbour search instead of all pairs."""


def search(
    sets: Mapping[str, Sequence[np.ndarray]],
    kind: Metric,
    folder: Path | None,
    workers: int | None,
    progress: bool,
) -> tuple[dict[Which, np.ndarray], list[str]]:
    """The matrices of `set_jobs` without solving most pairs: exact for nearest neighbours, else infinite.

    1-NNA, COV and MMD of these matrices equal those of the full ones (`nearest`), but not for subsets of them.

    Returns:
        The matrices, and a line for each set on how many pairs each bound decided.
    """
    M: dict[Which, np.ndarray] = {}
    lines, folder = [], cache.writable(folder)
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
        M[own] = np.minimum(M[own], found.rr) if own in M else found.rr
        M["reference", role, kind], M[role, role, kind] = found.rs, found.ss
        lines.append(f"{role} {found.described()}")
    return M, lines


def cross_jobs(sets: Mapping[str, Sequence[np.ndarray]]) -> dict[Which, Job]:
    """Chamfer distances for the nearest real shape of each generated one, and the nearest training shape."""
    pairs = [("reference", role) for role in ("generated", "oracle") if role in sets]
    pairs += [(role, "train") for role in ("reference", "generated") if "train" in sets]
    return {(a, b, "cd"): (sets[a], sets[b], "cd") for a, b in pairs}


def measure(
    jobs: Sequence[Mapping[Which, Job]], folder: Path | None, workers: int | None, progress: bool
) -> list[dict[Which, np.ndarray]]:
    """The matrices of all jobs, group by group; those of slow metrics are cached in `folder`."""
    every = [job for group in jobs for job in group.values()]
    kinds: dict[Metric, list[Job]] = {kind: [job for job in every if job[2] == kind] for _, _, kind in every}
    # With several metrics, the bar shows the time left only if it counts time, not pairs.
    cost = {kind: _seconds_a_pair(of, workers) for kind, of in kinds.items()}
    seconds = {kind: cost[kind] * sum(num_pairs(*job) for job in of) for kind, of in kinds.items()}
    if (minutes := sum(seconds.values()) / 60) > 1:
        print(f"distances take about {minutes:.0f} minutes, less what is kept of them", file=sys.stderr)
    kept = cache.writable(folder) if max(seconds.values()) >= KEEP else None
    with tqdm(
        total=sum(seconds.values()),
        desc="distances",
        bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left",
        disable=not progress,
        smoothing=0.05,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    ) as bar:

        def matrix(job: Job) -> np.ndarray:
            def told(done: int) -> None:
                bar.update(done * cost[job[2]])

            if kept is None or seconds[job[2]] < KEEP:
                return pairwise(*job, workers, told)
            return _by_blocks(job, kept, workers, told)

        return [{which: matrix(job) for which, job in group.items()} for group in jobs]


def _by_blocks(job: Job, folder: Path, workers: int | None, told: Callable[[int], None]) -> np.ndarray:
    """`pairwise` in blocks of rows, each cached by content, so that a stopped evaluation resumes."""
    a, b, kind = job
    half, variant = b is a and not is_approximate(kind), f"{kind}-2-{solver(kind)}"
    rows = max(1, BLOCK * (32 if kind == "cd" else 1) // len(b))
    out = np.empty((len(a), len(b)))
    for start in range(0, len(a), rows):
        this, rest = slice(start, start + rows), slice(start + rows, len(b))
        some = a[this]
        for columns, other in ((this, some), (rest, b[rest])) if half else ((slice(None), b),):
            file = cache.file_of(folder, variant, cache.content_hash(some), cache.content_hash(other))
            form = {"block": ("f8", (len(some), len(other)))}
            if (found := cache.load(file, form)) is not None:
                told(num_pairs(some, other, kind))
            else:
                found = {"block": pairwise(some, other, kind, workers, told)}
                cache.store(file, **found)
            out[this, columns] = found["block"]
            if half:
                out[columns, this] = found["block"].T
    return out


def _seconds_a_pair(jobs: Sequence[Job], workers: int | None) -> float:
    """Median seconds per pair over the first pairs of the largest of these jobs of one metric, with all workers."""
    a, b, kind = max(jobs, key=lambda job: num_pairs(*job))
    width = 16 if on_gpu(kind) else 1  # a GPU is fast only with many pairs at once
    together = is_approximate(kind) or on_gpu(kind)  # torch's threads also work on one pair together
    share = 1 if together else workers or num_cores()
    times = []
    for x, y in zip(a[:3], b[1:], strict=False):
        start = time.perf_counter()
        pairwise([x], [y] * width, kind, workers=1)
        times.append((time.perf_counter() - start) / width / share)
    return float(np.median(times))
