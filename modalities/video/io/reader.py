"""Reads clips from videos: exactly the frames start + stride * i in presentation order."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Int64, UInt8

from modalities.video.io.container import (
    MOST_PIXELS,
    Unreadable,
    Work,
    frames_of,
    opened,
    pixel_ratio,
    upright,
)
from modalities.video.io.frame_folders import (
    ARRAYS,
    index_array,
    index_pictures,
    list_pictures,
    may_take,
    read_array,
    read_pictures,
    size_of,
)
from modalities.video.io.index import Index, index_container, index_decoded

BACKENDS = ("pyav", "decord")
BROKEN = ("truncated", "damaged")
"""Reasons for which the rest can be salvaged."""

_AHEAD = 16  # decoder delay in frames: skipping fewer saves nothing


class _Lost(Exception):  # noqa: N818
    """Seeking did not arrive where the index says."""


def read_index(path: Path, salvage: bool = False, max_pixels: int = MOST_PIXELS) -> Index:
    """Find the frames of a video: a file, a folder of pictures, or an array (.npy, .npz).

    Args:
        path: the video.
        salvage: for a truncated or damaged file, index the frames that decode and set `fault`.
        max_pixels: limit per frame.

    Raises:
        Unreadable: for any other fault, with one reason of `REASONS`.
    """
    try:
        if path.is_dir():
            return index_pictures(path, None, max_pixels)[0]
        read = index_array if path.suffix.lower() in ARRAYS else index_container
        return read(path, max_pixels)
    except Unreadable as fault:
        if not salvage or fault.reason not in BROKEN:
            raise
        return salvaged_index(path, fault, max_pixels)


def salvaged_index(path: Path, fault: Unreadable, max_pixels: int = MOST_PIXELS) -> Index:
    """Index the decodable frames of a truncated or damaged video; raises `fault` if there are none."""
    if path.is_dir():
        return index_pictures(path, fault, max_pixels)[0]
    if path.suffix.lower() in ARRAYS:
        raise fault
    return index_decoded(path, fault, max_pixels)


def read_clip(
    path: Path,
    start: int,
    count: int,
    stride: int = 1,
    *,
    index: Index | None = None,
    backend: str = "pyav",
    salvage: bool = False,
    work: Work | None = None,
) -> UInt8[np.ndarray, "T H W 3"]:
    """Read frames start, start + stride, ... of a video as 8-bit RGB, as a player shows them.

    Seeks to a keyframe and selects by presentation time. If the frames decoded on the way are not those of the index,
    frames are counted from the start instead, so that the result always equals sequential decoding.

    Args:
        path: a video file, a folder of images, or an array.
        start: index of the first frame, from 0.
        count: number of frames.
        stride: distance between frames.
        index: result of `read_index`, which is otherwise called here.
        backend: "decord" decodes video files with that package, if installed.
        salvage: count only frames that decode, and return fewer than `count` if necessary.
        work: decoding budget shared with other calls; None: that of one file.

    Raises:
        Unreadable: if the video does not have these frames.
    """
    if start < 0 or count < 1 or stride < 1:
        raise ValueError(
            f"start, count - 1 and stride - 1 must not be negative, got {start}, {count}, {stride}"
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend must be pyav or decord, got {backend}")
    index = index or read_index(path, salvage)
    wanted = start + stride * np.arange(count)
    try:
        return _read(path, _within(path, wanted, index, bool(index.fault)), index, backend, work)
    except Unreadable as error:
        if not salvage or index.fault or error.reason not in BROKEN:
            raise
        index = salvaged_index(path, error, index.max_pixels)
        return _read(path, _within(path, wanted, index, True), index, backend, work)


def read_numbers(
    path: Path, numbers: Int64[np.ndarray, " T"], *, index: Index, backend: str = "pyav"
) -> UInt8[np.ndarray, "T H W 3"]:
    """Read frames of a video by ascending indices; see `read_clip`.

    Raises:
        Unreadable: if the video does not have these frames.
    """
    return _read(path, _within(path, numbers, index, False), index, backend)


def _within(path: Path, wanted: np.ndarray, index: Index, shorten: bool) -> np.ndarray:
    """The wanted frames that exist: all, unless the clip may be shortened."""
    there = wanted[wanted < len(index)]
    if len(there) == len(wanted) or (shorten and len(there)):
        return there
    raise Unreadable(path, "too short", f"{len(index)} frames, the clip needs {wanted[-1] + 1}")


def _read(
    path: Path, wanted: Int64[np.ndarray, " T"], index: Index, backend: str, work: Work | None = None
) -> np.ndarray:
    if path.is_dir():
        fault = Unreadable(path, index.fault) if index.fault else None
        files = index_pictures(path, fault, index.max_pixels)[1] if fault else list_pictures(path)
        chosen = [files[i] for i in _within(path, wanted, index, False)]
        _check_size(path, len(wanted), (index.height, index.width), chosen)
        return read_pictures(path, chosen, index.max_pixels)
    if path.suffix.lower() in ARRAYS:
        return read_array(path, wanted.tolist())
    _check_size(path, len(wanted), (index.height, index.width), [path])
    if backend == "decord":
        frames = _decord(path, wanted, index)
        if frames.shape[1:3] == (index.height, index.width):
            return frames  # decord ignores the pixel aspect ratio
    work = work or Work(path)
    if not len(index.keys):
        return _counted(path, wanted, index, work)
    # MPEG-TS seeks by decoding times and misses the keyframe, unless the target is the one before.
    for ahead in (0, 1):
        with suppress(_Lost, Unreadable):
            return _sought(path, wanted, index, ahead, work)
    # Some files are not seekable, and some frames depend on data before a keyframe (gradual refresh).
    return _counted(path, wanted, index, work)


def _check_size(path: Path, count: int, size: Sequence[int], files: list[Path]) -> None:
    if count * size[0] * size[1] * 3 > may_take(size_of(files)):
        raise Unreadable(path, "too large", f"{count} frames of {size[1]} x {size[0]}")


def _counted(path: Path, wanted: np.ndarray, index: Index, work: Work) -> np.ndarray:
    """Select frames by index, decoding from the start: slow, but the reference."""

    def picked() -> Iterator[np.ndarray]:
        chosen, found, salvage = set(wanted.tolist()), 0, bool(index.fault)
        with opened(path, index.max_pixels) as (container, stream):
            ratio = pixel_ratio(stream)
            for number, frame in enumerate(frames_of(container, stream, work, salvage)):
                if frame.is_corrupt and not salvage:
                    raise Unreadable(path, "damaged", f"frame {number}")
                if number in chosen:
                    found += 1
                    yield upright(path, frame, ratio, index.max_pixels)
                if number == wanted[-1]:
                    return
        raise Unreadable(path, "too short", f"{found} of {len(wanted)} frames of the clip decode")

    return _stacked(path, picked(), len(wanted))


def _sought(path: Path, wanted: np.ndarray, index: Index, ahead: int, work: Work) -> np.ndarray:
    """Select frames by presentation time, seeking to the keyframe before them or `ahead` keyframes earlier."""
    key = np.searchsorted(index.keys, index.times[wanted], "right") - 1
    first = np.searchsorted(index.times, index.keys[key])
    leaps = np.flatnonzero(first[1:] > wanted[:-1] + _AHEAD) + 1

    def picked() -> Iterator[np.ndarray]:
        with opened(path, index.max_pixels) as (container, stream):
            for run in np.split(np.arange(len(wanted)), leaps):
                container.seek(int(index.keys[max(key[run[0]] - ahead, 0)]), stream=stream)
                times = index.times[first[run[0]] :]
                for frame in _run(container, stream, work, times, wanted[run] - first[run[0]]):
                    yield upright(path, frame, pixel_ratio(stream), index.max_pixels)

    return _stacked(path, picked(), len(wanted))


def _run(
    container: InputContainer, stream: VideoStream, work: Work, times: np.ndarray, wanted: np.ndarray
) -> Iterator[VideoFrame]:
    """Decode from a keyframe on: `times` are the expected times, `wanted` the indices in them to keep."""
    chosen, last, number = set(wanted.tolist()), int(wanted[-1]), 0
    expected = times.tolist()
    for frame in frames_of(container, stream, work):
        time = frame.pts
        if time is not None and time < expected[0]:
            continue  # shown before the keyframe, though decoded after it
        if number == len(expected) or time != expected[number] or frame.is_corrupt:
            raise _Lost
        if number in chosen:
            yield frame
        if number == last:
            return
        number += 1
    raise _Lost


def _stacked(path: Path, pictures: Iterator[np.ndarray], count: int) -> np.ndarray:
    """Stack `count` frames into one array, copying each at once; a stream may change its size midway."""
    first = next(pictures)
    _check_size(path, count, first.shape, [path])
    frames = np.empty((count, *first.shape), np.uint8)
    frames[0] = first
    for number in range(1, count):
        if (picture := next(pictures)).shape != first.shape:
            raise Unreadable(path, "damaged", "frames differ in size")
        frames[number] = picture
    return frames


def _decord(path: Path, wanted: np.ndarray, index: Index) -> np.ndarray:
    """The same frames by decord, which repeats frames of edit lists: used only if both count the same number."""
    try:
        import decord
    except ImportError as error:
        raise ValueError(
            "backend must be pyav where the package decord is not installed, got decord"
        ) from error
    if index.fault:
        raise ValueError("backend must be pyav to salvage frames, got decord")
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) == len(index):
            return reader.get_batch(wanted.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise Unreadable(path, "damaged", "decord cannot read it") from error
    raise Unreadable(path, "disagrees", f"{len(reader)} for {len(index)}")
