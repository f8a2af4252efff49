"""Laws of the compiled distances: equal to SciPy, with a proof, on clouds of every kind."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from modalities.pointcloud import kernels
from modalities.pointcloud.metrics import distance

compiled = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")
LIBRARIES = [name for name in ("base", "v3", "v4") if kernels.loaded(name)]
SEEDS = st.integers(0, 2**32 - 1)


def mean_assignment(x: np.ndarray, y: np.ndarray, squared: bool) -> float:
    costs = cdist(x, y, "sqeuclidean" if squared else "euclidean")
    return costs[linear_sum_assignment(costs)].mean()


def nearest(x: np.ndarray, y: np.ndarray) -> float:
    return np.mean(cKDTree(y).query(x)[0] ** 2) + np.mean(cKDTree(x).query(y)[0] ** 2)


def pair(kind: str, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, n, 3))
    few = rng.normal(size=(7, 3))
    return {
        "random": lambda: (x, y),
        "clustered": lambda: (
            few[rng.integers(7, size=n)] + 0.01 * x,
            few[rng.integers(7, size=n)] + 0.01 * y,
        ),
        "duplicates": lambda: (few[rng.integers(7, size=n)], few[rng.integers(7, size=n)] + 0.1),
        "grid": lambda: (rng.integers(0, 5, (n, 3)).astype(float), rng.integers(0, 5, (n, 3)).astype(float)),
        "line": lambda: (x[:, :1] * [1, 2, 3], y[:, :1] * [1, 2, 3]),
        "plane": lambda: (x * [1, 1, 0], y * [1, 1, 0]),
        "crossing": lambda: (x[:, :1] * [1, 2, 3], y[:, :1] * [1, -2, 3]),
        "identical": lambda: (x, rng.permutation(x)),
        "offset": lambda: (x + 1e5, y + 1e5),
        "apart": lambda: (x, y + np.array([30, 0, 0])),
        "shifted": lambda: (x, rng.permutation(x) + 0.01),
        "noise": lambda: (x, rng.permutation(x + 1e-5 * y)),
        "outlier": lambda: (np.vstack([x[1:], [[1e3, 0, 0]]]), np.vstack([y[1:], [[0, 1e3, 0]]])),
        "scales": lambda: (x * 10.0 ** rng.uniform(-6, 0, (n, 1)), y * 10.0 ** rng.uniform(-6, 0, (n, 1))),
        "one point": lambda: (np.zeros((n, 3)), y),
        "two points": lambda: (np.zeros((n, 3)), np.ones((n, 3))),
        "nothing": lambda: (np.ones((n, 3)), np.ones((n, 3))),
    }[kind]()


KINDS = ["random", "clustered", "duplicates", "grid", "line", "plane", "crossing", "identical", "offset", "apart",
         "shifted", "noise", "outlier", "scales", "one point", "two points", "nothing"]  # fmt: skip


def check_emd(x: np.ndarray, y: np.ndarray, squared: bool) -> None:
    expected = mean_assignment(x, y, squared)
    value, gap = kernels.emd(kernels.ordered(x), kernels.ordered(y), squared)
    assert value == pytest.approx(expected, rel=1e-10, abs=1e-300)
    # Prices of about one have sixteen digits: the proof of a distance of 1e-10 has six.
    assert 0 <= gap <= max(kernels.TOLERANCE, 1e-16 / max(expected, 1e-16))


@compiled
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_emd_is_scipys_assignment_on_every_kind_of_cloud(kind, squared):
    for n in (2, 50, 300):
        check_emd(*pair(kind, n), squared)


@compiled
@pytest.mark.parametrize("n", [1, 2, 3, 4, 15, 16, 17, 31, 32, 33, 65, 255, 257, 513, 777])
def test_emd_at_any_number_of_points(n):
    check_emd(*pair("random", n), False)
    check_emd(*pair("random", n), True)


@compiled
@given(seed=SEEDS, n=st.integers(1, 80), kind=st.sampled_from(KINDS), squared=st.booleans())
@settings(max_examples=60, deadline=None)
def test_emd_of_drawn_clouds(seed, n, kind, squared):
    check_emd(*pair(kind, n, seed), squared)


@compiled
def test_emd_at_full_size():
    x, y = pair("plane", 1500)
    check_emd(x, y + np.array([0.3, 0.1, 0.2]), False)
    value, gap = kernels.emd(*(kernels.ordered(cloud) for cloud in pair("random", 5000)))
    assert value > 0
    assert 0 <= gap < 1e-12


@compiled
@pytest.mark.parametrize("squared", [False, True])
def test_emd_is_symmetric_and_knows_no_order(squared):
    x, y = pair("random", 400)
    value, _ = kernels.emd(kernels.ordered(x), kernels.ordered(y), squared)
    assert kernels.emd(kernels.ordered(y), kernels.ordered(x), squared)[0] == pytest.approx(value, rel=1e-12)
    assert kernels.emd(x, y, squared)[0] == pytest.approx(value, rel=1e-12)
    shuffled = kernels.ordered(np.random.default_rng(1).permutation(x))
    np.testing.assert_array_equal(shuffled, kernels.ordered(x))
    assert kernels.emd(shuffled, kernels.ordered(y), squared)[0] == value


@compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(1, 1), (2, 9), (40, 17), (300, 300), (900, 333)])
def test_chamfer_is_that_of_trees(kind, sizes):
    x, y = (cloud[:size] for cloud, size in zip(pair(kind, max(sizes)), sizes, strict=True))
    value = kernels.chamfer(kernels.ordered(x), kernels.ordered(y))
    assert value == pytest.approx(nearest(x, y), rel=1e-12, abs=1e-300)
    assert value == kernels.chamfer(kernels.ordered(y), kernels.ordered(x))
    assert value == pytest.approx(kernels.chamfer(x, y), rel=1e-12)


@compiled
def test_threads_give_the_same():
    clouds = [kernels.ordered(cloud) for seed in range(4) for cloud in pair("random", 300, seed)]
    pairs = [(x, y) for x in clouds for y in clouds]
    alone = [(kernels.emd(x, y), kernels.chamfer(x, y)) for x, y in pairs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda p: (kernels.emd(*p), kernels.chamfer(*p)), pairs)) == alone


@compiled
@pytest.mark.parametrize("name", LIBRARIES)
def test_every_library_that_runs_here_gives_the_same(name, monkeypatch):
    x, y = pair("random", 500)
    expected = kernels.emd(x, y)[0], kernels.chamfer(x, y)
    monkeypatch.setattr(kernels, "library", lambda: kernels.loaded(name))
    value, gap = kernels.emd(kernels.ordered(x), kernels.ordered(y))
    assert gap <= kernels.TOLERANCE
    assert (value, kernels.chamfer(x, y)) == pytest.approx(expected, rel=1e-12)


@compiled
def test_errors():
    x, y = pair("random", 4)
    with pytest.raises(ValueError, match="equal numbers of points, got 3 and 4"):
        kernels.emd(x[:3], y)
    with pytest.raises(ValueError, match=r"must be \(N, 3\) with at least one point, got \(0, 3\)"):
        kernels.chamfer(x[:0], y)
    with pytest.raises(ValueError, match="finite"):
        kernels.emd(x * np.nan, y)
    with pytest.raises(ValueError, match="finite"):
        kernels.chamfer(x, y * np.inf)


def test_distances_are_the_same_without_the_kernels(monkeypatch):
    clouds = [pair("random", 60, seed)[0] for seed in range(4)]
    found = {metric: distance.pairwise(clouds, clouds, metric) for metric in ("cd", "emd")}
    assert distance.implementation().startswith("compiled" if kernels.available() else "scipy")
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert distance.implementation().startswith("scipy")
    assert kernels.emd(*clouds[:2]) is kernels.chamfer(*clouds[:2]) is None
    for metric, expected in found.items():
        np.testing.assert_allclose(distance.pairwise(clouds, clouds, metric), expected, rtol=1e-12)


@compiled
def test_a_distance_without_a_proof_is_scipys(monkeypatch):
    x, y = pair("random", 40)
    monkeypatch.setattr(kernels, "emd", lambda *clouds: (-1.0, 1e-6))
    assert distance.emd(x, y) == pytest.approx(mean_assignment(x, y, False), rel=1e-12)


def test_the_module_says_what_is_used():
    command = [sys.executable, "-m", "modalities.pointcloud.kernels"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(out.splitlines()) == 1
    assert kernels.described() in out
