"""How sets are compared: options, units, mini-batches, warnings, and the command that measures files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ditmoe.inference import evaluate_files, table
from modalities.pointcloud import Clouds, evaluate_sets
from modalities.pointcloud.data.formats import read_set
from modalities.pointcloud.metrics import confidence
from modalities.pointcloud.metrics.normalise import normalised
from tests.modalities.pointcloud.sets import clouds, shapes

pytestmark = pytest.mark.usefixtures("few_draws")


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


# --- sets in files


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
