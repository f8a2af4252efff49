"""Fréchet distance, KID, precision and recall: closed forms, hand-computed sets, and what must not change them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import ortho_group

from modalities.shared import frechet
from modalities.shared.confidence import wilson
from modalities.shared.frechet import Moments, Statistics


def gaussian(num: int, features: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, (num, features)) * np.linspace(0.5, 2, features)


def fd(a: np.ndarray, b: np.ndarray) -> float:
    return frechet.distance(Statistics.of(a), Statistics.of(b))


def test_distance_of_gaussians_with_axes_in_common() -> None:
    a, b, shift = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 0.25]), np.array([1.0, 0.0, -2.0])
    found = frechet.distance(Statistics(np.zeros(3), np.diag(a)), Statistics(shift, np.diag(b)))
    assert found == pytest.approx(5 + 1 + 0 + 2.5**2, rel=1e-12)  # |shift|² + Σ (√a - √b)²


def test_distance_of_gaussians_that_do_not_commute() -> None:
    a, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 2.0]])
    # The roots of a 2 x 2 matrix M add up to √(tr M + 2 √det M).
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    found = frechet.distance(Statistics(np.zeros(2), a), Statistics(np.zeros(2), b))
    assert found == pytest.approx(5 + 3 - 2 * cross, rel=1e-12)


def test_distance_equals_that_of_a_matrix_square_root() -> None:
    a, b = gaussian(300, 12, 0), gaussian(200, 12, 1, 0.3) @ ortho_group.rvs(12, random_state=2)
    S_a, S_b = np.cov(a.T), np.cov(b.T)
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    assert fd(a, b) == pytest.approx(shift + np.trace(S_a + S_b - 2 * sqrtm(S_a @ S_b).real), rel=1e-10)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([[1, 0], [-1, 0]], [[0, 1], [0, -1]], 4.0),  # lines at a right angle: nothing in common
        ([[1, 0], [-1, 0]], [[2, 0], [-2, 0]], 2.0),  # variances 2 and 8: (√8 - √2)²
        ([[1, 0], [-1, 0]], [[3, 3], [3, 3]], 20.0),  # a point: |shift|² + 2
        ([[3, 4], [3, 4]], [[0, 0], [0, 0]], 25.0),
    ],
)
def test_distance_of_degenerate_sets(a: list, b: list, expected: float) -> None:
    assert fd(np.array(a, float), np.array(b, float)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("counts", [(5, 7), (30, 8), (8, 30), (40, 21), (21, 21)])
def test_distance_with_fewer_samples_than_features(counts: tuple[int, int]) -> None:
    a, b = gaussian(counts[0], 20, 0), gaussian(counts[1], 20, 1, 0.5)
    X, Y = ((s - s.mean(0)) / np.sqrt(len(s) - 1) for s in (a, b))
    # tr (Σ_a Σ_b)^½ is the sum of these singular values.
    nuclear = np.linalg.svd(X @ Y.T, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (X**2).sum() + (Y**2).sum() - 2 * nuclear
    assert fd(a, b) == pytest.approx(expected, rel=1e-9)
    streamed = [frechet.moments(s).statistics() for s in (a, b)]  # without the factor that a whole set has
    assert frechet.distance(*streamed) == pytest.approx(expected, rel=1e-6)
    unknown = [Statistics(s.mu, s.sigma) for s in streamed]
    assert frechet.distance(*unknown) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(2, 30), st.integers(2, 30), st.floats(0.1, 10))
def test_distance_is_a_distance_whatever_the_frame(seed: int, m: int, n: int, scale: float) -> None:
    a, b = gaussian(m, 6, seed), gaussian(n, 6, seed + 1, 1.0)
    d = fd(a, b)
    turn = ortho_group.rvs(6, random_state=seed)
    assert fd(b, a) == pytest.approx(d, rel=1e-6)
    assert fd(scale * a @ turn + 5, scale * b @ turn + 5) == pytest.approx(scale**2 * d, rel=1e-6, abs=1e-6)
    assert fd(a, a) == pytest.approx(0, abs=1e-6)
    assert fd(a, a + 1) == pytest.approx(6, rel=1e-6)
    assert d > 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.floats(-1e4, 1e4))
def test_streaming_equals_the_whole(sizes: list[int], offset: float) -> None:
    whole = gaussian(sum(sizes) + 2, 4, 0) + offset
    found = Moments(4)
    for batch in np.split(whole, np.cumsum([2, *sizes])[:-1]):
        found.add(batch)
    statistics = found.statistics()
    assert statistics.num == len(whole)
    np.testing.assert_allclose(statistics.mu, whole.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(statistics.sigma, np.cov(whole.T), rtol=1e-7, atol=1e-9)


def test_what_was_merged_can_be_left_out() -> None:
    whole = gaussian(50, 4, 0, 100)
    rest = frechet.moments(whole).without(frechet.moments(whole[:20])).statistics()
    np.testing.assert_allclose(rest.mu, whole[20:].mean(0), rtol=1e-12)
    np.testing.assert_allclose(rest.sigma, np.cov(whole[20:].T), rtol=1e-8, atol=1e-10)
    assert rest.num == 30


def test_float32_features_are_summed_in_float64() -> None:
    whole = gaussian(5000, 3, 0, 300).astype(np.float32)
    np.testing.assert_allclose(Statistics.of(whole).sigma, np.cov(whole.astype(float).T), rtol=1e-9)


def test_bad_features_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        Statistics.of(np.array([[0.0, 1.0], [np.nan, 0.0]]))
    with pytest.raises(ValueError, match="4 features, got 5"):
        Moments(4).add(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        Statistics.of(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="as many features, got 2 and 3"):
        frechet.distance(Statistics.of(np.zeros((3, 2))), Statistics.of(np.zeros((3, 3))))


@pytest.mark.parametrize("num", [40, 9])
def test_jackknife_equals_leaving_out_by_hand(num: int) -> None:
    a, b = gaussian(num, 10, 0), gaussian(60, 10, 1, 0.5)
    found = frechet.jackknife(a, Statistics.of(b), groups=4, seed=3)
    order = np.random.default_rng(3).permutation(num)
    left = np.array([fd(np.delete(a, order[g::4], axis=0), b) for g in range(4)])
    assert found.value == pytest.approx(fd(a, b))
    assert found.error == pytest.approx(np.sqrt(3 / 4 * ((left - left.mean()) ** 2).sum()), rel=1e-6)
    assert found.bias == pytest.approx(3 * (left.mean() - fd(a, b)), rel=1e-6)
    both = frechet.jackknife(a, b, groups=4, seed=3)
    assert both.error > found.error
    assert both.df == 3


def test_jackknife_knows_spread_and_bias() -> None:
    truth, found = 0.25, []
    for seed in range(12):
        a, b = (np.random.default_rng([seed, side]).normal(size=(150, 10)) for side in (0, 1))
        found.append(frechet.jackknife(a + np.sqrt(truth / 10), b, seed=seed))
    values = np.array([e.value for e in found])
    assert np.mean([e.bias for e in found]) == pytest.approx(values.mean() - truth, rel=0.25)
    assert np.mean([e.corrected for e in found]) == pytest.approx(truth, abs=0.06)
    assert 0.6 < np.mean([e.error for e in found]) / values.std(ddof=1) < 1.8
    covered = [low <= values.mean() <= high for low, high in (e.interval() for e in found)]
    assert np.mean(covered) > 0.8


def test_jackknife_of_very_few_tells_no_error() -> None:
    assert np.isnan(frechet.jackknife(gaussian(3, 2, 0), gaussian(9, 2, 1)).error)
    assert np.isnan(frechet.jackknife(gaussian(9, 2, 0), gaussian(9, 2, 1), groups=0).error)


def test_halves_are_disjoint() -> None:
    one, other = frechet.halves(9)
    assert len(one) == len(other) == 4
    assert not set(one) & set(other)


def test_kid_by_hand() -> None:
    x, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    # k(x1, x2) = 1, k(y1, y2) = 1; k(x, y) = (1.5³, 1, 2³, 1)
    assert frechet.kid(x, y).value == pytest.approx(1 + 1 - 2 * (1.5**3 + 1 + 8 + 1) / 4)
    assert np.isnan(frechet.kid(x, y).error)


def test_kid_is_zero_on_average_for_equal_distributions() -> None:
    found = [frechet.kid(gaussian(40, 5, 2 * seed), gaussian(60, 5, 2 * seed + 1)) for seed in range(60)]
    values = np.array([e.value for e in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert (values < 0).any()
    assert np.mean([e.error for e in found]) == pytest.approx(values.std(ddof=1), rel=0.4)


def test_kid_averages_blocks_and_sees_a_shift() -> None:
    a, b = gaussian(100, 5, 0), gaussian(100, 5, 1, 1.5)
    found = frechet.kid(a, b, block=10)
    assert found.df == 9
    assert found.value > 3 * found.error > 0
    with pytest.raises(ValueError, match="at least 2 samples of each set, got 1"):
        frechet.kid(a[:1], b)


def test_precision_and_recall_by_hand() -> None:
    real, generated = np.array([[0.0], [1.0], [3.0]]), np.array([[1.5], [6.0], [5.0]])
    # Radii to the nearest other: real 1, 1, 2 and generated 3.5, 1, 1; 5 lies on the border of 3, 6 outside.
    assert frechet.precision_recall(real, generated, k=1) == (pytest.approx(2 / 3), 1.0)
    assert frechet.precision_recall(generated, real, k=1) == (1.0, pytest.approx(2 / 3))


def test_precision_and_recall_at_their_ends() -> None:
    a = gaussian(600, 4, 0)  # more than one chunk
    assert frechet.precision_recall(a, a) == (1.0, 1.0)
    assert frechet.precision_recall(a, a + 100) == (0.0, 0.0)
    narrow = 0.01 * gaussian(600, 4, 1)
    precision, recall = frechet.precision_recall(a, narrow)
    assert precision == 1
    assert recall < 0.05
    with pytest.raises(ValueError, match="more than k = 3 samples of each set, got 3"):
        frechet.precision_recall(a, a[:3])


def test_squared_distances_equal_a_loop() -> None:
    x, y = gaussian(7, 3, 0), gaussian(5, 3, 1)
    expected = [[((a - b) ** 2).sum() for b in y] for a in x]
    np.testing.assert_allclose(np.concatenate(list(frechet.squared_distances(x, y, chunk=2))), expected)


def test_inception_score_by_hand() -> None:
    sure, unsure = np.eye(4)[np.arange(40) % 4], np.full((40, 4), 0.25)
    assert frechet.inception_score(sure).value == pytest.approx(4)
    assert frechet.inception_score(unsure).value == pytest.approx(1)
    same = np.eye(4)[np.zeros(40, int)]
    assert frechet.inception_score(same).value == pytest.approx(1)
    p = np.array([[0.5, 0.5], [1.0, 0.0]])
    kl = (0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25) + np.log(1 / 0.75)) / 2
    assert frechet.inception_score(p).value == pytest.approx(np.exp(kl))


def test_inception_score_takes_whole_splits() -> None:
    p = np.concatenate([np.eye(4)[np.arange(8) % 4], np.eye(4)[np.zeros(8, int)], np.full((3, 4), 0.25)])
    found = frechet.inception_score(p, split=8)
    assert found.value == pytest.approx(2.5)  # of 4 and 1; the last three are left out
    assert found.error == pytest.approx(1.5)


def test_wilson() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson(1.0, 20)
    assert 0.8 < low < 0.9
    assert high == pytest.approx(1)
