"""Distances between point clouds: Chamfer and exact earth mover's, for one pair or all pairs of two sets.

Both are computed by compiled kernels, or by SciPy where these were not compiled: the same values to the last
few digits, at a fraction of the time (benchmarks/cloud_metrics.py). `implementation` says which.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any, Literal

import numpy as np
import scipy
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from modalities.pointcloud import kernels

Metric = Literal["cd", "emd"]
Clouds = Float[np.ndarray, "_ _ 3"] | Sequence[Float[np.ndarray, "_ 3"]]


def chamfer(x: Float[np.ndarray, "N 3"], y: Float[np.ndarray, "M 3"]) -> float:
    """Chamfer distance of two clouds: how far each point is from the other cloud.

    CD(x, y) = mean_i min_j |x_i - y_j|² + mean_j min_i |x_i - y_j|²: squared, the two means added, not
    halved (PointFlow, arXiv 1906.12320, section 5.1, with means for sums). In squared units of the coordinates.

    Differences are taken before squares, in float64, so a cloud far from the origin loses nothing.
    Raises ValueError where a cloud is empty, not (N, 3), or not finite.
    """
    return _chamfer(*_prepared([x, y], "cd"))


def emd(x: Float[np.ndarray, "N 3"], y: Float[np.ndarray, "M 3"]) -> float:
    """Earth mover's distance of two clouds: the mean way of a point under the best one-to-one matching.

    EMD(x, y) = min_φ (1/N) Σ_i |x_i - y_φ(i)| over all bijections φ: the exact assignment on L2, not on
    its square (PointFlow, arXiv 1906.12320, section 5.1, with the mean for the sum). In units of the
    coordinates. Time grows about as N² by the kernels, as N³ by SciPy.

    Raises ValueError where the numbers of points differ, or a cloud is empty, not (N, 3), or not finite.
    """
    clouds = _prepared([x, y], "emd")
    _check_equal_sizes(clouds)
    return _emd(*clouds)


def pairwise(
    a: Clouds,
    b: Clouds,
    metric: Metric,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Float[np.ndarray, "A B"]:
    """Distances of every cloud of `a` to every cloud of `b`, on all cores.

    Where `b` is the same object as `a`, half the pairs are computed and the diagonal is zero. Threads, not
    processes: kernels and SciPy leave the interpreter's lock during all the work, so they run side by side, and
    nothing needs to be copied, forked or guarded by `__main__`. The result does not depend on `workers`.

    Args:
        a, b: (A, N, 3) and (B, M, 3), or lists of clouds of any sizes (equal ones for EMD).
        metric: "cd" (`chamfer`) or "emd" (`emd`).
        workers: threads; None takes as many as this process has cores.
        progress: called with the number of pairs that were finished since the last call, as a tqdm bar's
            `update` wants it; the calls add up to `num_pairs(a, b)`.

    Raises ValueError as `chamfer` and `emd` do, and for an unknown metric or fewer than one worker.
    """
    if metric not in ("cd", "emd"):
        raise ValueError(f"metric must be 'cd' or 'emd', got {metric!r}")
    workers = num_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    symmetric = b is a
    left = _prepared(a, metric)
    right = left if symmetric else _prepared(b, metric)
    if metric == "emd":
        _check_equal_sizes([*left, *right])
    distance = _chamfer if metric == "cd" else _emd
    out = np.zeros((len(left), len(right)))
    rows, columns = np.triu_indices(len(left), 1) if symmetric else np.indices(out.shape).reshape(2, -1)

    interrupted = Event()

    def measure(block: slice) -> int:
        for i, j in zip(rows[block], columns[block], strict=True):
            if interrupted.is_set():
                break
            out[i, j] = distance(left[i], right[j])
        return len(rows[block])

    # Small enough that no worker idles long at the end, large enough that handing them out costs nothing.
    step = min(64, len(rows) // (16 * workers) + 1)
    blocks = [slice(start, start + step) for start in range(0, len(rows), step)]
    with ThreadPoolExecutor(workers) as pool:
        try:
            for job in as_completed([pool.submit(measure, block) for block in blocks]):
                done = job.result()
                if progress is not None:
                    progress(done)
        except BaseException:
            # Leaving the pool waits for its threads: after Ctrl-C that is one pair each, not the whole matrix.
            interrupted.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return out + out.T if symmetric else out


def num_pairs(a: Sequence | np.ndarray, b: Sequence | np.ndarray) -> int:
    """How many distances `pairwise` computes for these sets."""
    return len(a) * (len(a) - 1) // 2 if b is a else len(a) * len(b)


def implementation() -> str:
    """What computes the distances here, as a report may state it."""
    return "compiled, certified" if kernels.available() else f"scipy {scipy.__version__}"


def num_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepared(clouds: Clouds, metric: Metric) -> list:
    """What each cloud needs once however many others it is compared with."""
    arrays = [_cloud(cloud) for cloud in clouds]
    if kernels.available():
        return [kernels.ordered(array) for array in arrays]
    return [cKDTree(array) for array in arrays] if metric == "cd" else arrays


def _chamfer(x: Any, y: Any) -> float:
    """Of two clouds as `_prepared` gives them: ordered points for the kernels, trees for SciPy."""
    found = None if isinstance(x, cKDTree) else kernels.chamfer(x, y)
    if found is not None:
        return found
    to_y, _ = y.query(x.data)
    to_x, _ = x.query(y.data)
    return float(np.mean(to_y**2) + np.mean(to_x**2))


def _emd(x: np.ndarray, y: np.ndarray) -> float:
    certified = kernels.emd(x, y)
    if certified is not None and certified[1] <= kernels.TOLERANCE:
        return certified[0]
    ways = cdist(x, y)
    return float(ways[linear_sum_assignment(ways)].mean())


def _cloud(points: np.ndarray) -> np.ndarray:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3 or len(array) == 0:
        raise ValueError(f"a cloud must be (N, 3) with at least one point, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("the points of a cloud must be finite, got NaN or infinity")
    return array


def _check_equal_sizes(clouds: Sequence[np.ndarray]) -> None:
    sizes = sorted({len(cloud) for cloud in clouds})
    if len(sizes) > 1:
        raise ValueError(f"EMD needs equal numbers of points, got {sizes[0]} and {sizes[-1]}")
