"""Distances between point clouds: Chamfer and earth mover's, for one pair or all pairs of two sets.

Four different quantities are called EMD in the literature; only the first is "emd" here, the others are
"emd-exact_sq" and so on:

    exact_l2     mean distance of the best one-to-one matching (PointFlow without its CUDA kernel)
    exact_sq     mean squared distance of the matching that is optimal for squared distance
    approx_l2    the approximate matching of `approximate`, mean distance (PointFlow, DPM, latent_3d_points)
    approx_sq    the same, mean squared distance (PVD, DiT-3D, LION)

CD and the exact variants are computed by compiled kernels, or by SciPy if these were not compiled: the same
values up to the last few digits, at a fraction of the time (benchmarks/speed/cloud_metrics.py). On a GPU, CD and the
approximate variants run there; the exact ones stay on the CPU. `implementation` says which.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from functools import partial
from threading import Event
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import scipy
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from ditmoe.outside import has_cuda
from modalities.pointcloud import kernels
from modalities.pointcloud.metrics.approximate import pairwise_approx
from modalities.pointcloud.metrics.chamfer import knn_points, pairwise_chamfer
from modalities.pointcloud.metrics.threads import num_threads, threads

Metric = Literal["cd", "emd", "emd-exact_sq", "emd-approx_l2", "emd-approx_sq"]
Clouds = Float[np.ndarray, "_ _ 3"] | Sequence[Float[np.ndarray, "_ 3"]]


EMD: Mapping[str, Metric] = MappingProxyType(
    {
        "exact_l2": "emd",
        "exact_sq": "emd-exact_sq",
        "approx_l2": "emd-approx_l2",
        "approx_sq": "emd-approx_sq",
    }
)
"""Variant of EMD -> name under which it is computed and reported."""


def emd_metric(variant: str) -> Metric:
    """The metric for a variant of EMD; ValueError for an unknown variant."""
    if variant not in EMD:
        raise ValueError(f"emd must be one of {', '.join(EMD)}, got {variant!r}")
    return EMD[variant]


def chamfer(x: Float[np.ndarray, "N 3"], y: Float[np.ndarray, "M 3"]) -> float:
    """Chamfer distance of two clouds.

    CD(x, y) = mean_i min_j |x_i - y_j|² + mean_j min_i |x_i - y_j|²: squared, the sum of both means, not
    halved (PointFlow, arXiv 1906.12320, section 5.1, with means for sums). In squared units of the coordinates.

    Differences are taken before squaring, in float64, so no precision is lost far from the origin.
    Raises ValueError if a cloud is empty, not (N, 3), or not finite.
    """
    return float(pairwise([x], [y], "cd", workers=1)[0, 0])


def emd(x: Float[np.ndarray, "N 3"], y: Float[np.ndarray, "M 3"], variant: str = "exact_l2") -> float:
    """Earth mover's distance of two clouds: the mean distance under the best one-to-one matching.

    EMD(x, y) = min_φ (1/N) Σ_i |x_i - y_φ(i)| over all bijections φ: the exact assignment for L2, not for
    its square (PointFlow, arXiv 1906.12320, section 5.1, with the mean for the sum). In units of the
    coordinates, squared for the variants that end in sq. Time grows about as N² with the kernels, as N³ with
    SciPy. The approximate variants are not symmetric: `approximate.approx_emd`.

    Raises ValueError if the numbers of points differ, or a cloud is empty, not (N, 3), or not finite.
    """
    return float(pairwise([x], [y], emd_metric(variant), workers=1)[0, 0])


def pairwise(
    a: Clouds,
    b: Clouds,
    metric: Metric,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Float[np.ndarray, "A B"]:
    """Distances of every cloud of `a` to every cloud of `b`, on all cores.

    If `b` is the same object as `a`, half the pairs are computed and the diagonal is zero; but for the
    approximate variants all are, since these are not symmetric: `a` offers, `b` receives. Uses threads, not
    processes: kernels and SciPy release the GIL, so nothing needs to be copied, forked or guarded by
    `__main__`. The result does not depend on `workers`.

    Args:
        a, b: (A, N, 3) and (B, M, 3), or lists of clouds of any size (equal ones for EMD).
        metric: "cd" (`chamfer`), "emd" (`emd`) or another variant, named by `emd_metric`.
        workers: threads; None takes as many as this process has cores. "cd" and the approximate variants run on the GPU
            if there is one; without one, the approximate variants run in torch's threads.
        progress: called with the number of pairs finished since the last call, like a tqdm bar's `update`; the calls
            add up to `num_pairs(a, b, metric)`.

    Raises ValueError as `chamfer` and `emd` do, and for an unknown metric or fewer than one worker.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}, got {metric!r}")
    workers = num_threads(workers)
    symmetric = b is a
    left = _prepared(a, metric)
    right = left if symmetric else _prepared(b, metric)
    if metric != "cd":
        check_equal_sizes([*left, *right])
    if is_approximate(metric):
        return pairwise_approx(left, right, metric.endswith("_sq"), progress)
    distance = _chamfer if metric == "cd" else partial(_emd, squared=metric.endswith("_sq"))
    out = np.zeros((len(left), len(right)))
    rows, columns = np.triu_indices(len(left), 1) if symmetric else np.indices(out.shape).reshape(2, -1)
    if on_gpu(metric):
        out[rows, columns] = pairwise_chamfer(left, right, rows, columns, progress)
        return out + out.T if symmetric else out

    interrupted = Event()

    def measure(block: slice) -> int:
        for i, j in zip(rows[block], columns[block], strict=True):
            if interrupted.is_set():
                break
            out[i, j] = distance(left[i], right[j])
        return len(rows[block])

    # Small enough for load balance at the end, large enough for negligible overhead.
    step = min(64, len(rows) // (16 * workers) + 1)
    blocks = [slice(start, start + step) for start in range(0, len(rows), step)]
    with threads(workers, interrupted) as pool:
        for job in as_completed([pool.submit(measure, block) for block in blocks]):
            done = job.result()
            if progress is not None:
                progress(done)
    return out + out.T if symmetric else out


def num_pairs(a: Sequence | np.ndarray, b: Sequence | np.ndarray, metric: Metric = "cd") -> int:
    """Number of distances that `pairwise` computes for these sets."""
    half = b is a and not is_approximate(metric)
    return len(a) * (len(a) - 1) // 2 if half else len(a) * len(b)


def is_approximate(metric: Metric) -> bool:
    """Whether a metric uses the approximate matching, which is neither optimal nor symmetric."""
    return metric.startswith("emd-approx")


def implementation() -> str:
    """Describe what computes the distances here, for reports."""
    host = "compiled, certified" if kernels.available() else f"scipy {scipy.__version__}"
    return f"{host}; cd on a GPU ({solver('cd')})" if on_gpu("cd") else host


def on_gpu(metric: Metric) -> bool:
    """Whether a metric is computed on a GPU here, many pairs at once; exact matchings never are."""
    return (metric == "cd" or is_approximate(metric)) and has_cuda()


def solver(metric: Metric) -> str:
    """The implementation that computes a metric here: between them the last digits may differ."""
    if on_gpu(metric):
        return "pytorch3d" if metric == "cd" and knn_points() is not None else "cuda"
    if is_approximate(metric):
        return "torch"
    return "kernels" if kernels.available() else "scipy"


def _prepared(clouds: Clouds, metric: Metric) -> list:
    """Preprocess each cloud once for all comparisons."""
    arrays = [kernels.points_of(cloud) for cloud in clouds]
    if on_gpu(metric):
        return arrays
    if kernels.available() and not is_approximate(metric):
        return [kernels.ordered(array) for array in arrays]
    return [cKDTree(array) for array in arrays] if metric == "cd" else arrays


def _chamfer(x: Any, y: Any) -> float:
    """Chamfer distance of two clouds from `_prepared`: ordered points for the kernels, k-d trees for SciPy."""
    found = None if isinstance(x, cKDTree) else kernels.chamfer(x, y)
    if found is not None:
        return found
    to_y, _ = y.query(x.data)
    to_x, _ = x.query(y.data)
    return float(np.mean(to_y**2) + np.mean(to_x**2))


def _emd(x: np.ndarray, y: np.ndarray, squared: bool) -> float:
    certified = kernels.emd(x, y, squared)
    if certified is not None and certified[1] <= kernels.TOLERANCE:
        return certified[0]
    ways = cdist(x, y, "sqeuclidean" if squared else "euclidean")
    return float(ways[linear_sum_assignment(ways)].mean())


def check_equal_sizes(clouds: Sequence[np.ndarray]) -> None:
    """Raises ValueError unless all clouds have the same number of points, as one-to-one matchings need them."""
    sizes = sorted({len(cloud) for cloud in clouds})
    if len(sizes) > 1:
        raise ValueError(f"EMD needs equal numbers of points, got {sizes[0]} and {sizes[-1]}")
