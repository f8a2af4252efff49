"""What is written is read again: exactly where lossless, nearly where not, and never by halves."""

import resource
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modalities.video.io.container import Unreadable
from modalities.video.io.reader import read_clip, read_index
from modalities.video.io.writer import is_lossless, write_ffv1, write_gif, write_mp4
from tests.modalities.video.videos import make, number_of, picture, write_frames


def noise(num: int = 7, height: int = 18, width: int = 22, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, 3), np.uint8)


def clip(num: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    return np.stack([picture(number, height, width) for number in range(num)])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 33), st.integers(1, 33), st.sampled_from([1, 8, 23.976, 29.97, 60]))
def test_ffv1_is_exact(
    tmp_path_factory: pytest.TempPathFactory, num: int, height: int, width: int, fps: float
) -> None:
    path, frames = tmp_path_factory.mktemp("ffv1") / "a.mkv", noise(num, height, width)
    write_ffv1(path, frames, fps)
    index = read_index(path)
    np.testing.assert_array_equal(read_clip(path, 0, num), frames)
    assert len(index) == num
    assert index.rate == pytest.approx(fps, abs=0.02)
    assert is_lossless(path)


def test_any_frame_of_an_ffv1_file_can_be_sought(tmp_path: Path) -> None:
    write_ffv1(tmp_path / "a.mkv", noise(9), 8)
    assert len(read_index(tmp_path / "a.mkv").keys) == 9


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 65), (1, 1), (2, 2)])
def test_an_mp4_plays_everywhere_and_is_near(height: int, width: int, tmp_path: Path) -> None:
    frames = noise(2, 1, 1) if height < 16 else clip(12, height, width)
    frames = np.broadcast_to(frames[:, :1, :1], (2, height, width, 3)).copy() if height < 16 else frames
    path = tmp_path / "a.mp4"
    write_mp4(path, frames, 8)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.average_rate, stream.frames) == (
            "h264", "yuv420p", 8, len(frames)
        )  # fmt: skip
        assert (context.height % 2, context.width % 2) == (0, 0)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "a browser starts before all is loaded"
    read = read_clip(path, 0, len(frames))[:, :height, :width]
    assert np.abs(read.astype(int) - frames).mean() < 6
    if height > 16:
        assert [number_of(frame) for frame in read] == list(range(12))
    assert not is_lossless(path)


def test_crf_trades_size_for_quality(tmp_path: Path) -> None:
    frames = noise(6, 48, 64)
    for crf in (0, 40):
        write_mp4(tmp_path / f"{crf}.mp4", frames, 8, crf)
    assert (tmp_path / "40.mp4").stat().st_size < (tmp_path / "0.mp4").stat().st_size / 4


@pytest.mark.parametrize("fps", [4, 8, 30, 50])
def test_a_gif_keeps_frames_and_the_mean_rate(fps: float, tmp_path: Path) -> None:
    frames = clip(24)
    write_gif(tmp_path / "a.gif", frames, fps)
    with Image.open(tmp_path / "a.gif") as picture_file:
        shown, total = [], 0
        for number in range(picture_file.n_frames):
            picture_file.seek(number)
            assert picture_file.info["duration"] >= 20
            total += picture_file.info["duration"]
            shown.append(number_of(np.asarray(picture_file.convert("RGB"))))
        assert picture_file.info["loop"] == 0
    assert shown == list(range(24))
    assert total == pytest.approx(24_000 / fps, abs=10)
    assert not is_lossless(tmp_path / "a.gif")


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "lossless"),
    [
        ("a.mkv", "ffv1", "bgr0", True),
        ("b.mkv", "ffv1", "yuv420p", False),
        ("c.avi", "huffyuv", "bgra", True),
        ("d.mov", "png", "rgb24", True),
        ("e.avi", "rawvideo", "bgr24", True),
        ("f.mkv", "ffv1", "gray", True),
        ("g.mp4", "libx264rgb", "rgb24", False),
        ("h.avi", "mjpeg", "yuvj420p", False),
    ],
)
def test_a_lossless_codec_in_all_colours_is_told_from_others(
    name: str, codec: str, pixels: str, lossless: bool, tmp_path: Path
) -> None:
    path = make(
        tmp_path / name, codec, num=2, pixels=pixels, options={"qp": "0"} if "x264" in codec else None
    )
    assert is_lossless(path) is lossless


def test_folders_and_arrays_are_lossless_but_for_jpeg(tmp_path: Path) -> None:
    write_frames(tmp_path / "clip", noise())
    np.save(tmp_path / "a.npy", noise())
    assert is_lossless(tmp_path / "clip")
    assert is_lossless(tmp_path / "a.npy")
    Image.fromarray(noise()[0]).save(tmp_path / "clip" / "x.jpg")
    assert not is_lossless(tmp_path / "clip")
    with pytest.raises(Unreadable, match="nothing there"):
        is_lossless(tmp_path / "none.npy")


@pytest.mark.parametrize("write", [write_mp4, write_gif, write_ffv1])
def test_a_file_is_written_whole_or_not_at_all(
    write: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "a.bin"
    write(path, clip(), 8)
    old = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write(path, clip(3), 8)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("frames", "fps", "words"),
    [
        (noise()[0], 8, "uint8 of"),
        (noise().astype(np.float32), 8, "uint8 of"),
        (noise()[:0], 8, "uint8 of"),
        (noise(), 0, "fps"),
        (noise(), float("nan"), "fps"),
    ],
)
def test_what_is_no_clip_is_refused(frames: np.ndarray, fps: float, words: str, tmp_path: Path) -> None:
    for write in (write_mp4, write_gif, write_ffv1):
        # Shapes are checked by the annotations in tests, by the function itself everywhere else.
        with pytest.raises(ValueError, match=words):
            getattr(write, "__wrapped__", write)(tmp_path / "a", frames, fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("write", "name"), [(write_mp4, "a.mp4"), (write_ffv1, "a.mkv"), (write_gif, "a.gif")]
)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_full_disk_is_one_error(
    write: Callable, name: str, share: float, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """FFmpeg, which writes by calls back into Python, would print traces and go on."""
    path = tmp_path / name
    write(path, noise(), 8)
    whole, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * len(whole)), limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(path, noise(seed=1), 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("write", [write_ffv1, write_mp4])
def test_equal_clips_are_equal_files(write: Callable[..., None], tmp_path: Path) -> None:
    """Matroska has a random number in its head."""
    clip = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    for name in ("a", "b"):
        write(tmp_path / name, clip, 8.0)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
