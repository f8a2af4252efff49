"""Exact EMD and Chamfer distance against SciPy, POT and PyTorch: python benchmarks/cloud_metrics.py --pairs 6

Real shapes (the built-in furniture). All methods take turns on each pair, in one process and on one thread, and
are timed by its processor time: read the ratios, for other work on the machine moves the milliseconds.
"""

import argparse
import itertools
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from modalities.pointcloud import kernels
from modalities.pointcloud.data import Clouds
from modalities.pointcloud.distance import implementation

Times = dict[str, list[float]]


def seconds(run: Callable[[], float], repeats: int = 1) -> tuple[float, float]:
    start = time.process_time()
    for _ in range(repeats):
        value = run()
    return value, (time.process_time() - start) / repeats


def scipy_emd(x: np.ndarray, y: np.ndarray) -> float:
    costs = cdist(x, y)
    return costs[linear_sum_assignment(costs)].mean()


def pot_emd(x: np.ndarray, y: np.ndarray) -> float:
    import ot

    return ot.emd2([], [], cdist(x, y), numItermax=10_000_000)


def tree_chamfer(x: cKDTree, y: cKDTree) -> float:
    return np.mean(y.query(x.data)[0] ** 2) + np.mean(x.query(y.data)[0] ** 2)


def torch_chamfer(x: torch.Tensor, y: torch.Tensor) -> float:
    squares = torch.cdist(x, y) ** 2
    return float(squares.min(0).values.mean() + squares.min(1).values.mean())


def importable(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def measure_emd(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Times, float, float]:
    methods = {"scipy": scipy_emd} | ({"pot": pot_emd} if importable("ot") else {})
    times, largest_gap, difference = {name: [] for name in ("ours", *methods)}, 0.0, 0.0
    for x, y in pairs:
        ordered = kernels.ordered(x), kernels.ordered(y)
        (value, gap), spent = seconds(lambda: kernels.emd(*ordered), 5)  # noqa: B023
        times["ours"].append(spent)
        largest_gap = max(largest_gap, gap)
        for name, method in methods.items():
            other, spent = seconds(lambda: method(x, y))  # noqa: B023
            times[name].append(spent)
            difference = max(difference, abs(other / value - 1))
    return times, largest_gap, difference


def measure_chamfer(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Times, float]:
    times, difference = {name: [] for name in ("ours", "cKDTree", "torch.cdist")}, 0.0
    for x, y in pairs:
        ordered = kernels.ordered(x), kernels.ordered(y)
        trees = cKDTree(x), cKDTree(y)
        tensors = torch.from_numpy(x).float(), torch.from_numpy(y).float()
        value, spent = seconds(lambda: kernels.chamfer(*ordered), 20)  # noqa: B023
        times["ours"].append(spent)
        for name, method, clouds in (
            ("cKDTree", tree_chamfer, trees),
            ("torch.cdist", torch_chamfer, tensors),
        ):
            other, spent = seconds(lambda: method(*clouds), 3)  # noqa: B023
            times[name].append(spent)
            if name == "cKDTree":
                difference = max(difference, abs(other / value - 1))
    return times, difference


def show(title: str, times: Times) -> None:
    print(title)
    ours = np.array(times["ours"])
    for name, spent in times.items():
        ratio = np.array(spent) / ours
        note = (
            ""
            if name == "ours"
            else f"   {np.median(ratio):6.1f} x ours (from {ratio.min():.1f} to {ratio.max():.1f})"
        )
        print(
            f"  {name:12s} median {1e3 * np.median(spent):9.3f} ms, largest {1e3 * max(spent):9.3f} ms{note}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6, help="pairs of shapes (SciPy takes seconds for each)")
    parser.add_argument("--points", type=int, default=2048)
    options = parser.parse_args()
    if not kernels.available():
        raise SystemExit("the kernels were not compiled: nothing to compare")
    torch.set_num_threads(1)
    shapes = [np.asarray(x, float) for x in Clouds(num_points=options.points).reference("val").data]
    every = list(itertools.combinations(range(len(shapes)), 2))
    chosen = np.random.default_rng(0).choice(len(every), min(options.pairs, len(every)), replace=False)
    pairs = [(shapes[i], shapes[j]) for i, j in (every[k] for k in chosen)]
    print(f"{platform.processor() or platform.machine()}, one thread, {kernels.described()}")
    print(f"{len(pairs)} pairs of {options.points} points; distances: {implementation()}")
    times, gap, difference = measure_emd(pairs)
    show("EMD, exact (k-d order made once a cloud)", times)
    print(f"  largest certified gap {gap:.1e}, largest difference from the others {difference:.1e}")
    times, difference = measure_chamfer(pairs)
    show("Chamfer, both directions (order and trees made once a cloud)", times)
    print(f"  largest difference from cKDTree {difference:.1e}")


if __name__ == "__main__":
    main()
