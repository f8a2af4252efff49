"""A clip is a function of seed, epoch and number; unreadable videos are counted and replaced."""

import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modalities.video import Clips
from modalities.video.data.catalogue import find_videos, list_all
from modalities.video.data.clip_reader import fit
from modalities.video.io.container import Unreadable
from modalities.video.io.writer import write_ffv1
from tests.modalities.video.videos import number_of, picture, write_frames

SIZE = (48, 64)


def write(path: Path, num: int = 20, first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_ffv1(path, np.stack([picture(first + i) for i in range(num)]), 25)
    return path


def clips(root: Path, **options: object) -> Clips:
    return Clips(root, **{"size": SIZE, "frames": 5, "stride": 2, "split": (1, 0, 0), **options})


def numbers(batch: np.ndarray) -> list[list[int]]:
    return [[number_of(frame) for frame in clip] for clip in batch]


def test_clips_have_their_stride_and_lie_in_their_video(ucf: Path) -> None:
    data = clips(ucf)
    assert data.classes == ["Archery", "Biking", "Diving"]
    batch, labels = data.batch(12, seed=0, step=0)
    assert (batch.shape, batch.dtype, labels.dtype) == ((12, 5, 48, 64, 3), np.uint8, np.int64)
    assert Counter(labels.tolist()) == {0: 4, 1: 4, 2: 4}, "each video once in an epoch"
    for row, label in zip(numbers(batch), labels, strict=True):
        assert np.diff(row).tolist() == [2] * 4
        assert row[0] // 20 == row[-1] // 20
        assert row[0] // 80 == label


def test_a_batch_is_a_function_of_its_arguments_alone(ucf: Path) -> None:
    data = clips(ucf)
    stream = np.concatenate([data.batch(5, 3, step)[0] for step in range(6)])
    again = clips(ucf, workers=2)
    np.testing.assert_array_equal(again.batch(5, 3, 4)[0], stream[20:25])  # resumed at step 4
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).batch(5, 3, 1)[0], stream[5:10])
    ranks = [again.batch(5, 3, 1, rank, 2)[0] for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate(ranks), stream[10:20])
    assert not np.array_equal(data.batch(5, 4, 0)[0], stream[:5])
    videos = np.array(numbers(stream[:24]))[:, 0].reshape(2, 12) // 20
    assert not np.array_equal(videos[0], videos[1]), "another order in another epoch"


