"""Sets of clips of any length and size, presets, copies and memory, and the autoencoder's own quality."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ditmoe.modality import Samples
from modalities.shared import frechet
from modalities.video import evaluate_videos
from modalities.video.data import MovingDigits
from modalities.video.data.clip_folders import read_set
from modalities.video.io.writer import write_ffv1, write_mp4
from modalities.video.metrics import clip_sets, memorisation
from modalities.video.metrics import protocol as protocols
from modalities.video.metrics.reconstruction import psnr, ssim
from tests.modalities.video.videos import write_frames


def clips(split: str, num: int = 24, frames: int = 12) -> np.ndarray:
    return MovingDigits((32, 32), frames).reference(split).data[:num]


def measured(a, b, train=None, **options):
    return evaluate_videos(
        a, b, train, **{"features": "pixels", "frames": 9, "groups": 0, "progress": False, **options}
    )


def mixed(data: np.ndarray) -> list[np.ndarray]:
    """The same clips cut to other lengths and repeated to other sizes."""
    return [
        np.ascontiguousarray(clip[: 9 + i % 4].repeat(1 + i % 3, 1).repeat(1 + i % 2, 2))
        for i, clip in enumerate(data)
    ]


def test_clips_of_any_length_and_size_are_measured_on_either_side() -> None:
    real, fresh = clips("test"), clips("val")
    for a, b in ((mixed(fresh), real), (fresh, mixed(real)), (mixed(fresh), mixed(real))):
        report = measured(a, b, start="first")
        # Whole pixels that are repeated change no mean colour.
        assert report.values["fd/pixels"] == pytest.approx(
            measured(fresh, real, start="first").values["fd/pixels"], rel=1e-3
        )
    assert any("sizes differ" in note for note in measured(fresh, mixed(real)).notes)
    objects = np.empty(len(real), object)
    objects[:] = mixed(real)
    assert measured(Samples(objects), real).values.keys() == report.values.keys()


def test_what_is_too_short_is_left_out_counted_and_told() -> None:
    real = clips("test")
    report = measured([*real[:10], real[10][:8]], real)
    assert "10 clips of 32 x 32, lossy: not known, left out: 1 too short" in report.protocol["generated"]
    assert any("generated videos were left out: 1 too short" in note for note in report.notes)
    with pytest.raises(ValueError, match="at least 9 frames for frames=9 stride=1, got 5 to 12, enough in 1"):
        measured([real[0], real[1][:5]], real)


def test_equal_videos_give_equal_clips_wherever_they_stand_and_copies_are_told() -> None:
    real = clips("test", 20)
    looped = np.concatenate([real[:8], real[:8][::-1], real[:4]])
    report = measured(looped, clips("val", 20))
    assert any(
        "12 of 20 generated clips are exact copies of another generated clip" in n for n in report.notes
    )
    assert any("20 of 21 generated clips are exact copies of reference" in n for n in measured(
        [*real[::-1], clips("val", 1)[0]], real
    ).notes)  # fmt: skip
    assert not any("copies" in note for note in measured(clips("val"), clips("test")).notes)


def test_memorised_clips_are_told_from_new_ones() -> None:
    train, held, fresh = clips("train", 200), clips("test", 60), clips("val", 60)
    new = measured(fresh, held, train)
    assert new.rows["held-out"]["novelty"] == pytest.approx(0.9, abs=0.02)
    assert not any("memoris" in note for note in new.notes)
    noisy = np.clip(train[:60].astype(int) + np.random.default_rng(0).normal(0, 4, train[:60].shape), 0, 255)
    near = measured(noisy.astype(np.uint8), held, train)
    assert near.values["novelty"] < 0.1 < near.intervals["novelty"][1]
    assert near.values["nearest-train"] < 0.3 * new.values["nearest-train"]
    assert any("a sign of memorisation" in note for note in near.notes)
    copied = measured(train[:60], held, train, num=60).notes
    assert any("60 of 60 generated clips are copies of training clips: memorised" in note for note in copied)


def test_a_copy_is_found_whatever_its_start_and_direction() -> None:
    train = [memorisation.thumbnails(clip) for clip in clips("train", 30)]
    parts = [small[i % 4 : i % 4 + 8][:: 1 if i % 2 else -1] for i, small in enumerate(train)]
    found = memorisation.nearest([part.copy() for part in parts], train)
    assert found.max() < memorisation.COPY
    wide = np.concatenate(train)
    other = [memorisation.thumbnails(clip) for clip in clips("val", 3)]
    slow = [
        min(
            np.mean([np.sqrt(((f - t) ** 2).mean(1)).min() for f in clip]) for t in np.split(wide, len(train))
        )
        for clip in other
    ]
    assert memorisation.nearest(other, train) == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("name", protocols.PRESETS)
def test_a_preset_decides_all_that_it_names(name: str) -> None:
    chosen = protocols.make(name, "whole", 12, 2, "random", None)
    assert (chosen.frames, chosen.stride, chosen.name) == (12, 2, name)
    assert protocols.make(name, "cropped", 12, 2, "first", 7).nums == {"generated": 7, "reference": 7}
    numbers = np.arange(200, dtype=np.uint8)[None, :, None, None, None] * np.ones((9, 1, 4, 4, 3), np.uint8)
    numbers[..., 0] = np.arange(9)[:, None, None, None]
    for role in ("generated", "reference"):
        side = clip_sets.take(numbers, role, chosen, 0)
        starts = {int(clip.places[0]) for clip in side.clips}
        assert (starts == {0}) == (chosen.starts[role] == "first")
        assert all((np.diff(clip.places) == 2).all() for clip in side.clips)


def test_presets_take_the_first_or_drawn_videos_and_divide_as_they_say() -> None:
    data = np.ones((9, 12, 4, 4, 3), np.uint8) * np.arange(9, dtype=np.uint8)[:, None, None, None, None]
    first = protocols.make("styleganv", "whole", 9, 1, "random", 5)
    assert [clip.read()[0, 0, 0, 0] for clip in clip_sets.take(data, "reference", first, 0).clips] == [
        0,
        1,
        2,
        3,
        4,
    ]
    features = np.random.default_rng(0).normal(size=(10, 4))
    for ddof in (0, 1):
        assert np.allclose(frechet.Statistics.of(features, ddof).sigma, np.cov(features.T, ddof=ddof))
        assert np.allclose(frechet.Statistics.of(features[:3], ddof).root @ frechet.Statistics.of(
            features[:3], ddof).root.T, np.cov(features[:3].T, ddof=ddof))  # fmt: skip
    a, b = features[:5], features[5:] + 1
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    whole, divided = (frechet.jackknife(a, b, 0, ddof=ddof).value - shift for ddof in (0, 1))
    assert whole == pytest.approx(divided * 4 / 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"preset": "x", "features": "i3d"},
            "preset must be one of styleganv, cdfvd, common, or null, got x",
        ),
        ({"preset": "common"}, "preset common is a way to take FVD: it needs features=i3d, got pixels"),
        ({"protocol": "x"}, "protocol must be one of whole, cropped, got x"),
    ],
)
def test_wrong_presets_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measured(clips("val", 4), clips("test", 4), **options)


def test_sets_of_files_are_read_when_they_are_used(tmp_path: Path) -> None:
    data = mixed(clips("test", 4))
    write_ffv1(tmp_path / "a.mkv", data[0], 8)
    write_mp4(tmp_path / "a.mp4", data[0], 8)
    write_ffv1(tmp_path / "b.mkv", data[1], 8)
    write_frames(tmp_path / "c", data[2])
    write_mp4(tmp_path / "d.mp4", data[3], 8)
    (tmp_path / "e.mp4").write_bytes(b"no video")
    found = read_set(tmp_path)
    assert (len(found), found.lossy, found.left_out, list(found.names)) == (4, 1, 1, ["a", "b", "c", "d"])
    for video, truth in zip(found.data[:3], data, strict=False):
        assert video.shape == truth.shape
        assert np.array_equal(video[np.array([2, 5, 8])], truth[[2, 5, 8]])
    report = measured(found, data)
    assert "lossy: yes, 1, left out: 1 unreadable, SHA-256" in report.protocol["generated"]
    assert "lossy: not known, SHA-256" in report.protocol["reference"]
    np.savez(tmp_path / "s.npz", videos=np.stack([data[0][:9]] * 2))
    assert read_set(tmp_path / "s.npz").lossy is None


def test_the_content_of_a_set_is_told_by_its_hash() -> None:
    a, b = clips("test", 6), clips("val", 6)
    one, two = (measured(of, b).protocol["generated"] for of in (a, a.copy()))
    assert one == two
    a[3, 5, 2, 2, 1] ^= 1
    assert measured(a, b, start="first").protocol["generated"] != one


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Window by window, as the paper has it."""
    place = np.arange(11) - 5
    w = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    w /= w.sum()
    found = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            for c in range(3):
                a, b = x[i : i + 11, j : j + 11, c].astype(float), y[i : i + 11, j : j + 11, c].astype(float)
                m, n = (w * a).sum(), (w * b).sum()
                v, u, s = (w * (a - m) ** 2).sum(), (w * (b - n) ** 2).sum(), (w * (a - m) * (b - n)).sum()
                found.append(
                    (2 * m * n + 6.5025) * (2 * s + 58.5225) / ((m * m + n * n + 6.5025) * (v + u + 58.5225))
                )
    return float(np.mean(found))


