"""A broken file is one line with a reason, and what can be salvaged of it are frames of sequential decoding."""

import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from modalities.video.io import container as containers
from modalities.video.io import reader, trial
from modalities.video.io.container import REASONS, Unreadable, opened
from modalities.video.io.integrity import is_truncated, sums_fit
from modalities.video.io.reader import read_clip, read_index
from modalities.video.io.samples import counts_too_much
from modalities.video.io.tables import has_endless_tables
from modalities.video.io.writer import write_ffv1
from tests.fuzz import peak
from tests.hostile.videos import (
    chaptered,
    endless,
    fragmented,
    gif,
    numbered,
    overread,
    packed,
    tagged,
    wordy,
)
from tests.modalities.video.videos import NUM, b_frames, make, picture, sequential, truncate


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


def heic(path: Path) -> Path:
    """What FFmpeg reads as a film of one frame: of a photo in tiles it would be the first of them."""
    film = make(path.with_suffix(".mp4"), "libx265", num=1, options={"x265-params": "log-level=none"})
    path.write_bytes(film.read_bytes().replace(b"ftypisom", b"ftypheic", 1))
    return path


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text": (lambda p: text(p / "a.mp4", "hello\n" * 500), "not a video"),
    "text as text": (lambda p: text(p / "a.txt", "hello\n" * 500), "not a video"),
    "play list": (
        lambda p: text(p / "a.mp4", "#EXTM3U\n#EXTINF:1,\nhttp://localhost:1/a.ts\n"),
        "not a video",
    ),
    "empty": (lambda p: text(p / "a.avi", ""), "empty"),
    "photo of a phone": (lambda p: heic(p / "a.heic"), "still"),
    "audio only": (lambda p: audio(p / "a.mp4"), "no video stream"),
    "missing": (lambda p: p / "none.mp4", "missing"),
    "pipe": (lambda p: os.mkfifo(p / "a.mp4") or p / "a.mp4", "special"),
    "mp4, index at the end": (lambda p: truncate(make(p / "a.mp4")), "truncated"),
    "mp4, index first": (lambda p: truncate(make(p / "a.mp4", faststart=True), 0.9), "truncated"),
    "avi": (lambda p: truncate(make(p / "a.avi", "mpeg4"), 0.9), "truncated"),
    "webm": (lambda p: truncate(make(p / "a.webm", "libvpx", num=9)), "truncated"),
    "gif": (lambda p: truncate(make(p / "a.gif", "gif", pixels="rgb8")), "truncated"),
    "flv": (lambda p: truncate(make(p / "a.flv", "flv")), "damaged"),
    "ts, packets lost": (lambda p: lose(make(p / "a.ts", options=b_frames())), "damaged"),
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


def test_an_unreadable_file_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(Unreadable(Path("a.mp4"), "damaged", "frame 3")))
    assert (error.reason, error.path, str(error)) == (
        "damaged", Path("a.mp4"), "a.mp4 must be a whole video, got a damaged one (frame 3)"
    )  # fmt: skip


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


@pytest.mark.parametrize("head", [b"\0\0\0\x14ftypjp2 ", b"\x1a\x45\xdf\xa3matroska"])
def test_a_container_behind_the_first_bytes_of_another_is_refused(head: bytes, tmp_path: Path) -> None:
    """FFmpeg would find the transport stream, of which a moment ago nobody knew."""
    path = wordy(tmp_path, "ts", 400)
    path.write_bytes(head + path.read_bytes())
    began = time.process_time()
    with pytest.raises(Unreadable, match=r"^[^\n]* must be a video, got something else[^\n]*$"):
        read_index(path)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("tracks", "samples", "cuts"), [(6, 20_000_000, 1), (1, 2**32 - 1, 1), (2, 3000, 20_000)]
)
def test_samples_that_are_counted_and_not_there_take_no_memory(
    tracks: int, samples: int, cuts: int, tmp_path: Path
) -> None:
    path = numbered(tmp_path, tracks, samples, cuts)
    before = peak(reset=True)
    with pytest.raises(
        Unreadable, match=r"^[^\n]*counts more samples, fragments or entries than its bytes can be\)$"
    ):
        read_index(path)
    assert peak() - before < 2**26


