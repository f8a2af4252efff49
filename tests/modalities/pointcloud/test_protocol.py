"""How sets are compared: options, units, mini-batches, warnings, and the command that measures files."""

import importlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ditmoe.inference import evaluate_files, table
from modalities.pointcloud import Clouds, evaluate_sets
from modalities.pointcloud.data.formats import read_set
from modalities.pointcloud.metrics import confidence
from modalities.pointcloud.metrics.distance import Metric
from modalities.pointcloud.metrics.nearest import nearest
from modalities.pointcloud.metrics.normalise import normalised
from modalities.pointcloud.metrics.protocol import draw_points
from tests.modalities.pointcloud.sets import clouds, shapes


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are not what these tests are about, and take most of the time."""
    monkeypatch.setattr(confidence, "half_sampling", partial(confidence.half_sampling, draws=10))


def measured(generated, reference, train=None, **options):
    return evaluate_sets(generated, reference, train, progress=False, **options)


# --- mini-batches


def test_a_collapsed_generator_looks_perfect_per_batch_and_terrible_as_a_set():
    reference, fresh = shapes(0, 64, 32), shapes(1, 64, 32)
    few = fresh[np.arange(64) % 12] + np.random.default_rng(2).normal(scale=0.002, size=fresh.shape)
    honest, collapsed = (measured(s, reference, emd=None, protocol="per_batch").values for s in (fresh, few))
    name = "1-nna/cd/per-batch-8"
    assert abs(honest[name] - 0.5) < 0.15
    assert abs(collapsed[name] - 0.5) < 0.15
    assert collapsed["cov/cd/per-batch-8"] > 0.5
    whole = measured(few, reference, emd=None).values
    assert whole["1-nna/cd"] > 0.9
    assert whole["cov/cd"] < 0.25


def test_per_batch_is_the_mean_over_consecutive_batches():
    x, y = shapes(0, 11), shapes(1, 14)
    for emd in ("exact_l2", "approx_sq"):
        kind = "emd" if emd == "exact_l2" else f"emd-{emd}"
        report = measured(x, y, protocol="per_batch", batch=5, emd=emd)
        parts = [measured(x[i : i + 5], y[i : i + 5], emd=emd) for i in (0, 5)]
        for name in ("1-nna/cd", "cov/cd", "mmd/cd", f"1-nna/{kind}", f"cov/{kind}", f"mmd/{kind}"):
            assert name not in report.values
            expected = np.mean([part.values[name] for part in parts])
            assert report.values[f"{name}/per-batch-5"] == pytest.approx(expected, rel=1e-9)
        assert "must not be compared" in next(note for note in report.notes if "per-batch" in note)
        left = "(1 generated and 4 reference shapes at the end are left out)"
        assert any(left in note for note in report.notes)
        assert report.protocol["protocol"].startswith("per_batch")
    with pytest.raises(ValueError, match="protocol=per_batch needs 12 shapes in each set, got 11"):
        measured(x, y, protocol="per_batch", batch=12)


def test_the_oracle_has_batches_of_its_own():
    x, y, train = shapes(0, 24), shapes(1, 24), shapes(2, 9)
    alone = measured(x, y, protocol="per_batch", emd=None)
    both = measured(x, y, train, protocol="per_batch", emd=None)
    name = "1-nna/cd/per-batch-8"
    assert both.values[name] == alone.values[name]
    assert both.rows["oracle"][name] == measured(train, y[:9], protocol="per_batch", emd=None).values[name]
    assert any("oracle's row is the mean of 1 of 3 batches: it has 9 shapes" in note for note in both.notes)
    few = measured(x, y, train[:5], protocol="per_batch", emd=None)
    assert few.values[name] == alone.values[name]
    assert name not in few.rows["oracle"]
    assert any("oracle's row has no means: it has 5 shapes" in note for note in few.notes)


def test_batches_that_agree_by_chance_claim_no_certainty():
    low, high = confidence.of_batches(np.array([0.5, 0.5]), 16)
    assert low < 0.35
    assert high > 0.65
    low, high = confidence.of_batches(np.array([1.0, 3.0]), 0)
    assert (low, high) == (0.0, pytest.approx(2 + 12.706, abs=1e-2))  # Student's t of one degree of freedom


# --- variants


@pytest.mark.parametrize("emd", ["exact_sq", "approx_l2", "approx_sq"])
def test_a_variant_is_named_wherever_its_numbers_stand(emd):
    report = measured(shapes(0, 6), shapes(1, 6), shapes(2, 9), emd=emd)
    assert {name for name in report.values if "emd" in name} == {
        f"{metric}/emd-{emd}" for metric in ("1-nna", "cov", "mmd")
    } | {f"1-nna/emd-{emd}/{side}" for side in ("real", "generated")}
    assert set(report.rows["oracle"]) >= {name for name in report.values if "emd" in name}
    assert report.protocol["emd"].startswith(f"{emd}, 64 points")
    assert ("real shape first" in report.protocol["emd"]) == emd.startswith("approx")
    assert any("no distance" in note for note in report.notes) == emd.startswith("approx")
    assert f"1-nna/emd-{emd}" in table(report)


# --- units


def test_normalisations():
    x = {"reference": list(shapes(0, 5) * 3 + 7), "generated": list(shapes(1, 4))}
    same, said = normalised(x, "none")
    np.testing.assert_array_equal(same["reference"], x["reference"])
    assert said.startswith("none")
    boxes, _ = normalised(x, "per_shape_box")
    for cloud in [*boxes["reference"], *boxes["generated"]]:
        assert np.ptp(cloud, axis=0).max() == pytest.approx(1)
        np.testing.assert_allclose(cloud.min(0) + cloud.max(0), 0, atol=1e-12)
    spheres, _ = normalised(x, "unit_sphere")
    for cloud in [*spheres["reference"], *spheres["generated"]]:
        assert np.linalg.norm(cloud, axis=1).max() == pytest.approx(1)
        np.testing.assert_allclose(cloud.mean(0), 0, atol=1e-12)
    common, said = normalised(x, "global")
    assert "reference set" in said
    np.testing.assert_allclose(np.mean(common["reference"], axis=(0, 1)), 0, atol=1e-12)
    assert np.mean(np.square(common["reference"])) == pytest.approx(1)
    back = np.asarray(common["generated"])
    shift = np.mean(x["reference"], axis=(0, 1))
    scale = np.std(x["reference"] - shift)
    np.testing.assert_allclose(back, (np.asarray(x["generated"]) - shift) / scale, rtol=1e-10)
    _, said = normalised(x | {"train": x["generated"]}, "global")
    assert "train set" in said


def test_a_normalisation_takes_size_and_place_out_of_the_numbers():
    x, y = shapes(0, 6), shapes(1, 6)
    moved = 3 * x + 5
    for mode in ("per_shape_box", "unit_sphere"):
        ours, theirs = (measured(s, y, normalisation=mode) for s in (x, moved))
        assert ours.values == pytest.approx(theirs.values, rel=1e-9)
        assert ours.protocol["normalisation"].startswith(mode)
    assert measured(moved, y).values["1-nna/cd"] == 1
    both = [measured(s, r, normalisation="global").values for s, r in ((x, y), (3 * x + 5, 3 * y + 5))]
    assert both[0] == pytest.approx(both[1], rel=1e-9)
    with pytest.raises(ValueError, match=r"normalisation must be one of none, global, .*, got 'box'"):
        measured(x, y, normalisation="box")
    x[3] = 0.1
    for mode in ("per_shape_box", "unit_sphere"):
        with pytest.raises(ValueError, match=f"shape 3 of the generated set .* normalisation={mode}"):
            measured(x, y, normalisation=mode)


def test_nothing_changes_far_from_the_origin():
    train, reference, generated = shapes(0, 9), shapes(1, 7), shapes(2, 6)
    for emd in ("exact_l2", "exact_sq", "approx_sq"):
        here = measured(generated, reference, train, emd=emd).values
        there = measured(generated + 100, reference + 100, train + 100, emd=emd).values
        assert {n: v for n, v in there.items() if n != "jsd"} == pytest.approx(
            {n: v for n, v in here.items() if n != "jsd"}, rel=1e-5
        )


# --- bad input and warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"emd": "l2"}, "emd must be one of exact_l2, exact_sq, approx_l2, approx_sq, got 'l2'"),
        ({"protocol": "batch"}, "protocol must be one of set, per_batch, got 'batch'"),
        ({"protocol": "per_batch", "batch": 1}, "batch must be at least 2, got 1"),
        ({"emd_points": 0}, "emd_points must be at least 1, got 0"),
    ],
)
def test_a_wrong_option_ends_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        measured(clouds(0, 4, 8), clouds(1, 4, 8), **options)


def test_a_set_given_as_its_own_reference_is_told_first():
    x = shapes(0, 6)
    for copy in (x, x.astype(np.float32), [cloud[::-1] for cloud in x]):
        report = measured(copy, x)
        assert "a set measured against itself tells nothing" in report.notes[0]
    assert not any("against itself" in note for note in measured(shapes(1, 6), x).notes)


def test_surfaces_that_are_not_those_of_real_shapes_are_told():
    real = Clouds().reference("test", 512).data[:8]
    rng = np.random.default_rng(0)
    sets = {"noisy": real + rng.normal(scale=0.02, size=real.shape), "strewn": real.copy(), "real": real}
    sets["strewn"][:, :10] = rng.uniform(-0.5, 0.5, (8, 10, 3))
    told = {name: measured(of, real, emd=None, points=512).notes for name, of in sets.items()}
    assert any(note.startswith("roughness") and "(noise)" in note for note in told["noisy"])
    assert any(note.startswith("uniformity") and "(outliers" in note for note in told["strewn"])
    assert not any("surfaces" in note for note in told["real"])


def test_mixed_point_counts_are_drawn_to_the_smallest_and_told():
    x, y = shapes(0, 6, 300), shapes(1, 5, 400)
    mixed = [cloud[: 200 + 10 * i] for i, cloud in enumerate(x)]
    report = measured(mixed, y, points=256)
    assert report.protocol["points"] == 200
    assert report.protocol["resampling"] == "drawn without replacement from 200 to 400"
    assert any("200 to 400 points, fewer than the 256" in note for note in report.notes)
    assert not any("fewer than" in note for note in measured(x, y, points=256).notes)


def test_emd_on_fewer_points_is_told(monkeypatch):
    x, y = shapes(0, 3, 600), shapes(1, 3, 600)
    report = measured(x, y, emd="approx_l2", points=600)
    if not torch.cuda.is_available():
        assert report.protocol["emd"].startswith("approx_l2, 512 points")
        assert any("512 of the 600 points" in note for note in report.notes)


# --- files of others


def test_files_of_others(tmp_path: Path, capsys):
    points = shapes(0, 3, 20).astype(np.float32)
    np.savez(tmp_path / "any.npz", smp=points)
    torch.save({"points": torch.from_numpy(points), "epoch": 3}, tmp_path / "named.pt")
    torch.save({"x": torch.from_numpy(points)}, tmp_path / "one.pt")
    torch.save([torch.from_numpy(cloud) for cloud in points], tmp_path / "list.pt")
    torch.save(
        {"ref": torch.from_numpy(points), "mean": torch.zeros(3), "std": torch.ones(3)}, tmp_path / "ref.pt"
    )
    for name in ("any.npz", "named.pt", "one.pt", "list.pt", "ref.pt"):
        np.testing.assert_array_equal(read_set(tmp_path / name).data, points)
    assert capsys.readouterr().err == f"{tmp_path / 'ref.pt'}: ref is read as it is, without mean, std\n"
    torch.save([torch.from_numpy(points[0]), torch.from_numpy(points[1][:15])], tmp_path / "mixed.pt")
    assert read_set(tmp_path / "mixed.pt").data.shape == (2, 15, 3)
    assert "15 to 20 points, 15 of each were drawn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((4, 3, 20), np.float32), r"\(4, 3, 20\) \(its last two axes must be swapped\)"),
        (
            np.zeros((4, 0, 3), np.float32),
            r"must be numbers of shape \(S, N, 3\), got float32 of \(4, 0, 3\)",
        ),
        (np.full((4, 9, 3), np.nan, np.float32), "finite, got 36 of 36 with NaN"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}, "must hold just one of points, .*, got a, b"),
        (
            {"ref": torch.zeros(2, 3), "gen": torch.zeros(2, 3)},
            "must hold just one of points, .*, got ref, gen",
        ),
        ({}, "must hold just one of points, .*, got none"),
        ([torch.zeros(4, 3), torch.zeros(0, 3)], r"got float64 of \(0, 3\)"),
        (["a"], "must hold one dense tensor"),
    ],
)
def test_a_file_that_is_no_set_ends_in_one_sentence(tmp_path: Path, content, message):
    path = tmp_path / ("a.npy" if isinstance(content, np.ndarray) else "a.pt")
    np.save(path, content) if path.suffix == ".npy" else torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        read_set(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_measures_two_files(tmp_path: Path, capsys):
    for name, seed, num in (("a", 0, 9), ("b", 1, 8), ("t", 2, 12)):
        np.savez(tmp_path / f"{name}.npz", points=shapes(seed, num, 64), labels=np.arange(num) % 2)
    unused = {"_target_": "modalities.pointcloud.Clouds", "_partial_": True}
    modality = {
        "_target_": "modalities.pointcloud.PointCloud", "data": unused, "tokens": unused,
        "evaluation": {"emd": "exact_sq", "normalisation": "unit_sphere", "points": 64},
    }  # fmt: skip
    files = [str(tmp_path / f"{name}.npz") for name in "abt"]
    report = evaluate_files(modality, *files, out=tmp_path)
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["1-nna/emd-exact_sq"] == report.values["1-nna/emd-exact_sq"]
    assert stored["oracle"]["cov/emd-exact_sq"] == report.rows["oracle"]["cov/emd-exact_sq"]
    printed = capsys.readouterr().out
    for word in ("95 % interval", "oracle", "held-out", "exact_sq, 64 points", "unit_sphere"):
        assert word in printed
    alone = tmp_path / "alone.npy"
    np.save(alone, shapes(0, 1, 64))
    with pytest.raises(ValueError, match="generated set must have at least 2 clouds, got 1"):
        evaluate_files(modality, str(alone), files[1], out=tmp_path)


def test_files_that_could_not_be_read_are_told_in_the_report(tmp_path: Path):
    for i, cloud in enumerate(shapes(0, 8, 32)):
        np.save(tmp_path / f"{i}.npy", cloud * np.nan if i < 3 else cloud)
    report = measured(read_set(tmp_path), shapes(1, 8, 32), emd=None)
    assert report.protocol["generated"] == "5 shapes"
    assert report.protocol["generated left out"] == "3, unreadable or of far too few points"
    assert any("3 of the generated set could not be read" in note for note in report.notes)


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
