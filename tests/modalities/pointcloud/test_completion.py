"""Parts of clouds are what one sees from a side, and measures of completion what their definitions say."""

from pathlib import Path

import numpy as np
import pytest

from ditmoe.modality import Samples
from modalities.pointcloud import Clouds, PointCloud, PointVoxelTokens, evaluate_completions
from modalities.pointcloud.data.partial import NUM_GIVEN, SIZES, draw_part, one_side, one_view, seen_from
from modalities.pointcloud.data.prepare import prepare
from modalities.pointcloud.metrics.completion import MIRROR, NEAREST, SCAN
from modalities.pointcloud.metrics.distance import chamfer
from modalities.pointcloud.metrics.surface_quality import tree_of


def sphere(num: int = 2048) -> np.ndarray:
    points = np.random.default_rng(0).normal(size=(num, 3))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def test_one_view_sees_the_near_side_of_a_sphere() -> None:
    points, eye = sphere(), np.array([1.0, 2.0, -3.0])
    along = points @ (eye / np.linalg.norm(eye))
    seen = np.zeros(len(points), bool)
    seen[seen_from(points, 10 * eye)] = True
    # A depth buffer loses what it sees aslant.
    for shown, least in ((seen, 0.4), (one_view(points, eye), 0.7)):
        assert shown[along > least].mean() > 0.99
        assert shown[along < -0.2].mean() < 0.01
    assert one_view(np.zeros((5, 3)), eye).all()
    assert len(seen_from(np.zeros((5, 3)), eye)) == 5
    assert one_side(points, eye, 0.8).sum() == pytest.approx(0.2 * len(points), abs=1)


def test_a_part_is_drawn_by_its_own_generator_and_of_the_cloud_but_for_noise() -> None:
    points, noisy, sizes = sphere(), 0, set()
    for i in range(40):
        part = draw_part(points, np.random.default_rng(i))
        assert np.array_equal(part, draw_part(points, np.random.default_rng(i)))
        assert part.shape == (NUM_GIVEN, 3)
        assert part.dtype == np.float32
        noisy += not {tuple(row) for row in part.tolist()} <= {tuple(row) for row in points.tolist()}
        sizes.add(len(np.unique(part, axis=0)))
    assert sizes == set(SIZES)
    assert 4 < noisy < 20


def test_the_measures_of_completion_are_what_they_are_called() -> None:
    rng = np.random.default_rng(0)
    truth = [rng.normal(size=(200, 3)).astype(np.float32) for _ in range(3)]
    scans = [shape[shape[:, 0] > 0.5] for shape in truth]
    good = evaluate_completions(scans, [[shape, shape] for shape in truth], truth, truth)
    assert good.values == {"cd": 0, "f-score": 1, "hidden": 0, "astray": 0, "uhd": 0, "tmd": 0, "mmd": 0}
    assert good.protocol["completions of each"] == "2, the k of tmd (10 in the literature)"
    assert set(good.rows) == {SCAN, MIRROR, NEAREST}
    assert good.rows[SCAN]["uhd"] == good.rows[MIRROR]["uhd"] == 0 < good.rows[SCAN]["hidden"]
    assert good.rows[NEAREST]["cd"] == 0
    drawn = [[rng.normal(size=(100, 3)) for _ in range(3)] for _ in truth]
    each = evaluate_completions(scans, drawn, truth).values
    pairs = [sum(chamfer(a, b) for a in of for b in of if a is not b) / 2 for of in drawn]
    assert each["tmd"] == pytest.approx(np.mean(pairs))
    ways = np.linalg.norm(scans[0][:, None] - drawn[0][0][None], axis=-1)
    assert evaluate_completions(scans[:1], [drawn[0][:1]], truth[:1]).values["uhd"] == pytest.approx(
        ways.min(1).max()
    )
    assert each["mmd"] <= each["cd"]
    far = truth[0].max(0) + 3
    away = np.concatenate([scans[0], far[None]])
    way = np.linalg.norm(truth[0] - far, axis=-1).min() / np.linalg.norm(np.ptp(truth[0], axis=0))
    assert evaluate_completions(scans[:1], [[away]], truth[:1]).values["astray"] == pytest.approx(way)
    with pytest.raises(ValueError, match="one true shape per scan"):
        evaluate_completions(scans, drawn[:2], truth)


def test_more_scans_of_the_same_shapes_do_not_make_an_interval_narrower() -> None:
    rng = np.random.default_rng(0)
    truth = [rng.normal(size=(50, 3)).astype(np.float32) for _ in range(4)]
    drawn = [[rng.normal(size=(50, 3))] for _ in truth]
    once, often = (evaluate_completions(truth * n, drawn * n, truth * n) for n in (1, 3))
    assert often.intervals["cd"] == pytest.approx(once.intervals["cd"])
    assert often.protocol["scans"] == "12 of 4 shapes, over which the intervals are"


def test_completions_of_others_are_read_in_the_order_of_their_scans(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = np.stack([rng.normal(size=(200, 3)).astype(np.float32) for _ in range(3)])
    for i, shape in enumerate(truth):
        np.save(tmp_path / f"{i}.npy", shape[shape[:, 0] > 0])
    modality = PointCloud(Clouds, PointVoxelTokens, evaluation={"scans": str(tmp_path)})
    report = modality.evaluate(Samples(truth.repeat(2, axis=0)), Samples(truth))
    assert report.values["cd"] == 0
    assert report.values["uhd"] == 0
    with pytest.raises(ValueError, match=r"got 3 scans in .*, 3 shapes and 4 completions"):
        modality.evaluate(Samples(truth[[0, 0, 1, 2]]), Samples(truth))


def test_views_are_written_beside_the_shapes_and_are_none(tmp_path: Path) -> None:
    source, out = tmp_path / "source" / "ball", tmp_path / "out"
    source.mkdir(parents=True)
    for i in range(2):
        np.save(source / f"{i}.npy", sphere(300) * (1 + i))
    prepare(tmp_path / "source", out, split=(1, 0, 0), views=2, workers=1)
    shapes = {path.stem: np.load(path) for path in (out / "ball" / "train").glob("*.npy")}
    scans = sorted((out / "scans" / "ball" / "train").glob("*.npy"))
    assert len(scans) == 4
    for path in scans:
        whole = {tuple(row) for row in shapes[path.stem[:-2]].tolist()}
        part = np.load(path).tolist()
        assert {tuple(row) for row in part} < whole
        assert len(part) > 80
    clouds = Clouds(out, num_points=200)
    assert clouds.classes == ["ball"]
    assert clouds.count("train") == 2
    assert "scans" not in str(clouds.understood())
    prepare(tmp_path / "source", out, split=(1, 0, 0), views=1, workers=1)
    assert len(list((out / "scans").rglob("*.npy"))) == 2


def test_a_class_may_be_called_scans(tmp_path: Path) -> None:
    for name in ("scans", "ball"):
        (tmp_path / name / "train").mkdir(parents=True)
        np.save(tmp_path / name / "train" / "a.npy", sphere(50).astype(np.float32))
    assert Clouds(tmp_path, num_points=20).classes == ["ball", "scans"]


def test_points_in_one_place_take_no_longer_than_others() -> None:
    apart = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    scan = np.repeat(apart[:20], 1000, axis=0)  # a minute, if each is searched for among all
    report = evaluate_completions([scan], [[apart]], [apart])
    assert report.values == evaluate_completions([apart[:20]], [[apart]], [apart]).values
    assert tree_of(scan).n == 20