def test_chapters_are_not_compared(tmp_path: Path) -> None:
    """Of 20,000, which are 7 kB, it took 25 seconds, and FFmpeg's timeout did not end it."""
    began = time.process_time()
    assert len(read_index(chaptered(tmp_path, 20))) == 1
    assert time.process_time() - began < 2


@pytest.mark.parametrize("version", [None, 0, 1])
def test_empty_fragments_of_empty_tracks_take_no_memory(version: int | None, tmp_path: Path) -> None:
    """250 kB of them took 550 MB, and 730 kB in an index 1.1 GB."""
    before = peak(reset=True)
    with pytest.raises(
        Unreadable, match=r"^[^\n]*counts more samples, fragments or entries than its bytes can be\)$"
    ):
        read_index(fragmented(tmp_path, 300, 30_000, version))
    assert peak() - before < 2**26
    assert not counts_too_much(fragmented(tmp_path, 3, 30_000, version))


def test_tables_are_not_read_by_each_track_anew(tmp_path: Path) -> None:
    """450 tracks in 670 kB took 1.5 GB."""
    before = peak(reset=True)
    with pytest.raises(Unreadable, match="counts more samples, fragments or entries than its bytes can be"):
        read_index(overread(tmp_path, 100))
    assert peak() - before < 2**26
    for number, kind in enumerate(
        (b"stts", b"ctts", b"stsc", b"stco", b"co64", b"stss", b"stps", b"sbgp", b"sgpd")
    ):
        for version in range(3) if kind in (b"sbgp", b"sgpd") else (0,):
            about = b"\0" * {b"sbgp": 4 + 4 * (version == 1), b"sgpd": 4 + 4 * version}.get(kind, 0)
            for entries in (2**17 // 10, 2**31):
                path = tmp_path / f"{number}-{version}-{entries}.mp4"
                box = kind + bytes([version, 0, 0, 0]) + about + entries.to_bytes(4, "big")
                path.write_bytes(b"\0\0\0\x0cftypisom" + (len(box) + 4).to_bytes(4, "big") + box)
                assert counts_too_much(path) is (entries == 2**31)


@pytest.mark.parametrize("hidden", ["tags", "samples"])
def test_a_compressed_header_hides_nothing(hidden: str, tmp_path: Path) -> None:
    """100 kB of tags took 6 seconds and 300 kB a minute; 6 kB of samples took gigabytes."""
    path = packed(tagged(tmp_path) if hidden == "tags" else numbered(tmp_path, 6, 20_000_000, 1))
    began = time.process_time()
    with pytest.raises(Unreadable, match=r"^[^\n]*its header is compressed: convert it\)$"):
        read_index(path)
    assert time.process_time() - began < 2


def test_samples_and_cuts_as_people_have_them_are_believed(tmp_path: Path) -> None:
    assert not counts_too_much(numbered(tmp_path, 3, 100_000, 3))
    assert not counts_too_much(make(tmp_path / "b.mp4", "mpeg4"))


def test_what_lies_among_the_samples_counts_nothing(tmp_path: Path) -> None:
    counts = b"stsz" + bytes(4) + b"\0\0\0\1" + b"\xff" * 4
    plain, long = b"\0\0\0\x18mdat", b"\0\0\0\1mdat" + bytes(7) + b"\x20"
    for number, box in enumerate((plain, long, b"\0\0\0\x08mdat", b"\0\0\0\x18free")):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(b"\0\0\0\x0cftypisom" + box + counts + b"\0\0\0\x08free")
        assert counts_too_much(path) is (number > 1)


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
