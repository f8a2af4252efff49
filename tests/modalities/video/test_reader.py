"""A clip is the frames of sequential decoding, whatever the file; a broken file is one line with a reason."""

import gc
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from modalities.video.io import container as containers
from modalities.video.io import reader, trial
from modalities.video.io.container import REASONS, Unreadable, opened
from modalities.video.io.frame_folders import read_arrays
from modalities.video.io.integrity import is_truncated, sums_fit
from modalities.video.io.reader import read_clip, read_index
from modalities.video.io.tables import has_endless_tables
from modalities.video.io.writer import write_ffv1
from tests.hostile.videos import endless, gif, tagged, wordy

NUM, HEIGHT, WIDTH = 40, 48, 64


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame that carries its number as a bar code, and a patch that moves."""
    frame = np.full((height, width, 3), 40, np.uint8)
    for bit in range(8):
        frame[:16, bit * 8 : (bit + 1) * 8] = 255 * (number >> bit & 1)
    frame[20:40, number * 3 % 56 : number * 3 % 56 + 8] = [200, 80, 30]
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that a frame carries, whatever a codec did to it."""
    return sum(1 << bit for bit in range(8) if frame[4:12, bit * 8 + 2 : bit * 8 + 6].mean() > 128)


def make(
    path: Path,
    codec: str = "libx264",
    gop: int = 12,
    num: int = NUM,
    pixels: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    times: Sequence[int] | None = None,
    rotation: tuple[int, bool] | None = None,
    faststart: bool = False,
    first: int = 0,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> Path:
    """Write frames `first` and on with a bar code; `times` are in ms, `rotation` is (degrees, mirrored)."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec, 25, options=dict(options or {}))
        stream.height, stream.width = size
        stream.pix_fmt, stream.gop_size = pixels, gop
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        for i in range(num):
            frame = av.VideoFrame.from_ndarray(picture(first + i, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(source: Path, target: Path, start: int) -> Path:
    """Copy packets from the keyframe before frame `start`, which gets time 0: `ffmpeg -ss -c copy`."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        packets = [packet for packet in old.demux(stream) if packet.size]
        zero = sorted(packet.pts for packet in packets)[start]
        first = max(i for i, p in enumerate(packets) if p.is_keyframe and p.pts <= zero)
        for packet in packets[first:]:
            packet.pts -= zero
            packet.dts = None if packet.dts is None else packet.dts - zero
            packet.stream = copy
            new.mux(packet)
    return target


def sequential(path: Path) -> np.ndarray:
    """The truth: the container decoded from its first packet to its last."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _b(more: str = "") -> dict[str, str]:
    return {"x264-params": f"bframes=3:scenecut=0{more}"}


RNG_TIMES = np.cumsum(np.random.default_rng(7).integers(10, 90, NUM)).tolist()
FILES: dict[str, Callable[[Path], Path]] = {
    "g12.mp4": lambda p: make(p, options=_b()),
    "g250.mp4": lambda p: make(p, gop=250, options=_b()),
    "faststart.mp4": lambda p: make(p, options=_b(), faststart=True),
    "opengop.mkv": lambda p: make(p, options=_b(":open-gop=1")),
    "refresh.mp4": lambda p: make(p, options={"x264-params": "bframes=0:intra-refresh=1"}),
    "mpeg4.avi": lambda p: make(p, "mpeg4"),
    "mpeg4b.avi": lambda p: make(p, "mpeg4", options={"bf": "2"}),
    "vp9.webm": lambda p: make(p, "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "vp8.webm": lambda p: make(p, "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "hevc.mp4": lambda p: make(
        p, "libx265", options={"preset": "ultrafast", "x265-params": "log-level=none"}
    ),
    "vfr.mp4": lambda p: make(p, options=_b(), times=RNG_TIMES),
    "edit.mp4": lambda p: cut(make(p.with_name("a.mp4"), options=_b()), p, 17),
    "edit250.mp4": lambda p: cut(make(p.with_name("b.mp4"), gop=250, options=_b()), p, 9),
    "leading.mkv": lambda p: cut(make(p.with_name("c.mkv"), options=_b(":open-gop=1")), p, 14),
    "transport.ts": lambda p: make(p, options=_b()),
    "program.mpg": lambda p: make(p, "mpeg2video"),
    "ffv1.mkv": lambda p: make(p, "ffv1", pixels="bgr0"),
    "one.mp4": lambda p: make(p, num=1),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes each file once, by name."""
    folder, made = tmp_path_factory.mktemp("videos"), {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = FILES[name](folder / name)
        return made[name]

    return get


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
    path = make(tmp_path / "long.mp4", num=120, options=_b())
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


# ---------------------------------------------------------------------------------------- broken files


def truncate(source: Path, part: float = 0.6) -> Path:
    target = source.with_name(f"cut-{source.name}")
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * part)])
    return target