def test_quality_is_as_published_and_as_its_definition_says() -> None:
    """common_metrics_on_video_quality gives 0 dB and 9.999e-5 for zeros against ones."""
    black, white = (np.full((3, 16, 16, 3), value, np.uint8) for value in (0, 255))
    assert psnr(black, white) == pytest.approx(0)
    assert ssim(black, white) == pytest.approx(9.999e-5, rel=1e-4)
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (2, 14, 17, 3), dtype=np.uint8)
    other = np.clip(clip.astype(int) + rng.integers(-40, 40, clip.shape), 0, 255).astype(np.uint8)
    assert (psnr(clip, clip), ssim(clip, clip)) == (100, 1)
    assert ssim(clip, other) == pytest.approx(
        np.mean([reference_ssim(*pair) for pair in zip(clip, other, strict=True)])
    )
    errors = ((clip.astype(float) - other) ** 2).mean((1, 2, 3))
    assert psnr(clip, other) == pytest.approx(np.mean(10 * np.log10(255**2 / errors)))
    with pytest.raises(ValueError, match="SSIM needs frames of at least 11 x 11, got 8 x 16"):
        ssim(black[:, :8], white[:, :8])
    with pytest.raises(ValueError, match="must be of one shape"):
        psnr(black, white[:2])


def test_the_autoencoder_is_measured_in_the_model_s_place() -> None:
    real = clips("test", 30)

    def blurred(clip: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(clip).movedim(-1, 1).float()
        return torch.nn.functional.avg_pool2d(x, 3, 1, 1).round().byte().movedim(1, -1).numpy()

    report = measured(clips("val", 30), real, reconstruct=blurred)
    row = report.rows["autoencoder"]
    assert row.keys() >= {"fd/pixels", "mmd/pixels", "flicker", "motion", "psnr", "ssim"}
    assert 5 < row["psnr"] < 40
    assert 0 < row["ssim"] < 1
    assert f"{row['psnr']:.2f} dB PSNR" in report.protocol["autoencoder"]
    exact = measured(clips("val", 30), real, reconstruct=lambda clip: clip).rows["autoencoder"]
    assert (exact["psnr"], exact["ssim"]) == (100, 1)
    assert exact["fd/pixels"] == pytest.approx(0, abs=1e-6)

    def picky(clip: np.ndarray) -> np.ndarray:
        raise ValueError("frames must be 1 + a multiple of 4")

    refused = measured(clips("val", 30), real, reconstruct=picky)
    assert "autoencoder" not in refused.rows
    assert any(
        "no row of the autoencoder: frames must be 1 + a multiple of 4" in note for note in refused.notes
    )


def test_an_npz_of_something_else_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(an npz of arr_0, not of videos \(N, T, H, W, 3\)\)$"):
        read_set(tmp_path / "a.npz")