def test_every_start_is_drawn(tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", num=11)
    batch, _ = clips(tmp_path).batch(60, 0, 0)
    assert {row[0] for row in numbers(batch)} == {0, 1, 2}, "11 frames have 3 places for a clip of 9"


def test_without_class_folders_there_is_one_class(tmp_path: Path) -> None:
    write(tmp_path / "a.mkv")
    write_frames(tmp_path / "b", np.stack([picture(i) for i in range(40, 60)]))
    np.save(tmp_path / "c.npy", np.stack([picture(i) for i in range(80, 100)]))
    (tmp_path / "notes.txt").write_text("no video")
    data = clips(tmp_path)
    assert data.classes == ["video"]
    assert [video.name for video in data.split("train")] == ["a.mkv", "b", "c.npy"]
    assert sorted(row[0] // 40 for row in numbers(data.batch(3, 0, 0)[0])) == [0, 1, 2]


def test_folders_of_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    for i, name in enumerate(
        ("train/a/x.mkv", "train/b/y.mkv", "val/a/z.mkv", "test/b/w.mkv", "other/c/v.mkv")
    ):
        write(tmp_path / name, first=20 * i)
    data = clips(tmp_path)
    assert data.classes == ["a", "b"]
    assert [[video.name for video in data.split(split)] for split in ("train", "val", "test")] == [
        ["train/a/x.mkv", "train/b/y.mkv"], ["val/a/z.mkv"], ["test/b/w.mkv"]
    ]  # fmt: skip
    assert data.labels("test").tolist() == [1]


def test_splits_by_hash_outlast_other_files_and_keep_groups_together(tmp_path: Path) -> None:
    for c in "ab":
        for g in range(60):
            for k in range(2):
                (tmp_path / c).mkdir(exist_ok=True)
                (tmp_path / c / f"v_{c}_g{g:02d}_c{k:02d}.avi").touch()
    before = {video.name: video.split for video in list_all(tmp_path).clips}
    shares = Counter(before.values())
    assert 0.65 < shares["train"] / len(before) < 0.93
    assert min(shares["val"], shares["test"]) > 4
    assert all(before[name] == before[name.replace("_c00", "_c01")] for name in before)
    shutil.rmtree(tmp_path / "a")
    assert all(before[video.name] == video.split for video in list_all(tmp_path).clips)


def test_links_are_followed_once_and_hidden_and_thumbnails_left_out(tmp_path: Path) -> None:
    for name in ("real/a.avi", "real/.b.avi", ".hidden/c.avi", "real/thumb.png"):
        (tmp_path / "store" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "store" / name).touch()
    root = tmp_path / "set"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "store" / "real")
    (tmp_path / "store" / "real" / "loop").symlink_to(root)
    assert find_videos(root) == [root / "linked" / "a.avi"]


# ------------------------------------------------------------------------------------------ unreadable ones


def test_unreadable_videos_are_replaced_by_their_class_alike_whatever_came_before(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = clips(damaged)
    batches = [data.batch(4, 0, step) for step in range(6)]
    told = [line for line in capsys.readouterr().err.splitlines() if "Archery" in line]
    for step, (batch, _) in enumerate(batches):
        np.testing.assert_array_equal(clips(damaged).batch(4, 0, step)[0], batch)
    labels = np.concatenate([labels for _, labels in batches])
    assert Counter(labels.tolist()) == {0: 8, 1: 8, 2: 8}
    rows = np.array(numbers(np.concatenate([batch for batch, _ in batches])))
    assert (rows[labels == 0] // 20 == 0).all(), "the one readable video of the class"
    assert dict(data.reader.reasons) == {"not a video": 1, "truncated": 1, "too short": 1}
    assert len(told) == 3, "each video once"
    assert all(line.startswith("skipped unreadable video") for line in told)


def test_at_most_twenty_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(30):
        (tmp_path / f"{number:02d}.mp4").write_text("no video")
    write(tmp_path / "good.mkv")
    data = clips(tmp_path)
    data.batch(31, 0, 0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[-1].endswith("(further ones are only counted)")
    assert data.reader.reasons["not a video"] == 30


def test_policies(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Unreadable, match="must be"):
        clips(damaged, policy="error").batch(12, 0, 0)
    data = clips(damaged, policy="salvage")
    batch, labels = data.batch(12, 0, 0)
    sources = {row[0] // 20 for row, label in zip(numbers(batch), labels, strict=True) if label == 0}
    assert 2 in sources, "what is left of the truncated video is used"
    assert dict(data.reader.reasons) == {"not a video": 1, "too short": 1, "truncated, salvaged": 1}
    assert "salvaged part of video 1" in capsys.readouterr().err


def test_a_class_without_a_readable_video_is_an_error_not_a_search(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.mp4").write_text("no video")
    with pytest.raises(ValueError, match="must hold readable videos in train/video, got none: 4 not a video"):
        clips(tmp_path).batch(1, 0, 0)


# ------------------------------------------------------------------------------------------------ reference


def test_a_reference_has_a_clip_of_each_video_from_its_start(ucf: Path) -> None:
    samples = clips(ucf).reference("train")
    assert samples.data.shape == (12, 5, 48, 64, 3)
    assert [row[0] for row in numbers(samples.data)] == list(range(0, 240, 20))
    assert samples.labels is not None
    assert samples.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert samples.names is not None
    assert samples.names[0] == "Archery/v_Archery_g01_c01.avi"


def test_a_seeded_reference_draws_starts_and_videos(ucf: Path) -> None:
    data = clips(ucf)
    whole, part = data.reference("train", seed=1), data.reference("train", count=5, seed=1)
    assert len(part) == 5
    assert [row[0] % 20 for row in numbers(whole.data)] != [0] * 12
    at = [list(whole.names or ()).index(name) for name in part.names or ()]
    np.testing.assert_array_equal(part.data, whole.data[at])
    assert list(data.reference("train", count=5, seed=2).names or ()) != list(part.names or ())
    assert len(data.reference("train", count=99)) == 12, "a smaller set is not looped"


def test_a_reference_leaves_unreadable_videos_out(damaged: Path) -> None:
    data = clips(damaged)
    assert len(data.reference("train")) == 9
    assert sum(data.reader.reasons.values()) == 3


# ------------------------------------------------------------------------------------------------------ size


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(2, 40), st.integers(2, 40)), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_any_size_is_met_and_one_colour_stays(source: tuple[int, int], target: tuple[int, int]) -> None:
    frames = np.full((2, *source, 3), [10, 120, 250], np.uint8)
    fitted = fit(frames, target)
    assert fitted.shape == (2, *target, 3)
    assert (fitted == frames[0, 0, 0]).all()


def test_resizing_averages_and_takes_the_middle() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
    wide = np.pad(coarse, ((0, 0), (0, 0), (3, 3), (0, 0)), constant_values=255)
    np.testing.assert_array_equal(fit(wide, (8, 8)), coarse)
    noise = rng.integers(0, 256, (1, 64, 96, 3), np.uint8)
    assert fit(noise, (8, 8)).std() < 16, "74 in the source, 37 without antialiasing"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (0, 4)}, "size must be"),
        ({"frames": 0}, "frames and stride"),
        ({"policy": "ignore"}, "policy must be"),
        ({"backend": "opencv"}, "pyav or decord"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        clips(tmp_path, **options)


def test_places_that_cannot_serve_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="root must be given"):
        Clips()
    with pytest.raises(ValueError, match="not there"):
        _ = clips(tmp_path / "none").classes
    with pytest.raises(ValueError, match="must hold videos"):
        _ = clips(tmp_path).classes
    write(tmp_path / "a.mkv")
    with pytest.raises(ValueError, match="got train 1, val 0, test 0"):
        clips(tmp_path).reference("test")
    with pytest.raises(ValueError, match="sum to 1"):
        clips(tmp_path, split=(1, 1, 0)).split("train")
    with pytest.raises(ValueError, match="a split must be one of"):
        clips(tmp_path).split("dev")


def test_ucf_101_beside_its_lists_is_told_to_be_one_class(tmp_path: Path) -> None:
    for name in ("Archery/v_Archery_g01_c01", "Archery/v_Archery_g02_c01", "Bowling/v_Bowling_g01_c01",
                 "Bowling/v_Bowling_g02_c01"):  # fmt: skip
        file = tmp_path / "UCF-101" / f"{name}.avi"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    (tmp_path / "ucfTrainTestlist").mkdir()
    (tmp_path / "ucfTrainTestlist" / "classInd.txt").write_text("1 Archery\n2 Bowling\n")
    listing = list_all(tmp_path)
    told = f"all is of the class UCF-101; for its own folders as classes give root={tmp_path / 'UCF-101'}"
    assert (listing.classes, listing.notes) == (["UCF-101"], [told])
    again = list_all(tmp_path / "UCF-101")
    assert (again.classes, again.notes) == (["Archery", "Bowling"], [])
