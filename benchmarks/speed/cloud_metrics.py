"""Exact EMD and Chamfer distance against SciPy, POT and PyTorch: python -m benchmarks.speed.cloud_metrics --pairs 6

Pairs are real shapes (the built-in furniture). All methods are interleaved on each pair, in one process and on one
thread, and timed in processor time. Compare the ratios: other work on the machine shifts the milliseconds.

    python -m benchmarks.speed.cloud_metrics --sets 662 --family varied

measures two sets of that many synthetic chairs instead: 1-NNA, COV and MMD by Chamfer distance and by exact EMD. The
family "varied" has chairs of many kinds, and its generated set is jittered; "hard" has near duplicates of one chair,
slightly turned and bent, whose distances hardly exceed those of sampling alone. Rows drawn at random are repeated by
brute force.
"""

import importlib
import itertools
import platform
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from tqdm import tqdm

from benchmarks import options_of
from modalities.pointcloud import Clouds, kernels
from modalities.pointcloud.metrics.distance import implementation, pairwise
from modalities.pointcloud.metrics.nearest import Nearest, nearest, num_pairs
from modalities.pointcloud.metrics.scores import mmd_cov, one_nna

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


def importable(module: str, package: str) -> bool:
    """Whether a rival is there; that it is not should be seen."""
    try:
        importlib.import_module(module)
    except ImportError:
        print(f"  {package}: not installed (pip install {package})")
        return False
    return True


def pytorch3d_chamfer(x: torch.Tensor, y: torch.Tensor) -> float:
    from pytorch3d.loss import chamfer_distance

    return float(chamfer_distance(x[None], y[None])[0])


def measure_emd(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Times, float, float]:
    methods = {"scipy": scipy_emd} | ({"pot": pot_emd} if importable("ot", "POT") else {})
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
    rivals = {"cKDTree": tree_chamfer, "torch.cdist": torch_chamfer}
    if importable("pytorch3d.loss", "pytorch3d"):
        rivals["pytorch3d"] = pytorch3d_chamfer
    times, difference = {name: [] for name in ("ours", *rivals)}, 0.0
    for x, y in pairs:
        ordered = kernels.ordered(x), kernels.ordered(y)
        trees = cKDTree(x), cKDTree(y)
        tensors = torch.from_numpy(x).float(), torch.from_numpy(y).float()
        value, spent = seconds(lambda: kernels.chamfer(*ordered), 20)  # noqa: B023
        times["ours"].append(spent)
        for name, method in rivals.items():
            clouds = trees if name == "cKDTree" else tensors
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


# --- two sets


def chair(rng: np.random.Generator, hard: bool) -> np.ndarray:
    """A chair of boxes (B, 2, 3), each its lowest and highest corner; y is up."""

    def size(low: float, high: float) -> float:
        return (
            rng.uniform(low, high) if not hard else (low + high) / 2 + (high - low) * rng.uniform(-0.1, 0.1)
        )

    w, d, h, back = size(0.35, 0.6), size(0.35, 0.6), size(0.35, 0.6), size(0.4, 0.9)
    thick, leg = size(0.04, 0.12), size(0.04, 0.1)
    kind, stand, arms = (0, 0, False) if hard else (rng.integers(3), rng.integers(3), rng.random() < 0.5)
    seat = h + thick
    boxes = [[(-w, h, -d), (w, seat, d)]]
    if kind == 0:
        boxes += [[(-w, seat, d - thick), (w, seat + back, d)]]
    elif kind == 1:
        boxes += [[(x, seat, d - thick), (x + thick, seat + back, d)] for x in np.linspace(-w, w - thick, 4)]
    else:
        boxes += [[(-w, seat + back / 2, d - thick), (w, seat + back, d)]]
        boxes += [[(-thick, seat, d - thick), (thick, seat + back / 2, d)]]
    if stand == 0:
        corners = itertools.product((-w, w - leg), (-d, d - leg))
        boxes += [[(x, 0, z), (x + leg, h, z + leg)] for x, z in corners]
    elif stand == 1:
        boxes += [[(-leg, 0, -leg), (leg, h, leg)], [(-w / 2, 0, -d / 2), (w / 2, leg, d / 2)]]
    else:
        boxes += [[(x, 0, -d), (x + leg, h, d)] for x in (-w, w - leg)]
    if arms:
        boxes += [[(x, seat + 0.2, -d), (x + leg, seat + 0.2 + leg, d)] for x in (-w, w - leg)]
    return np.array(boxes)


def on_surface(boxes: np.ndarray, num_points: int, rng: np.random.Generator) -> np.ndarray:
    low, extent = boxes[:, 0], boxes[:, 1] - boxes[:, 0]
    areas = np.stack([extent[:, (k + 1) % 3] * extent[:, (k + 2) % 3] for k in range(3)], axis=1)
    face = rng.choice(areas.size, num_points, p=areas.ravel() / areas.sum())
    box, axis = face // 3, face % 3
    inside = rng.random((num_points, 3))
    inside[np.arange(num_points), axis] = rng.integers(2, size=num_points)
    return low[box] + extent[box] * inside


