"""Folders of frames and arrays are videos, and broken ones are one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modalities.video.io.container import Unreadable
from modalities.video.io.frame_folders import read_arrays
from modalities.video.io.reader import read_clip, read_index
from tests.modalities.video.videos import number_of, picture


def frame_folder(folder: Path, num: int = 12, suffix: str = ".png") -> Path:
    folder.mkdir()
    for number in range(num):
        Image.fromarray(picture(number)).save(folder / f"frame{number}{suffix}", quality=95)
    return folder


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_folder_of_frames_is_a_video_in_natural_order(suffix: str, tmp_path: Path) -> None:
    folder = frame_folder(tmp_path / "clip", suffix=suffix)
    (folder / "notes.txt").write_text("not a frame")
    (folder / ".frame0.png").write_text("hidden")
    frames = read_clip(folder, 0, 12)
    assert [number_of(frame) for frame in frames] == list(range(12))
    assert len(read_index(folder)) == 12
    np.testing.assert_array_equal(read_clip(folder, 2, 3, 4), frames[2:11:4])
    with pytest.raises(Unreadable, match="too few"):
        read_clip(folder, 2, 3, 5)


def test_broken_folders_are_one_line_or_salvaged(tmp_path: Path) -> None:
    folder = frame_folder(tmp_path / "clip")
    (folder / "frame3.png").write_bytes((folder / "frame3.png").read_bytes()[:60])
    Image.fromarray(picture(7)[:20]).save(folder / "frame7.png")
    with pytest.raises(Unreadable, match=r"damaged one \(frame3.png"):
        read_clip(folder, 0, 5)
    with pytest.raises(Unreadable, match="differ in size"):
        read_clip(folder, 5, 5)
    numbers = [number_of(frame) for frame in read_clip(folder, 0, 12, salvage=True)]
    assert numbers == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(folder / "frame0.tif")
    with pytest.raises(Unreadable, match="floating-point"):
        read_clip(folder, 0, 2)
    shutil.rmtree(folder)
    with pytest.raises(Unreadable, match="nothing there"):
        read_clip(folder, 0, 1)
    folder.mkdir()
    with pytest.raises(Unreadable, match="empty"):
        read_clip(folder, 0, 1)


def test_arrays_are_videos_and_sets_of_videos(tmp_path: Path) -> None:
    videos = np.random.default_rng(0).integers(0, 256, (3, 9, 8, 10, 3), np.uint8)
    np.savez(tmp_path / "set.npz", videos=videos)
    np.save(tmp_path / "one.npy", videos[0])
    np.testing.assert_array_equal(read_arrays(tmp_path / "set.npz"), videos)
    np.testing.assert_array_equal(read_clip(tmp_path / "one.npy", 1, 3, 3), videos[0, 1:8:3])
    with pytest.raises(Unreadable, match="a set of 3"):
        read_clip(tmp_path / "set.npz", 0, 1)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 4, 4, 3)), "float64"),
        (np.zeros((2, 4, 4), np.uint8), r"\(2, 4, 4\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"\(1, 0, 4, 4, 3\)"),
        (np.array([{}], object), "object|Python"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(Unreadable, match=words):
        read_clip(tmp_path / "a.npy", 0, 1)
    np.savez(tmp_path / "a.npz", other=np.zeros(3))
    with pytest.raises(Unreadable, match="videos"):
        read_arrays(tmp_path / "a.npz")
