"""Laws of the point-cloud metrics, and the numbers of PointFlow's own code."""

import json

import numpy as np
import pytest

from ditmoe.modality import Samples
from modalities.pointcloud import evaluate_sets
from modalities.pointcloud.metrics import confidence
from modalities.pointcloud.metrics.distance import Metric, chamfer, emd, pairwise
from modalities.pointcloud.metrics.evaluation import jsd, mmd_cov, one_nna
from modalities.pointcloud.metrics.protocol import draw_like, draw_points
from tests.modalities.pointcloud.sets import clouds, shapes

SETS = ["uniform_12x12x64", "ellipsoid_16x20x128", "identical_10x10x96", "offset_6x6x64"]
FURNITURE = "furniture_cc0_40x40x256"


def scores(generated: np.ndarray, reference: np.ndarray, **options) -> dict[str, float]:
    return dict(evaluate_sets(generated, reference, progress=False, **options).values)


# --- metrics of sets


def test_a_copy_is_ideal_but_for_1_nna_which_it_gives_away():
    x = shapes(0, 12)
    rng = np.random.default_rng(1)
    copy = np.stack([rng.permutation(cloud) for cloud in x[rng.permutation(12)]])
    report = evaluate_sets(copy, x, progress=False)
    for kind in ("cd", "emd"):
        assert report.values[f"1-nna/{kind}"] == 0
        assert report.values[f"cov/{kind}"] == 1
        assert report.values[f"mmd/{kind}"] == 0
    assert report.values["jsd"] == 0
    assert any("against itself" in note for note in report.notes)
    assert any("below 0.5" in note for note in report.notes)


def test_collapse_raises_1_nna_and_lowers_cov():
    reference, fresh = shapes(0, 24), shapes(1, 24)
    jitter = np.random.default_rng(2).normal(scale=0.002, size=fresh.shape)
    collapsed = np.tile(fresh[:2], (12, 1, 1)) + jitter
    good, bad = scores(fresh, reference, emd=None), scores(collapsed, reference, emd=None)
    assert bad["1-nna/cd"] > 0.8 > good["1-nna/cd"]
    assert bad["1-nna/cd/generated"] == 1
    assert bad["cov/cd"] <= 2 / 24 < good["cov/cd"]
    assert bad["mmd/cd"] > good["mmd/cd"]


def test_corruption_worsens_every_metric():
    reference, fresh = shapes(0, 20), shapes(1, 20)
    noise = np.random.default_rng(2).normal(scale=0.1, size=fresh.shape)
    good, bad = scores(fresh, reference), scores(fresh + noise, reference)
    for name in ("1-nna/cd", "1-nna/emd", "mmd/cd", "mmd/emd", "jsd"):
        assert bad[name] > good[name]


def test_the_roles_of_the_sets_are_not_transposed():
    a, b = shapes(0, 9), shapes(1, 14)
    forth, back = scores(a, b), scores(b, a)
    for kind in ("cd", "emd"):
        assert forth[f"1-nna/{kind}"] == back[f"1-nna/{kind}"]
        assert forth[f"1-nna/{kind}/real"] == back[f"1-nna/{kind}/generated"]
        assert forth[f"mmd/{kind}"] != back[f"mmd/{kind}"]
    assert forth["jsd"] == pytest.approx(back["jsd"], abs=1e-12)
    M = pairwise(b, a, "cd")  # rows: the reference
    assert mmd_cov(M) == (M.min(axis=1).mean(), len(set(M.argmin(axis=0))) / 14)
    assert forth["mmd/cd"] == pytest.approx(mmd_cov(M)[0], rel=1e-12)


def test_1_nna_is_a_loop_over_shapes():
    ref, sample = shapes(0, 7), shapes(1, 5)
    M_rr, M_rs, M_ss = (pairwise(a, b, "cd") for a, b in ((ref, ref), (ref, sample), (sample, sample)))
    full = np.block([[M_rr, M_rs], [M_rs.T, M_ss]])
    right = []
    for i in range(12):
        others = [j for j in range(12) if j != i]
        right.append((min(others, key=lambda j: full[i, j]) < 7) == (i < 7))
    assert one_nna(M_rr, M_rs, M_ss) == pytest.approx(
        (np.mean(right), np.mean(right[:7]), np.mean(right[7:]))
    )


