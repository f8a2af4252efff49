"""Laws of the distances between clouds: Chamfer and the earth mover's."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modalities.pointcloud.metrics.distance import chamfer, emd, num_pairs, pairwise
from tests.modalities.pointcloud.sets import clouds, rotation, shapes

SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, n=st.integers(1, 40), m=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_chamfer_is_its_formula_and_symmetric(seed, n, m):
    x, y = clouds(seed, n), clouds(seed + 1, m)
    squares = ((x[:, None] - y[None]) ** 2).sum(-1)
    assert chamfer(x, y) == pytest.approx(squares.min(1).mean() + squares.min(0).mean(), rel=1e-12)
    assert chamfer(x, y) == chamfer(y, x)
    assert chamfer(x, x) == 0


@given(seed=SEEDS, n=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_emd_is_the_best_of_all_matchings_and_at_least_the_way_of_the_centroid(seed, n):
    x, y = clouds(seed, n), clouds(seed + 1, n)
    matchings = (np.linalg.norm(x - y[list(p)], axis=1).mean() for p in itertools.permutations(range(n)))
    assert emd(x, y) == pytest.approx(min(matchings), rel=1e-12)
    assert emd(x, y) == pytest.approx(emd(y, x), rel=1e-12)
    assert emd(x, y) >= np.linalg.norm(x.mean(0) - y.mean(0)) * (1 - 1e-12)
    assert emd(x, x) == 0


@pytest.mark.parametrize("distance", [chamfer, emd])
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_order_motion_and_offset_do_not_matter(distance, seed):
    x, y = clouds(seed, 32), clouds(seed + 1, 32)
    expected, rng = distance(x, y), np.random.default_rng(seed)
    assert distance(rng.permutation(x), y) == pytest.approx(expected, rel=1e-12)
    turn = rotation(seed)
    assert distance(x @ turn, y @ turn) == pytest.approx(expected, rel=1e-10)
    assert distance(x + 100, y + 100) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("distance", "power"), [(chamfer, 2), (emd, 1)])
def test_units(distance, power):
    x, y = clouds(0, 32), clouds(1, 32)
    assert distance(3 * x, 3 * y) == pytest.approx(3**power * distance(x, y), rel=1e-12)


@pytest.mark.parametrize("distance", [chamfer, emd])
def test_corruption_grows_the_distance(distance):
    x = shapes(0, 1, 128)[0]
    noise = np.random.default_rng(1).normal(size=x.shape)
    grown = [distance(x, x + scale * noise) for scale in (0, 0.01, 0.03, 0.1, 0.3)]
    assert grown == sorted(grown)
    assert grown[0] == 0
    assert min(np.diff(grown)) > 0


@pytest.mark.parametrize("metric", ["cd", "emd"])
def test_pairwise_is_each_pair_whatever_the_workers(metric):
    a, b = clouds(0, 5, 16), clouds(1, 4, 16)
    distance = {"cd": chamfer, "emd": emd}[metric]
    expected = [[distance(x, y) for y in b] for x in a]
    for workers in (None, 1, 3):
        np.testing.assert_array_equal(pairwise(a, b, metric, workers), expected)
    own = pairwise(a, a, metric)
    np.testing.assert_array_equal(own, own.T)
    np.testing.assert_array_equal(np.diag(own), 0)
    np.testing.assert_allclose(own, pairwise(a, a.copy(), metric), rtol=1e-12)


def test_pairwise_takes_clouds_of_many_sizes_and_counts_its_pairs():
    a, b = [clouds(i, 3 + i) for i in range(5)], [clouds(i, 30) for i in range(40)]
    for right in (a, b):
        ticks = []
        matrix = pairwise(a, right, "cd", 2, ticks.append)
        assert matrix[1, 2] == chamfer(a[1], right[2])
        assert sum(ticks) == num_pairs(a, right, "cd")
    assert (num_pairs(a, a, "cd"), num_pairs(a, b, "cd"), num_pairs(a, a, "emd-approx_l2")) == (10, 200, 25)
    assert pairwise(a[:1], a[:1].copy(), "cd").shape == (1, 1)


def test_an_interrupted_pairwise_stops_soon():
    def interrupt(done):
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        pairwise(clouds(0, 400, 8), clouds(1, 400, 8), "cd", 2, interrupt)
    assert threading.active_count() == before


def test_distance_errors():
    x = clouds(0, 4)
    with pytest.raises(ValueError, match="equal numbers of points, got 3 and 4"):
        emd(x[:3], x)
    with pytest.raises(ValueError, match="equal numbers of points, got 3 and 4"):
        pairwise([x], [x, x[:3]], "emd")
    with pytest.raises(ValueError, match="at least one point"):
        chamfer(x, x[:0])
    with pytest.raises(ValueError, match="finite"):
        chamfer(x, x * np.nan)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        pairwise([x], [x], "cd", workers=0)