def lose(source: Path) -> Path:
    """Leave out three of the packets of 188 bytes in the second half of a transport stream."""
    data = source.read_bytes()
    at = len(data) * 3 // 4 // 188 * 188
    source.write_bytes(data[:at] + data[at + 3 * 188 :])
    return source


def flip(source: Path, target: Path, count: int, seed: int, head: float = 0.3) -> Path:
    """Change `count` random bytes after the first part of a file."""
    data, rng = bytearray(source.read_bytes()), np.random.default_rng(seed)
    for at in rng.integers(int(len(data) * head), len(data), count):
        data[at] ^= int(rng.integers(1, 256))
    target.write_bytes(data)
    return target


def audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", 16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text": (lambda p: text(p / "a.mp4", "hello\n" * 500), "not a video"),
    "text as text": (lambda p: text(p / "a.txt", "hello\n" * 500), "not a video"),
    "play list": (
        lambda p: text(p / "a.mp4", "#EXTM3U\n#EXTINF:1,\nhttp://localhost:1/a.ts\n"),
        "not a video",
    ),
    "empty": (lambda p: text(p / "a.avi", ""), "empty"),
    "audio only": (lambda p: audio(p / "a.mp4"), "no video stream"),
    "missing": (lambda p: p / "none.mp4", "missing"),
    "pipe": (lambda p: os.mkfifo(p / "a.mp4") or p / "a.mp4", "special"),
    "mp4, index at the end": (lambda p: truncate(make(p / "a.mp4")), "truncated"),
    "mp4, index first": (lambda p: truncate(make(p / "a.mp4", faststart=True), 0.9), "truncated"),
    "avi": (lambda p: truncate(make(p / "a.avi", "mpeg4"), 0.9), "truncated"),
    "webm": (lambda p: truncate(make(p / "a.webm", "libvpx", num=9)), "truncated"),
    "gif": (lambda p: truncate(make(p / "a.gif", "gif", pixels="rgb8")), "truncated"),
    "flv": (lambda p: truncate(make(p / "a.flv", "flv")), "damaged"),
    "ts, packets lost": (lambda p: lose(make(p / "a.ts", options=_b())), "damaged"),
    "flipped header": (lambda p: flip(make(p / "a.mp4"), p / "b.mp4", 4000, 0, 0), "not a video"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_one_line_with_a_reason(what: str, tmp_path: Path) -> None:
    build, reason = BROKEN[what]
    path = build(tmp_path)
    with pytest.raises(Unreadable) as caught:
        read_clip(path, 0, 4)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if reason not in reader.BROKEN:
        with pytest.raises(Unreadable):
            read_clip(path, 0, 4, salvage=True)


@pytest.mark.parametrize(
    ("name", "codec", "part"), [("a.mp4", "libx264", 0.9), ("a.avi", "mpeg4", 0.9), ("a.mkv", "ffv1", 0.6)]
)
def test_salvage_gives_what_decodes(name: str, codec: str, part: float, tmp_path: Path) -> None:
    pixels = "bgr0" if codec == "ffv1" else "yuv420p"
    whole = make(tmp_path / name, codec, pixels=pixels, faststart=name.endswith("mp4"))
    broken = truncate(whole, part)
    index = read_index(broken, salvage=True)
    assert index.fault == "truncated"
    assert 2 < len(index) < NUM
    truth = sequential(whole)
    np.testing.assert_array_equal(read_clip(broken, 1, len(index) - 1, salvage=True), truth[1 : len(index)])
    assert len(read_clip(broken, 1, NUM, salvage=True)) == len(index) - 1, "a clip is shortened"
    with pytest.raises(Unreadable, match="too few frames"):
        read_clip(broken, len(index), 1, salvage=True)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9")]
)
def test_flipped_bytes_never_escape_as_another_error(name: str, codec: str, tmp_path: Path) -> None:
    whole = make(tmp_path / name, codec, options=None if codec != "libvpx-vp9" else {"cpu-used": "8"})
    reasons = []
    for seed in range(24):
        path = flip(whole, tmp_path / f"flipped-{name}", 1 + 20 * (seed % 3), seed, 0.05 * (seed % 4))
        for salvage in (False, True):
            try:
                clip = read_clip(path, 0, NUM, salvage=salvage)
                assert clip.dtype == np.uint8
                assert len(clip) <= NUM
            except Unreadable as error:
                reasons.append(error.reason)
    assert set(reasons) <= set(REASONS)
    assert len(reasons) > 8