def test_1_nna_of_ties_does_not_depend_on_the_order():
    zeros = np.zeros((3, 3))
    assert one_nna(zeros, zeros, zeros) == pytest.approx((0.4, 0.4, 0.4))


def test_jsd_is_zero_for_itself_and_one_for_disjoint_sets():
    x = shapes(0, 5)
    assert jsd(x, x) == 0
    assert jsd(np.abs(x) + 0.02, -np.abs(x) - 0.02) == pytest.approx(1, abs=1e-12)
    assert 0 < jsd(x, shapes(1, 5)) < 1
    assert jsd([x[0], x[1, :9]], [x[1, :9], x[0]]) == 0


# --- a report


def test_report_with_its_rows_and_protocol():
    train, reference, generated = (
        Samples(shapes(seed, num, 96).astype(np.float32), np.arange(num) % 3)
        for seed, num in ((0, 30), (1, 10), (2, 8))
    )
    report = evaluate_sets(generated, reference, train, points=64, emd_points=32, progress=False, seed=3)
    sides = {f"1-nna/{kind}{side}" for kind in ("cd", "emd") for side in ("", "/real", "/generated")}
    metrics = sides | {"cov/cd", "cov/emd", "mmd/cd", "mmd/emd", "jsd", "dcd", "f-score"}
    classes, each = {"classes/coverage", "classes/distance"}, {"uniformity", "roughness"}
    memory = {"nearest-train/cd", "nearest-train/cd/p5", "nearest-train/cd/p95", "novelty"}
    every = metrics | classes | each | memory
    assert set(report.values) == set(report.intervals) == every | {"classes/agreement"}
    assert set(report.rows["oracle"]) == metrics | classes | each
    assert set(report.rows["held-out"]) == each | memory
    for name, (low, high) in report.intervals.items():
        assert 0 <= low <= report.values[name] <= high
        assert high <= 1 or name.startswith("nearest")
    assert report.protocol["emd"] == "exact_l2, 32 points"
    assert (report.protocol["points"], report.protocol["oracle"]) == (64, "8 shapes")
    assert any("few" in note for note in report.notes)
    assert any("COV cannot exceed 0.80" in note for note in report.notes)
    again = evaluate_sets(
        generated, reference, train, points=64, emd_points=32, progress=False, seed=3, workers=1
    )
    assert again == report
    fewer = evaluate_sets(generated, reference, emd=None, progress=False)
    expected = {name for name in metrics | classes | each if "emd" not in name} | {"classes/agreement"}
    assert set(fewer.values) == expected
    assert set(fewer.rows) == {"held-out"}
    assert fewer.protocol["points"] == 96
    assert any("fewer than the 2048" in note for note in fewer.notes)


def test_memorised_shapes_are_told_from_new_ones():
    train, reference = shapes(0, 40), shapes(1, 20)
    jitter = np.random.default_rng(2).normal(scale=0.005, size=(20, 64, 3))
    copied = evaluate_sets(train[:20] + jitter, reference, train, emd=None, progress=False)
    fresh = evaluate_sets(shapes(3, 20), reference, train, emd=None, progress=False)
    assert copied.values["nearest-train/cd"] < 0.2 * copied.rows["held-out"]["nearest-train/cd"]
    assert any("memorisation" in note for note in copied.notes)
    assert not any("memorisation" in note for note in fresh.notes)
    exact = evaluate_sets(train[:20], train[20:], train, emd=None, progress=False)
    assert sum("exact copies of training shapes" in note for note in exact.notes) == 2


def test_a_draw_keeps_copies_and_is_nested():
    x = [clouds(0, 50), clouds(1, 70)]
    drawn = draw_points([*x, x[0]], 20, 5)
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert [len(np.unique(cloud, axis=0)) for cloud in drawn] == [20, 20, 20]
    np.testing.assert_array_equal(draw_points(x, 8, 5)[1], drawn[1][:8])
    assert not np.array_equal(draw_points(x, 20, 6)[0], drawn[0])


