"""Clips as people have them: what a player shows, at one tempo, in their folders; and damage that FFmpeg conceals."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modalities.image.data.pictures import open_picture
from modalities.video import Clips
from modalities.video.data.catalogue import find_videos, list_all
from modalities.video.data.check import check, examine
from modalities.video.io.frame_folders import read_pictures
from modalities.video.io.index import nearest_frames, num_moments
from modalities.video.io.reader import read_clip, read_index
from modalities.video.io.writer import write_ffv1
from tests.modalities.video.videos import write_frames

CASES = Path(__file__).parents[2] / "cases" / "frames"


def clip(path: Path, num: int = 24, rate: float = 8.0, first: int = 0) -> Path:
    """A video whose frames are of the greys 0, 1, 2, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    greys = (first + np.arange(num)).astype(np.uint8)
    write_ffv1(path, np.broadcast_to(greys[:, None, None, None], (num, 16, 16, 3)).copy(), rate)
    return path


def test_a_limit_on_the_pixels_of_a_frame_holds_before_anything_is_decoded(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    write_ffv1(tmp_path / "a" / "x.mkv", frames, 8)
    np.save(tmp_path / "a" / "y.npy", frames)
    write_frames(tmp_path / "a" / "z", frames)
    for policy in ("skip", "salvage"):
        few, enough = (
            Clips(tmp_path, (8, 8), 2, policy=policy, split=(1, 0, 0), max_megapixels=limit / 1e6)
            for limit in (599, 600)
        )
        with pytest.raises(ValueError, match="got none: 3 too large"):
            few.batch(3, 0, 0)
        assert enough.batch(3, 0, 0)[0].shape == (3, 2, 8, 8, 3)
    with pytest.raises(ValueError, match=r"30 x 20, where 0\.000599 megapixels are allowed"):
        read_index(tmp_path / "a" / "x.mkv", max_pixels=599)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["sky_train/I/I_1", "sky_train/I/I_2", "sky_train/J/J_1", "sky_test/K/K_1"], ["video"]),
        (["train/I/I_1", "train/J/J_1", "test/I/I_2"], ["I", "J"]),  # classes that the splits share
        (["train/I/a_1", "train/J/b_1", "test/K/c_1"], ["I", "J", "K"]),
        ([f"ID{i}/ID{i}_{j}" for i in range(20) for j in range(2)], ["video"]),
        ([f"cat{i}/cat{i}_{j}" for i in "ab" for j in range(9)], ["cata", "catb"]),
    ],
)
def test_folders_of_pieces_of_one_video_are_no_classes(
    names: list[str], classes: list[str], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_frames(tmp_path / name, np.zeros((2, 4, 4, 3), np.uint8))
    listing = list_all(tmp_path)
    assert listing.classes == classes
    assert ("pieces of one video" in str(listing.understood(tmp_path))) == (classes == ["video"])
    if classes == ["video"]:
        side = {(clip.path.parent, clip.split) for clip in listing.clips}
        assert len(side) == len({parent for parent, _ in side})


def test_pixels_that_are_not_square_are_shown_as_they_are_meant() -> None:
    index = read_index(CASES / "sar2.mp4")
    assert (index.height, index.width) == (64, 192)
    assert read_clip(CASES / "sar2.mp4", 3, 2, index=index).shape == (2, 64, 192, 3)


def test_transparency_and_depth_mean_the_same_in_pictures_and_clips(tmp_path: Path) -> None:
    shown = read_clip(CASES / "transparent.gif", 0, 1)[0]
    assert np.array_equal(shown, np.asarray(open_picture(CASES / "transparent.gif")))
    assert shown.max() == 255
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    Image.fromarray(values, "RGBA").save(tmp_path / "0.png")
    Image.fromarray(values[..., 0].astype(np.uint16) * 257).save(tmp_path / "1.png")
    Image.fromarray(values[..., 0]).convert("RGB").save(tmp_path / "2.webp", lossless=True)
    files = [tmp_path / name for name in ("0.png", "1.png", "2.webp")]
    for file, frame in zip(files, read_pictures(tmp_path, files), strict=True):
        assert np.array_equal(frame, np.asarray(open_picture(file)))


def test_damage_that_ffmpeg_conceals_is_told_by_its_log() -> None:
    for name in ("damaged_mjpeg.avi", "damaged_vp9_altref.webm", "damaged_hevc_g3.mp4", "sar2.mp4"):
        found = examine(CASES / name)
        assert found["frames"] > 30
        assert (found["reason"], bool(found["log"])) == (
            ("damaged", True) if "damaged" in name else ("", False)
        )


@pytest.mark.parametrize("rate", [4.0, 8.0, 12.0, 24.0, 90.0])
def test_clips_at_one_rate_take_the_same_time(tmp_path: Path, rate: float) -> None:
    """The frame shown nearest to each moment, whatever the rate of the file."""
    path = clip(tmp_path / "a" / "x.mkv", num=int(2.5 * rate), rate=rate)
    data = Clips(tmp_path, (16, 16), frames=9, policy="error", split=(1, 0, 0), resample="nearest", rate=8.0)
    frames = data.reference("train").data[0]
    shown = frames[:, 0, 0, 0].astype(int) / rate
    assert np.abs(shown - np.arange(9) / 8).max() <= 0.5 / rate + 0.002  # Matroska counts in milliseconds
    assert data.reader.own_size(data.split("train")[0]) == (
        num_moments(read_index(path).seconds(8), 8),
        16,
        16,
    )
    assert data.batch(2, 0, 0)[0].shape == (2, 9, 16, 16, 3)


def test_moments_of_variable_rates() -> None:
    seconds = np.array([0, 0.1, 0.2, 1.0, 1.1])
    assert nearest_frames(seconds, 0.0, 5, 4).tolist() == [0, 2, 2, 3, 3]
    assert nearest_frames(seconds, 0.99, 1, 4).tolist() == [4]
    assert len(nearest_frames(seconds, 0.0, 9, 4)) == num_moments(seconds, 4) == 5
    assert nearest_frames(np.zeros(1), 0.5, 3, 8).tolist() == [0]
    index = read_index(CASES / "vfr.mkv")
    assert index.rate == pytest.approx(12.5, abs=0.5)
    with pytest.raises(ValueError, match="resample must be null or nearest"):
        Clips(CASES, stride=2, resample="nearest")


def test_too_short_for_a_rate_is_told(tmp_path: Path) -> None:
    clip(tmp_path / "a" / "x.mkv", num=8, rate=16.0)
    data = Clips(tmp_path, (16, 16), frames=9, policy="error", split=(1, 0, 0), resample="nearest", rate=8.0)
    with pytest.raises(ValueError, match="4 frames at 8 a second, the clip needs 9"):
        data.reference("train")


def test_a_messy_folder_tells_the_truth(tmp_path: Path) -> None:
    root = tmp_path / "Klänge, [2]"
    for i in range(6):
        clip(root / "böse" / f"abc_{i:06d}_{i + 1:06d}.mkv", first=i)
        clip(root / "b" / f"{i}.MKV", first=i)
    for i in range(3):
        folder = root / "b" / "frames"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (i, i, i)).save(folder / f"{i}.webp")
    for name in (
        "b/notes.txt",
        "b/cover.jpg",
        ".DS_Store",
        "__MACOSX/b/._1.mkv",
        "b/sub/Thumbs.db",
        "loose.mp4",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "b" / "zero.mp4").write_bytes(b"")
    (root / "b" / "up").symlink_to(root)
    data = Clips(root, (16, 16), frames=2)
    said = str(data.understood())
    assert data.classes == ["b", "böse"]
    for words in (
        "14 videos, 2 classes",
        ".txt 1",
        "1 pictures beside videos: .jpg 1",
        "3 hidden",
        "1 beside the",
    ):
        assert words in said, said
    assert data.batch(8, 0, 0)[0].shape == (8, 2, 16, 16, 3)
    assert data.count("test") >= 2
    assert check(root, tmp_path / "out", workers=0)["reasons"] == {"empty": 2}


def test_pieces_of_a_video_stay_on_one_side(tmp_path: Path) -> None:
    for video in ("abcdefghijk", "-_1a2b3c4d5", "zyxwvutsrqp", "mnbvcxz1234"):
        for i in range(5):
            (tmp_path / "a").mkdir(exist_ok=True)
            (tmp_path / "a" / f"{video}_{10 * i:06d}_{10 * i + 10:06d}.mp4").touch()
    sides: dict[str, set[str]] = {}
    for one in list_all(tmp_path).clips:
        sides.setdefault(Path(one.name).name[:11], set()).add(one.split)
    assert all(len(of) == 1 for of in sides.values())
    assert {"train", "test"} <= set.union(*sides.values())


def test_every_suffix_is_listed_or_counted(tmp_path: Path) -> None:
    for name in ("1.mp4", "2.MTS", "3.apng", "4.mjpeg", "5.m2ts", "6.y4m"):
        (tmp_path / name).touch()
    assert len(find_videos(tmp_path)) == 6
    (tmp_path / "a.webp").touch()
    (tmp_path / "b.rar").touch()
    assert list_all(tmp_path).ignored.lines() == [
        "1 pictures beside videos: .webp 1",
        "1 of a kind that is not read: .rar 1",
    ]
