"""A clip is the frames of sequential decoding, whatever the file."""

import gc
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modalities.video.io import reader
from modalities.video.io.container import Unreadable
from modalities.video.io.reader import read_clip, read_index
from tests.modalities.video.videos import FILES, NUM, RNG_TIMES, b_frames, make, number_of, sequential


@pytest.mark.parametrize("name", FILES)
def test_a_clip_is_the_frames_of_sequential_decoding(name: str, file: Callable[[str], Path]) -> None:
    path = file(name)
    truth, index = sequential(path), read_index(path)
    assert len(index) == len(truth)
    assert (index.height, index.width) == truth.shape[1:3]
    rng = np.random.default_rng(len(name))
    for _ in range(8):
        stride = int(rng.integers(1, 6))
        count = int(rng.integers(1, (len(truth) - 1) // stride + 2))
        start = int(rng.integers(len(truth) - (count - 1) * stride))
        clip = read_clip(path, start, count, stride, index=index)
        np.testing.assert_array_equal(clip, truth[start : start + (count - 1) * stride + 1 : stride])
    numbers = [number_of(frame) for frame in read_clip(path, 0, len(truth))]
    assert np.diff(numbers).tolist() == [1] * (len(truth) - 1), "a frame is repeated or left out"


@pytest.mark.parametrize(
    "name", ["g12.mp4", "g250.mp4", "mpeg4b.avi", "vp9.webm", "vfr.mp4", "edit.mp4", "transport.ts"]
)
def test_seeking_does_not_fall_back_on_counting(
    name: str, file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(name)

    def counted(*_: object) -> None:
        raise AssertionError(f"{name} was decoded from its start")

    monkeypatch.setattr(reader, "_counted", counted)
    begin = 24 if name == "transport.ts" else 0  # whose first keyframes are missed by seeking to them
    for start in range(begin, len(read_index(path)) - 4, 5):
        read_clip(path, start, 2, 4)


def test_a_wide_stride_leaps_over_what_it_does_not_need(
    file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make(tmp_path / "long.mp4", num=120, options=b_frames())
    decoded, frames_of = [], reader.frames_of

    def counting(*arguments: object) -> object:
        for frame in frames_of(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(reader, "frames_of", counting)
    clip = read_clip(path, 1, 3, 55)
    assert [number_of(frame) for frame in clip] == [1, 56, 111]
    assert len(decoded) < 45


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 39), st.integers(1, 40), st.integers(1, 12))
def test_strides_are_constant_or_the_clip_is_too_long(
    file: Callable[[str], Path], start: int, count: int, stride: int
) -> None:
    path = file("g12.mp4")
    if start + (count - 1) * stride >= NUM:
        with pytest.raises(Unreadable, match=r"got too few frames \(40 frames, the clip needs") as caught:
            read_clip(path, start, count, stride)
        assert caught.value.reason == "too short"
    else:
        numbers = [number_of(frame) for frame in read_clip(path, start, count, stride)]
        assert numbers == list(range(start, start + count * stride, stride))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_come_as_a_player_shows_them(degrees: int, mirrored: bool, tmp_path: Path) -> None:
    path = make(tmp_path / "turned.mp4", num=3, rotation=(degrees, mirrored))
    truth = np.rot90(sequential(path), degrees // 90, axes=(1, 2))  # counter-clockwise, then the mirror
    truth = truth[:, :, ::-1] if mirrored else truth
    np.testing.assert_array_equal(read_clip(path, 0, 3), truth)
    index = read_index(path)
    assert (index.height, index.width) == truth.shape[1:3]


def test_an_odd_angle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="quarter turns"):
        read_index(make(tmp_path / "odd.mp4", num=2, rotation=(37, False)))


def test_index_knows_rate_times_and_keyframes(file: Callable[[str], Path]) -> None:
    index = read_index(file("g12.mp4"))
    assert (index.rate, index.codec, len(index.keys), index.fault) == (25.0, "h264", 4, "")
    np.testing.assert_array_equal(index.keys, index.times[::12])
    times = read_index(file("vfr.mp4")).times
    np.testing.assert_allclose(np.diff(times) / 16, np.diff(RNG_TIMES), atol=1)


def test_memory_stays_flat_over_300_opens(file: Callable[[str], Path]) -> None:
    path = file("g12.mp4")
    code = (
        "import os, sys; from pathlib import Path; from modalities.video.io.reader import read_clip\n"
        "def rss(): return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')\n"
        "path = Path(sys.argv[1])\n"
        "for i in range(500):\n"
        "    if i == 200: before = rss()  # until then the allocator grows\n"
        "    read_clip(path, i % 20, 2)\n"
        "print((rss() - before) / 2**20)"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    root = Path(__file__).resolve().parents[3]
    out = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=root
    )
    assert float(out.stdout) < 8  # without closing, about 100


def test_no_frame_waits_for_the_collector_of_garbage(file: Callable[[str], Path]) -> None:
    """What waits holds its memory and FFmpeg's threads: up to a hundred of them for one clip."""
    gc.collect()
    gc.disable()
    try:
        clip = read_clip(file("g12.mp4"), 3, 8)
        assert not [thing for thing in gc.get_objects() if issubclass(type(thing), av.VideoFrame)]
    finally:
        gc.enable()
    assert len(clip) == 8


def test_names_with_colons_and_percents_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "concat:a|b.mp4", "a%03d.mp4", "http:.mp4", "a b.mp4", "-i.mp4"):
        make(Path("plain.mp4"), num=2).rename(name)
        assert len(read_clip(Path(name), 0, 2)) == 2


@pytest.mark.parametrize(("start", "count", "stride"), [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_impossible_clips_are_refused(start: int, count: int, stride: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        read_clip(tmp_path / "a.mp4", start, count, stride)


def test_decord_is_asked_for_in_one_line(
    file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ValueError, match="decord is not installed"):
        read_clip(file("g12.mp4"), 0, 1, backend="decord")


@pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="the package decord is not installed")
@pytest.mark.parametrize("name", ["g12.mp4", "g250.mp4", "mpeg4.avi", "vp9.webm", "vfr.mp4", "one.mp4"])
def test_decord_gives_the_same_frames(name: str, file: Callable[[str], Path]) -> None:
    path = file(name)
    count = (len(read_index(path)) + 2) // 3
    clip = read_clip(path, 0, count, 3)
    np.testing.assert_array_equal(read_clip(path, 0, count, 3, backend="decord"), clip)


@pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="the package decord is not installed")
def test_decord_does_not_repeat_frames_of_edit_lists(file: Callable[[str], Path]) -> None:
    with pytest.raises(Unreadable, match="another number of frames"):
        read_clip(file("edit.mp4"), 0, 5, backend="decord")