def test_the_oracle_has_the_labels_of_the_generated_set():
    train = np.repeat([0, 1, 2], [10, 10, 2])
    picked = draw_like(9, np.array([0] * 2 + [1] * 6 + [2]), train, 22, 0)
    assert np.bincount(train[picked]).tolist() == [2, 6, 1]
    short = draw_like(5, np.array([2] * 5), train, 22, 0)
    assert len(set(short)) == 5
    assert (train[short] == 2).sum() == 2
    assert len(set(draw_like(30, None, train, 22, 0))) == 22


@pytest.mark.parametrize(
    ("generated", "message"),
    [
        (np.zeros((0, 8, 3)), "generated set must have at least 2 clouds, got 0"),
        (np.zeros((1, 8, 3)), "generated set must have at least 2 clouds, got 1"),
        (np.zeros((4, 3)), r"generated set must be clouds of \(N, 3\), got \(3,\) at index 0"),
        (np.zeros((4, 8, 2)), r"generated set must be clouds of \(N, 3\), got \(8, 2\) at index 0"),
        ([np.zeros((8, 3)), np.zeros((0, 3))], r"got \(0, 3\) at index 1"),
        (np.full((4, 8, 3), np.nan), "finite, got NaN or infinity in 4 of 4 clouds"),
        (np.full((4, 8, 3), -np.inf), "finite"),
        (Samples(np.zeros((4, 8, 3)), np.zeros(3, int)), "one label a cloud, got 3 for 4"),
    ],
)
def test_a_broken_set_ends_in_one_sentence(generated, message):
    with pytest.raises(ValueError, match=message):
        evaluate_sets(generated, clouds(0, 4, 8), progress=False)
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        evaluate_sets(clouds(0, 4, 8), clouds(1, 4, 8), points=0, progress=False)


def test_intervals_hold_the_spread_of_repeated_draws():
    """The measured standard error is near, and on average not below, the true one."""
    rng = np.random.default_rng(0)

    def draw() -> np.ndarray:
        x = rng.normal(size=(60, 2))
        return np.linalg.norm(x[:, None] - x, axis=-1)

    def measure(M: np.ndarray, r: np.ndarray, s: np.ndarray) -> np.ndarray:
        s = s + 30
        M_rs = M[np.ix_(r, s)]
        return np.array([*one_nna(M[np.ix_(r, r)], M_rs, M[np.ix_(s, s)]), *mmd_cov(M_rs)])

    whole = np.arange(30)
    values = np.array([measure(draw(), whole, whole) for _ in range(200)])
    errors, of_nearest = [], []
    for seed in range(6):
        M = draw()
        errors.append(confidence.half_sampling(lambda r, s, M=M: measure(M, r, s), 30, 30, seed))
        of_nearest.append(confidence.of_neighbours(M[:30, :30], M[:30, 30:], M[30:, 30:]))
    ratio = np.sqrt(np.mean(np.square(errors), axis=0)) / values.std(axis=0)
    assert (ratio > 0.95).all()
    assert (ratio < 1.7).all()
    ratio = np.sqrt(np.mean(np.square(of_nearest), axis=0)) / values.std(axis=0)[:4]
    assert (ratio > 0.9).all()
    assert (ratio < 1.5).all()


def test_terms_of_the_same_shape_count_once():
    terms = np.random.default_rng(0).normal(size=12)
    alone = confidence.of_dependent(terms, np.eye(12, dtype=bool))
    assert alone == pytest.approx(terms.std() / 12**0.5, rel=1e-12)
    twice = confidence.of_dependent(np.repeat(terms, 2), np.repeat(np.eye(12, dtype=bool), 2, axis=0))
    assert twice == pytest.approx(alone, rel=1e-12)


def test_interval_of_a_fraction_claims_no_certainty():
    assert confidence.of_fraction(0.0, 0.0, 38)[1] > 0.05
    assert confidence.of_fraction(1.0, 0.0, 38)[0] < 0.95
    low, high = confidence.of_fraction(0.5, 0.1, 100)
    assert 0.3 < low < 0.35 < 0.65 < high < 0.7