@pytest.mark.parametrize("name", ["g12.mp4", "opengop.mkv", "vp9.webm", "transport.ts", "ffv1.mkv"])
def test_damage_of_any_kind_is_told_and_what_is_read_is_sequential(
    name: str, file: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = file(name).read_bytes()
    for seed in range(25):
        rng = np.random.default_rng(seed)
        data, place = bytearray(whole), int(rng.integers(len(whole)))
        if seed % 3 == 0:
            data[place : place + int(rng.integers(1, 300))] = rng.bytes(int(rng.integers(1, 300)))
        for i in rng.integers(min(len(data), (200, 2000, 10**9)[seed % 3]), size=int(rng.integers(1, 9))):
            data[i] = rng.integers(256)
        path = tmp_path / f"{seed}-{name}"
        path.write_bytes(data)
        for salvage in (False, True):
            try:
                index = read_index(path, salvage)
                start = int(rng.integers(max(1, len(index) - 4)))
                clip = read_clip(path, start, 3, index=index, salvage=salvage)
                truth = read_clip(path, 0, len(index), index=index, salvage=salvage)
            except Unreadable:
                continue
            # Salvaged frames are counted anew.
            assert salvage or np.array_equal(clip, truth[start : start + 3])


def test_pictures_that_the_decoder_makes_up_are_never_given_as_frames(tmp_path: Path) -> None:
    whole = make(tmp_path / "a.mp4", num=15, size=(240, 320), options={"x264-params": "bframes=0"})
    with av.open(str(whole)) as container:
        packet = next(p for i, p in enumerate(container.demux(video=0)) if i == 12)  # a keyframe
        begin, end = packet.pos + 5, packet.pos + packet.size
    truth, told, broken = sequential(whole), 0, tmp_path / "b.mp4"
    for seed in range(12):
        data, rng = bytearray(whole.read_bytes()), np.random.default_rng(seed)
        data[rng.integers(begin, end)] ^= int(rng.integers(1, 256))
        broken.write_bytes(data)
        try:
            np.testing.assert_array_equal(read_clip(broken, 0, 15), truth)
        except Unreadable:
            told += 1
    assert told > 8


def test_a_flipped_bit_in_a_lossless_frame_is_told_by_its_check_sum(tmp_path: Path) -> None:
    """FFmpeg copies the slice from the frame before and flags nothing."""
    path = tmp_path / "a.mkv"
    frames = np.stack([picture(i) for i in range(8)])
    write_ffv1(path, frames, 25)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    assert all(sums_fit(packet) for packet in packets)
    whole = path.read_bytes()
    for place in (len(packets[3]) // 3, len(packets[3]) - 7):  # in a slice, and in its length
        data = bytearray(whole)
        data[whole.index(packets[3]) + place] ^= 4
        path.write_bytes(data)
        index = read_index(path)
        for start, count in ((0, 8), (2, 3)):
            with pytest.raises(Unreadable, match="a check sum does not fit"):
                read_clip(path, start, count, index=index)
        assert np.array_equal(read_clip(path, 4, 4, index=index), frames[4:])
        assert np.array_equal(read_clip(path, 0, 8, salvage=True), np.delete(frames, 3, axis=0))
    bare = make(tmp_path / "b.mkv", "ffv1", pixels="bgr0", options={"level": "1"}, num=3)
    assert len(read_clip(bare, 0, 3)) == 3


@pytest.mark.parametrize(("number", "part"), [(18, 0.2), (24, 0.5)])
def test_damage_outside_a_clip_does_not_touch_it_and_inside_is_told(
    number: int, part: float, tmp_path: Path
) -> None:
    whole = make(tmp_path / "a.mp4", options={"x264-params": "bframes=0"})
    with av.open(str(whole)) as container:
        packet = next(p for i, p in enumerate(container.demux(video=0)) if i == number)
        data, begin, end = bytearray(whole.read_bytes()), packet.pos, packet.pos + packet.size
    begin += int(part * packet.size)  # the second half of a keyframe, which decoders make up without an error
    data[begin:end] = b"\xa5" * (end - begin)
    broken = tmp_path / "b.mp4"
    broken.write_bytes(data)
    truth = sequential(whole)
    np.testing.assert_array_equal(read_clip(broken, 0, 12), truth[:12])
    np.testing.assert_array_equal(read_clip(broken, 36, 4), truth[36:])
    with pytest.raises(Unreadable) as caught:
        read_clip(broken, number, 8)
    assert caught.value.reason == "damaged"
    assert 0 < len(read_clip(broken, 0, NUM, salvage=True)) < NUM


@pytest.mark.parametrize("name", ["g12.mp4", "mpeg4.avi", "vp9.webm", "ffv1.mkv"])
def test_whole_files_are_not_taken_for_truncated_ones(
    name: str, file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = file(name)
    assert not is_truncated(path)
    longer = tmp_path / name
    longer.write_bytes(path.read_bytes() + b"trailing bytes that some tool left here")
    assert not is_truncated(longer)
    longer.write_bytes(path.read_bytes()[:-1])
    assert is_truncated(longer)


def test_a_file_is_closed_after_an_error(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", num=2)
    seen = []

    def fail() -> None:
        with opened(path) as (container, _):
            seen.append(container)
            raise av.InvalidDataError(1, "no good")

    with pytest.raises(Unreadable):
        fail()
    with pytest.raises(AssertionError, match="not open"):
        next(seen[0].demux(video=0))


def test_names_with_colons_and_percents_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "concat:a|b.mp4", "a%03d.mp4", "http:.mp4", "a b.mp4", "-i.mp4"):
        make(Path("plain.mp4"), num=2).rename(name)
        assert len(read_clip(Path(name), 0, 2)) == 2


def test_an_unreadable_file_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(Unreadable(Path("a.mp4"), "damaged", "frame 3")))
    assert (error.reason, error.path, str(error)) == (
        "damaged", Path("a.mp4"), "a.mp4 must be a whole video, got a damaged one (frame 3)"
    )  # fmt: skip


@pytest.mark.parametrize(("start", "count", "stride"), [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_impossible_clips_are_refused(start: int, count: int, stride: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        read_clip(tmp_path / "a.mp4", start, count, stride)


# ------------------------------------------------------------------------------- folders of frames, arrays


def write_frames(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:05d}.png")


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


# ------------------------------------------------------------------------------------------------- decord


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


def test_a_header_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modalities.video.io.container.LONGEST", 0.05)
    with pytest.raises(Unreadable, match=r"^[^\n]* must be a video, got [^\n]*more than 0.05 seconds[^\n]*$"):
        read_index(tagged(tmp_path))


@pytest.mark.parametrize(
    ("kind", "behind"), [("tags", False), ("tags", True), ("chapters", False), ("cues", False)]
)
def test_tables_that_ffmpeg_would_never_end_to_sort_are_refused(
    kind: str, behind: bool, tmp_path: Path
) -> None:
    """It asks nobody meanwhile: neither its own limit of time nor a signal ends it."""
    with pytest.raises(
        Unreadable, match=r"^[^\n]* must be a video, got [^\n]*more than 10000 tags, chapters[^\n]*$"
    ):
        read_index(endless(tmp_path, kind, 11_000, behind))


def test_tables_as_people_have_them_are_read(tmp_path: Path) -> None:
    assert len(read_index(endless(tmp_path, "tags", 5_000))) == 1
    assert not has_endless_tables(endless(tmp_path, "chapters", 9_000))


@pytest.mark.parametrize(("kind", "number"), [("flv", 70_000), ("avi", 70_000), ("ts", 1500)])
def test_containers_that_ffmpeg_would_never_end_to_read_are_refused(
    kind: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 1.0)
    began = time.process_time()
    with pytest.raises(Unreadable, match=r"^[^\n]*not read in the time that whole files take[^\n]*$"):
        read_index(wordy(tmp_path, kind, number))
    assert time.process_time() - began < 5


def test_words_as_people_have_them_are_read(tmp_path: Path) -> None:
    for kind in ("flv", "avi"):
        assert len(read_index(wordy(tmp_path, kind, 4_000))) == 1


def test_frames_that_take_minutes_to_reach_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty thousand frames of one pixel are read, but not over a canvas of 36 megapixels."""
    path = tmp_path / "a.gif"
    path.write_bytes(gif(6000, 6000, 500))
    with pytest.raises(Unreadable, match="pixels a byte lie between"):
        read_index(path)
    path.write_bytes(gif(100, 100, 30_000))
    index = read_index(path)
    assert len(index) == 30_000
    monkeypatch.setattr(containers, "DENSE", 1)  # and where the keyframes are lies
    with pytest.raises(Unreadable, match="pixels a byte lie between"):
        read_clip(path, 29_000, 1, index=index)