def family(name: str, count: int, num_points: int, seed: int, jitter: float = 0) -> list[np.ndarray]:
    rng, clouds = np.random.default_rng(seed), []
    for _ in range(count):
        points = on_surface(chair(rng, name == "hard"), num_points, rng)
        if name == "hard":
            points[:, 0] += rng.uniform(-0.1, 0.1) * points[:, 1] ** 2
            angle = rng.uniform(-0.3, 0.3)
            sin, cos = np.sin(angle), np.cos(angle)
            points = points @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        points -= (points.max(axis=0) + points.min(axis=0)) / 2
        points /= np.linalg.norm(points, axis=1).max()
        clouds.append(points + jitter * rng.normal(size=points.shape))
    return clouds


class Stopwatch:
    """Wall and processor seconds of what is done under it."""

    def __enter__(self) -> "Stopwatch":
        self.start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def measure_sets(
    name: str, count: int, num_points: int, workers: int, cost: str, checked: int, chamfer: bool
) -> None:
    reference = family(name, count, num_points, seed=1)
    generated = family(name, count, num_points, seed=2, jitter=0.01 if name == "varied" else 0)
    pairs = num_pairs(reference, generated)
    print(f"{name}: {count} and {count} shapes of {num_points} points, {pairs:,} pairs, {workers} threads")
    if chamfer:
        with Stopwatch() as watch:
            sets = ((reference, reference), (reference, generated), (generated, generated))
            full = [pairwise(a, b, "cd", workers) for a, b in sets]
        print(f"  Chamfer, all pairs: {watch.wall:.1f} s wall, {watch.cpu:.1f} s CPU;", scores(*full))
    with Stopwatch() as watch, tqdm(total=pairs, mininterval=5, unit_scale=True) as bar:
        found = nearest(reference, generated, cost=cost, workers=workers, progress=bar.update)
    print(f"  EMD {cost}, nearest ones: {watch.wall:.1f} s wall, {watch.cpu:.1f} s CPU;", end=" ")
    print(scores(found.rr, found.rs, found.ss))
    print(f"  {found.described()}")
    print("  " + ", ".join(f"{level.name.lower()} {number:,}" for level, number in found.decided.items()))
    differences, seconds_a_pair = check_rows(found, reference, generated, cost, checked)
    print(
        f"  {checked} rows by brute force: {differences} nearest ones differ; {1e3 * seconds_a_pair:.1f} ms a pair,"
    )
    print(
        f"  so all pairs would take {seconds_a_pair * pairs:.0f} s CPU, {seconds_a_pair * pairs / watch.cpu:.1f} x"
    )
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def scores(rr: np.ndarray, rs: np.ndarray, ss: np.ndarray) -> str:
    mmd, cov = mmd_cov(rs)
    return f"1-NNA {one_nna(rr, rs, ss)[0]:.4f}, COV {cov:.4f}, MMD {mmd:.6f}"


def check_rows(
    found: Nearest, reference: list[np.ndarray], generated: list[np.ndarray], cost: str, checked: int
) -> tuple[int, float]:
    """How many of some rows' nearest ones (in the other set and in both) differ, and the CPU time of a solution."""
    clouds = [kernels.ordered(cloud) for cloud in (*reference, *generated)]
    known = np.block([[found.rr, found.rs], [found.rs.T, found.ss]])
    across = np.arange(len(clouds)) < len(reference)
    differences = 0
    start = time.process_time()
    for i in np.random.default_rng(0).choice(len(clouds), checked, replace=False):
        row = np.array([kernels.emd(clouds[i], other, cost == "sq")[0] for other in clouds])
        others = np.arange(len(clouds)) != i
        for kept in (others, across != across[i]):
            same = np.array_equal(row[kept] == row[kept].min(), known[i][kept] == row[kept].min())
            differences += not same
    return differences, (time.process_time() - start) / (checked * len(clouds))


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--pairs", type=int, default=6, help="pairs of shapes (SciPy takes seconds for each)")
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--sets", type=int, default=0, help="measure two sets of so many shapes instead")
    parser.add_argument("--family", choices=["varied", "hard"], nargs="+", default=["varied", "hard"])
    parser.add_argument("--cost", choices=["l2", "sq"], default="l2")
    parser.add_argument("--no-chamfer", dest="chamfer", action="store_false", help="of the sets only EMD")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rows", type=int, default=2, help="rows to do again by brute force")
    options = parser.parse_args()
    if not kernels.available():
        raise SystemExit("the kernels were not compiled: nothing to compare")
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {kernels.described()}")
    if options.sets:
        for name in options.family:
            sizes = options.sets, options.points, options.workers
            measure_sets(name, *sizes, options.cost, options.rows, options.chamfer)
    else:
        measure_pairs(options.pairs, options.points)


def measure_pairs(count: int, num_points: int) -> None:
    shapes = [np.asarray(x, float) for x in Clouds(num_points=num_points).reference("val").data]
    every = list(itertools.combinations(range(len(shapes)), 2))
    chosen = np.random.default_rng(0).choice(len(every), min(count, len(every)), replace=False)
    pairs = [(shapes[i], shapes[j]) for i, j in (every[k] for k in chosen)]
    print(f"one thread, {len(pairs)} pairs of {num_points} points; distances: {implementation()}")
    times, gap, difference = measure_emd(pairs)
    show("EMD, exact (k-d order made once a cloud)", times)
    print(f"  largest certified gap {gap:.1e}, largest difference from the others {difference:.1e}")
    times, difference = measure_chamfer(pairs)
    show("Chamfer, both directions (order and trees made once a cloud)", times)
    print(f"  largest difference from cKDTree {difference:.1e}")


if __name__ == "__main__":
    main()