# --- numbers of the reference's code


def matrices(data, kind: Metric) -> dict[str, np.ndarray]:
    sample, ref = data["sample"], data["ref"]
    return {
        "M_rr": pairwise(ref, ref, kind),
        "M_rs": pairwise(ref, sample, kind),
        "M_ss": pairwise(sample, sample, kind),
    }


@pytest.mark.parametrize("name", [*SETS, FURNITURE])
@pytest.mark.parametrize("kind", ["cd", "emd"])
def test_golden_matrices_and_metrics(golden, name, kind):
    data = golden(f"golden_{name}.npz")
    key = {"cd": "f64_cd_sq", "emd": "f64_emd_l2"}[kind]
    first = pairwise(data["ref"][:4], data["sample"][:4], kind)
    np.testing.assert_allclose(first, data[key], rtol=1e-9, atol=1e-12)
    if name == FURNITURE and kind == "emd":
        M = {key: data[f"{key}_emd"].astype(float) for key in ("M_rr", "M_rs", "M_ss")}
        some = pairwise(data["ref"][:10], data["sample"][:10], "emd")
        np.testing.assert_allclose(some, M["M_rs"][:10, :10], rtol=1e-5, atol=1e-7)
    else:
        M = matrices(data, kind)
    wrong = name.startswith("offset") and kind == "cd"  # the reference's float32 cancels at +100
    overall, real, generated = one_nna(M["M_rr"], M["M_rs"], M["M_ss"])
    if wrong:
        assert overall == pytest.approx(1 / 3)
        return
    for which, matrix in M.items():
        np.testing.assert_allclose(matrix, data[f"{which}_{kind}"], rtol=1e-5, atol=1e-7)
    expected, mmd_and_cov = json.loads(str(data["metrics_json"])), mmd_cov(M["M_rs"])
    name = kind.upper()
    assert mmd_and_cov[0] == pytest.approx(expected[f"lgan_mmd-{name}"], rel=1e-5, abs=1e-7)
    assert mmd_and_cov[1] == pytest.approx(expected[f"lgan_cov-{name}"], rel=1e-5)
    assert overall == pytest.approx(expected[f"1-NN-{name}-acc"], rel=1e-5)
    assert real == pytest.approx(expected[f"1-NN-{name}-acc_t"], rel=1e-5)
    assert generated == pytest.approx(expected[f"1-NN-{name}-acc_f"], rel=1e-5)


@pytest.mark.parametrize("name", [*SETS, FURNITURE])
def test_golden_jsd(golden, name):
    data = golden(f"golden_{name}.npz")
    expected = json.loads(str(data["metrics_json"]))["JSD"]
    assert jsd(data["sample"], data["ref"]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_golden_through_the_whole_evaluation(golden):
    data = golden("golden_ellipsoid_16x20x128.npz")
    expected, values = json.loads(str(data["metrics_json"])), scores(data["sample"], data["ref"])
    for ours, theirs in (("1-nna/cd/real", "1-NN-CD-acc_t"), ("1-nna/emd/generated", "1-NN-EMD-acc_f"),
                         ("cov/emd", "lgan_cov-EMD"), ("mmd/cd", "lgan_mmd-CD"), ("jsd", "JSD")):  # fmt: skip
        assert values[ours] == pytest.approx(expected[theirs], rel=1e-5)


def test_golden_pairs_at_full_size(golden):
    data = golden("golden_pairs_2048.npz")
    for i, (x, y) in enumerate(zip(data["x"], data["y"], strict=True)):
        assert chamfer(x, y) == pytest.approx(data["cd_sq"][i], rel=1e-9)
        assert chamfer(x, y) == pytest.approx(data["pf_cd"][i], rel=1e-5)
    # One of six: the exact assignment of 2,048 points takes seconds.
    assert emd(data["x"][0], data["y"][0]) == pytest.approx(data["emd_l2"][0], rel=1e-9)
