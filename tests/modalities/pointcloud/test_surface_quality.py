"""Laws of what is measured beside 1-NNA, COV and MMD: surfaces, density, novelty, classes, the other EMDs."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditmoe.modality import Samples
from modalities.pointcloud import Clouds, evaluate_sets
from modalities.pointcloud.metrics import memorisation
from modalities.pointcloud.metrics.approximate import approx_emd, pairwise_approx
from modalities.pointcloud.metrics.distance import emd, emd_metric, num_pairs, pairwise
from modalities.pointcloud.metrics.scores import class_scores
from modalities.pointcloud.metrics.surface_quality import dcd, f_score, roughness, uniformity
from tests.modalities.pointcloud.sets import clouds, rotation, shapes

pytestmark = pytest.mark.usefixtures("few_draws")

SEEDS = st.integers(0, 2**32 - 1)
PAIRS = [dcd, f_score]
SHAPES = [uniformity, roughness]
APPROX = ["approx_l2", "approx_sq"]


@pytest.fixture(scope="module")
def furniture() -> np.ndarray:
    """Real shapes, 2,048 points each, bounding-box diagonal 1."""
    return Clouds().reference("test").data.astype(np.float64)


def jittered(points: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    return points + np.random.default_rng(seed).normal(scale=share, size=points.shape)


# --- the named EMDs


@given(seed=SEEDS, n=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_exact_squared_emd_is_the_best_of_all_matchings(seed, n):
    x, y = clouds(seed, n), clouds(seed + 1, n)
    squares = ((x - y[list(p)]) ** 2 for p in itertools.permutations(range(n)))
    assert emd(x, y, "exact_sq") == pytest.approx(min(s.sum(1).mean() for s in squares), rel=1e-10)
    assert emd(x, y, "exact_sq") >= emd(x, y) ** 2 * (1 - 1e-9)


@pytest.mark.parametrize("name", ["uniform_12x12x64", "ellipsoid_16x20x128", "identical_10x10x96",
                                  "offset_6x6x64", "furniture_cc0_40x40x256"])  # fmt: skip
@pytest.mark.parametrize(("variant", "key"), [("exact_sq", "f64_emd_sq"), ("approx_l2", "approx_l2"),
                                              ("approx_sq", "approx_sq")])  # fmt: skip
def test_golden_variants_with_the_real_shape_first(golden, name, variant, key):
    data = golden(f"golden_{name}.npz")
    found = pairwise(data["ref"][:4], data["sample"][:4], emd_metric(variant))
    np.testing.assert_allclose(found, data[key], rtol=2e-6, atol=3e-8)


def test_golden_approximate_pairs_at_full_size_both_ways(golden):
    data = golden("golden_pairs_2048.npz")
    x, y = data["x"][1], data["y"][1]
    for variant in APPROX:
        assert emd(x, y, variant) == pytest.approx(data[variant][1], rel=2e-6)
    assert emd(y, x, "approx_l2") == pytest.approx(data["approx_l2_rev"][1], rel=2e-6)


@pytest.mark.parametrize("variant", APPROX)
def test_the_approximate_matching_is_above_the_exact_one_and_not_symmetric(variant):
    a, b = shapes(0, 6, 96), shapes(1, 5, 96)
    found, back = pairwise(a, b, emd_metric(variant)), pairwise(b, a, emd_metric(variant)).T
    exact = pairwise(a, b, emd_metric(variant.replace("approx", "exact")))
    assert (found > exact).all()
    assert not np.allclose(found, back, rtol=1e-3)
    np.testing.assert_allclose(found, back, rtol=0.2)
    own = pairwise(a, a, emd_metric(variant))
    assert not np.allclose(own, own.T, rtol=1e-3)
    assert (np.diag(own) > 0).all()
    assert np.diag(own).max() < 0.05 * own.mean()


@pytest.mark.parametrize("variant", APPROX)
def test_the_approximate_matching_does_not_see_order_place_or_batches(variant):
    a, b = shapes(0, 3, 64), shapes(1, 4, 64)
    kind, rng = emd_metric(variant), np.random.default_rng(0)
    expected = pairwise(a, b, kind)
    np.testing.assert_allclose(pairwise(a + 100, b + 100, kind), expected, rtol=1e-6)
    np.testing.assert_allclose(pairwise(rng.permutation(a, axis=1), b, kind), expected, rtol=1e-5)
    ticks = []
    assert pairwise(a, b, kind, progress=ticks.append)[2, 3] == pytest.approx(
        emd(a[2], b[3], variant), rel=1e-6
    )
    assert sum(ticks) == num_pairs(a, b, kind)
    assert num_pairs(a, a, kind) == 9


def test_the_approximate_matching_moves_no_mass_twice():
    """Two points that offer, one near and one far place: the near place takes one share of both, not two."""
    x = torch.tensor([[[0.0, 0, 0], [0.0, 0, 0]]])
    y = torch.tensor([[[0.1, 0, 0], [2.0, 0, 0]]])
    assert approx_emd(x, y).item() == pytest.approx((0.1 + 2.0) / 2, rel=1e-5)
    assert approx_emd(x, y, squared=True).item() == pytest.approx((0.01 + 4.0) / 2, rel=1e-5)


@pytest.mark.gpu
def test_the_gpu_matches_the_cpu():
    a, b = shapes(0, 5, 256), shapes(1, 7, 256)
    for squared in (False, True):
        cpu, gpu = (pairwise_approx(a, b, squared, device=torch.device(d)) for d in ("cpu", "cuda"))
        np.testing.assert_allclose(gpu, cpu, rtol=1e-4)


def test_an_unknown_emd_is_refused():
    with pytest.raises(
        ValueError, match="emd must be one of exact_l2, exact_sq, approx_l2, approx_sq, got 'l2'"
    ):
        emd_metric("l2")


# --- pairs and single clouds


@pytest.mark.parametrize("distance", PAIRS)
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_order_motion_and_offset_do_not_matter_to_pairs(distance, seed):
    x, y = clouds(seed, 48), clouds(seed + 1, 48)
    expected, rng = distance(x, y), np.random.default_rng(seed)
    assert distance(rng.permutation(x), rng.permutation(y)) == pytest.approx(expected, rel=1e-10)
    assert distance(x + 100, y + 100) == pytest.approx(expected, rel=1e-8)
    if distance is dcd:
        turn = rotation(seed)
        assert dcd(x @ turn, y @ turn) == pytest.approx(dcd(y, x), rel=1e-8)


@pytest.mark.parametrize("measure", SHAPES)
@given(seed=SEEDS, scale=st.floats(0.01, 100))
@settings(max_examples=10, deadline=None)
def test_order_motion_offset_and_scale_do_not_matter_to_surfaces(measure, seed, scale):
    x, rng = shapes(seed, 1, 64)[0], np.random.default_rng(seed)
    expected = measure(x)
    assert measure(rng.permutation(x)) == pytest.approx(expected, rel=1e-9)
    assert measure(scale * x @ rotation(seed)) == pytest.approx(expected, rel=1e-6)
    assert measure(x + 100) == pytest.approx(expected, rel=1e-6)


def test_dcd_is_its_formula():
    x, y = clouds(0, 20), clouds(1, 20)
    squares = ((x[:, None] - y[None]) ** 2).sum(-1)
    halves = []
    for table in (squares, squares.T):
        nearest = table.argmin(1)
        crowd = np.array([(nearest == j).sum() for j in nearest])
        halves.append(np.mean(1 - np.exp(-1000 * table.min(1)) / crowd))
    assert dcd(x, y) == pytest.approx(np.mean(halves), rel=1e-9)
    assert dcd(x, x) == 0
    assert dcd(x, x + 5) == pytest.approx(1)
    with pytest.raises(ValueError, match="equal numbers of points, got 20 and 19"):
        dcd(x, y[:19])


def test_f_score_is_one_for_a_copy_zero_far_away_and_relative():
    x = clouds(0, 200)
    assert f_score(x, x) == 1
    assert f_score(x + 5, x) == 0
    y = clouds(1, 200)
    assert f_score(3 * x, 3 * y) == f_score(x, y)
    half = x[x[:, 0] > np.median(x[:, 0])]
    assert f_score(half, x, 1e-9) == pytest.approx(2 * 0.5 / 1.5)
    assert f_score(x, half, 1e-9) == pytest.approx(2 * 0.5 / 1.5)


def test_uniformity_and_roughness_of_known_clouds():
    axis = np.arange(40.0)
    lattice = np.stack([*map(np.ravel, np.meshgrid(axis, axis)), np.zeros(1600)], axis=1)
    assert uniformity(lattice) == pytest.approx(0, abs=1e-12)
    assert roughness(lattice) == pytest.approx(0, abs=1e-9)
    rng = np.random.default_rng(0)
    flat = rng.uniform(size=(20000, 3)) * [1, 1, 0]
    assert uniformity(flat) == pytest.approx(0.523, abs=0.02)
    assert uniformity(rng.uniform(size=(20000, 3))) == pytest.approx(0.363, abs=0.02)
    assert roughness(rng.uniform(size=(2000, 3))) < 3**-0.5
    for measure in SHAPES:
        assert measure(np.zeros((5, 3))) == 0
        assert measure(np.zeros((1, 3))) == 0


def test_each_sees_a_one_percent_jitter_of_real_shapes(furniture):
    noisy = jittered(furniture, 0.01)
    for measure, grows in ((uniformity, False), (roughness, True)):
        clean, jitter = (np.array([measure(cloud) for cloud in of]) for of in (furniture, noisy))
        told = (jitter[:, None] > clean[None]).mean()  # pairs of a jittered and a clean shape, not the same
        assert (told if grows else 1 - told) > 0.8
    rough = [np.mean([roughness(c) for c in jittered(furniture, s)]) for s in (0, 0.005, 0.01, 0.02, 0.04)]
    assert rough == sorted(rough)
    x, y = furniture[0][:1024], furniture[0][1024:]
    for measure, order in ((dcd, 1), (f_score, -1)):
        grown = [order * measure(jittered(x, s), y) for s in (0, 0.01, 0.02, 0.04)]
        assert grown == sorted(grown)


# --- novelty and classes


def test_novelty_of_copies_noise_and_of_the_held_out_set_itself():
    held_out = np.linspace(1, 2, 100)
    assert memorisation.novelty(np.zeros(20), held_out) == 0
    assert memorisation.novelty(np.full(20, 9.0), held_out) == 1
    assert memorisation.novelty(held_out, held_out) == pytest.approx(0.9)
    found = memorisation.nearest_train(np.linspace(3, 5, 101), held_out)
    assert found["nearest-train/cd"] == pytest.approx(4)
    assert found["nearest-train/cd/p5"] == pytest.approx(3.1)
    assert found["nearest-train/cd/p95"] == pytest.approx(4.9)
    for name, (low, high) in memorisation.intervals(np.linspace(1, 3, 30), held_out, 0).items():
        assert 0 <= low < memorisation.nearest_train(np.linspace(1, 3, 30), held_out)[name] < high
    # 20 shapes prove no certainty.
    assert memorisation.intervals(np.zeros(20), held_out, 0)["novelty"][1] > 0.1


def test_a_few_copies_show_in_the_low_percentile_alone():
    train, held_out, fresh = shapes(0, 40), shapes(1, 30), shapes(2, 30)
    some = np.concatenate([jittered(train[:5], 0.001), fresh[5:]])
    of = [evaluate_sets(s, held_out, train, emd=None, progress=False).values for s in (fresh, some)]
    assert of[1]["nearest-train/cd/p5"] < 0.1 * of[0]["nearest-train/cd/p5"]
    assert of[1]["nearest-train/cd"] > 0.7 * of[0]["nearest-train/cd"]


def test_class_scores():
    M = np.array([[0.0, 5, 0], [1, 0, 5], [2, 3, 5], [9, 9, 9]])  # the nearest real shapes are 0, 1, 0
    scores = class_scores(M, np.array([4, 4, 6, 7]), np.array([4, 4, 6]))
    assert scores["classes/coverage"] == pytest.approx(1 / 3)
    assert scores["classes/distance"] == pytest.approx(0.5)
    assert scores["classes/agreement"] == pytest.approx(2 / 3)
    ideal = class_scores(1 - np.eye(4), np.array([4, 4, 6, 7]))
    assert ideal == {"classes/coverage": 1, "classes/distance": 0}


def test_classes_are_reported_where_they_tell_something():
    x, y = shapes(0, 8), shapes(1, 8)
    two, one, null = np.arange(8) % 2, np.zeros(8, int), np.full(8, 2)

    def names(a, b):
        report = evaluate_sets(Samples(x, a), Samples(y, b), emd=None, progress=False)
        return {name for name in report.values if name.startswith("classes")}

    assert names(two, two) == {"classes/coverage", "classes/distance", "classes/agreement"}
    assert names(None, two) == names(null, two) == {"classes/coverage", "classes/distance"}
    assert names(two, one) == names(two, None) == set()
