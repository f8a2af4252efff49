"""Evaluations that take long: told before, kept and taken up again, and searched where the sets are large."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from modalities.pointcloud import evaluate_sets
from modalities.pointcloud.metrics.distance import Metric
from modalities.pointcloud.metrics.nearest import nearest
from modalities.pointcloud.metrics.protocol import draw_points
from tests.modalities.pointcloud.sets import shapes
from tests.modalities.pointcloud.test_protocol import measured

pytestmark = pytest.mark.usefixtures("few_draws")


@pytest.mark.parametrize("emd", ["approx_sq", "exact_l2"])
def test_an_evaluation_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, emd: str
):
    x, y, train = shapes(0, 20, 16), shapes(1, 18, 16), shapes(2, 30, 16)
    expected = measured(x, y, train, emd=emd)
    matrices = importlib.import_module("modalities.pointcloud.metrics.distance_matrices")
    pairwise, asked = matrices.pairwise, []
    monkeypatch.setattr(matrices, "KEEP", 0.0)
    monkeypatch.setattr(matrices, "BLOCK", 40)

    def stopping(a, b, *rest):
        asked.append((len(a), len(b)))
        if len(asked) == stop:
            raise KeyboardInterrupt
        return pairwise(a, b, *rest)

    def counting(a, b, *rest, **named):
        return pairwise(a, b, *rest, **named) if named else stopping(a, b, *rest)  # named: to tell the time

    monkeypatch.setattr(matrices, "pairwise", counting)
    stop = 30
    with pytest.raises(KeyboardInterrupt):
        measured(x, y, train, emd=emd, cache=tmp_path)
    assert capsys.readouterr().err.strip() == f"the same command goes on from what is kept in {tmp_path}"
    assert len(list(tmp_path.iterdir())) == 29
    stop, before, asked = 0, 29, []
    assert measured(x, y, train, emd=emd, cache=tmp_path) == expected
    assert len(list(tmp_path.iterdir())) == before + len(asked)
    asked = []
    assert measured(x, y, train, emd=emd, cache=tmp_path) == expected
    assert not asked


def test_blocks_make_up_the_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    matrices = importlib.import_module("modalities.pointcloud.metrics.distance_matrices")
    monkeypatch.setattr(matrices, "KEEP", 0.0)
    monkeypatch.setattr(matrices, "BLOCK", 1)
    a, b = list(shapes(0, 9, 16)), list(shapes(1, 40, 16))
    kinds: tuple[Metric, ...] = ("cd", "emd", "emd-approx_l2")
    jobs = {
        (one, two, kind): (x, y, kind)
        for kind in kinds
        for one, x, two, y in (("a", a, "a", a), ("a", a, "b", b))
    }
    for _ in range(2):
        for (_, _, kind), (x, y, _), found in zip(
            jobs, jobs.values(), matrices.measure([jobs], tmp_path, 2, False)[0].values(), strict=True
        ):
            np.testing.assert_array_equal(found, matrices.pairwise(x, y, kind))


def test_what_takes_long_is_told_before(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    matrices = importlib.import_module("modalities.pointcloud.metrics.distance_matrices")
    a = list(shapes(0, 5, 16))
    matrices.measure([{("a", "a", "cd"): (a, a, "cd")}], None, 1, False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(matrices, "_seconds_a_pair", lambda *args: 60.0)
    matrices.measure([{("a", "a", "cd"): (a, a, "cd")}], None, 1, False)
    assert capsys.readouterr().err == "distances take about 10 minutes, less what is kept of them\n"


@pytest.mark.parametrize("emd", ["approx_l2", "exact_l2"])
def test_an_evaluation_is_not_lost_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, emd: str
):
    x, y, train = shapes(0, 12, 16), shapes(1, 12, 16), shapes(2, 15, 16)
    monkeypatch.setattr("modalities.pointcloud.metrics.evaluation.SEARCH", 10)
    expected = measured(x, y, train, emd=emd).values
    monkeypatch.setattr("modalities.pointcloud.metrics.distance_matrices.KEEP", 0.0)
    (tmp_path / "file").write_text("in the way")
    assert measured(x, y, train, emd=emd, cache=tmp_path / "file").values == expected
    assert capsys.readouterr().err.count("\n") == 1


def test_intervals_of_a_search_depend_on_the_sets_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    x, y = shapes(0, 30, 64), shapes(1, 26, 64)
    whole = measured(x, y)
    monkeypatch.setattr("modalities.pointcloud.metrics.evaluation.SEARCH", 10)
    intervals = measured(x, y, workers=1, cache=tmp_path / "first").intervals
    more = nearest(
        draw_points(list(y), 64, 0), draw_points(list(x), 64, 0), neighbours=9, folder=tmp_path / "second"
    )
    again = measured(x, y, workers=2, cache=tmp_path / "second")
    assert again.intervals == intervals
    assert again.protocol["emd search"] == f"generated {more.described()}"  # all from the cache
    for name, (low, high) in intervals.items():
        assert low <= whole.values[name] <= high
        if "emd" not in name:
            assert (low, high) == whole.intervals[name]


def test_large_sets_are_searched_and_give_what_all_pairs_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    make = lambda num, spread: [rng.normal(size=(64, 3)) * rng.uniform(0.2, spread, 3) for _ in range(num)]  # noqa: E731
    sets = make(14, 0.6), make(12, 0.5), make(30, 0.6)
    options = {"points": 64, "emd_points": 64, "progress": False, "cache": tmp_path}
    # what takes long is kept, and on a busy machine anything may
    monkeypatch.setattr("modalities.pointcloud.metrics.distance_matrices.KEEP", float("inf"))
    whole = evaluate_sets(*sets, **options)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("modalities.pointcloud.metrics.evaluation.SEARCH", 10)
    searched = evaluate_sets(*sets, **options)
    assert searched.values == pytest.approx(whole.values, rel=1e-6)
    assert searched.rows["oracle"] == pytest.approx(whole.rows["oracle"], rel=1e-6)
    assert "solved exactly" in searched.protocol["emd search"]
    assert list(tmp_path.iterdir())
    again = evaluate_sets(*sets, **options)
    assert again.values == searched.values
    for name, (low, high) in searched.intervals.items():
        assert low <= searched.values[name] <= high, name
