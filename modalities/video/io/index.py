"""Frame index of a video: presentation times and keyframes, without decoding it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.video.stream import VideoStream
from jaxtyping import Float64, Int64

from modalities.video.io.container import (
    MOST_PIXELS,
    Unreadable,
    Work,
    check_plain,
    frames_of,
    opened,
    packets_of,
    pixel_ratio,
    upright,
)
from modalities.video.io.integrity import is_truncated

# Codecs with one frame per packet. Others (VP8's invisible frames, MPEG-2's fields) are decoded for counting.
_ONE_TO_ONE = {
    "h264", "hevc", "vp9", "av1", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "h263", "flv", "wmv1",
    "wmv2", "ffv1", "mjpeg", "png", "rawvideo", "huffyuv", "ffvhuff", "utvideo", "gif", "prores", "dnxhd",
}  # fmt: skip


_SAME = 1e-6  # tolerance in seconds for equal times
ROUNDING = 0.02
"""Relative tolerance between the mean frame rate and the one a file declares."""


@dataclass(frozen=True, eq=False)
class Index:
    """The frames of one video, in presentation order.

    Attributes:
        times: (T,) presentation times in the stream's own unit; 0, 1, 2, ... if there are none.
        keys: (K,) presentation times of the keyframes, ascending; if empty, frames are counted instead.
        rate: mean frames per second, or None without times.
        unit: seconds per unit of `times`, or None without times.
        height: of the displayed frames, with square pixels and after rotation.
        width: likewise.
        codec: FFmpeg's name of the codec, or "".
        fault: for a salvaged file, why the rest is missing; "" for an intact file.
        max_pixels: limit per frame.
    """

    times: Int64[np.ndarray, " T"]
    keys: Int64[np.ndarray, " K"]
    rate: float | None
    height: int
    width: int
    codec: str = ""
    fault: str = ""
    unit: float | None = None
    max_pixels: int = MOST_PIXELS

    def __len__(self) -> int:
        return len(self.times)

    def seconds(self, rate: float) -> Float64[np.ndarray, " T"]:
        """Presentation time of each frame relative to the first, at `rate` if there are no times."""
        if self.unit is None:
            return np.arange(len(self)) / rate
        return (self.times - self.times[0]) * self.unit


def nearest_frames(
    seconds: Float64[np.ndarray, " T"], place: float, count: int, rate: float
) -> Int64[np.ndarray, " C"]:
    """Indices of the frames nearest to `count` sampling times at `rate` per second.

    The first sampling time is that of a frame, chosen by a relative start in [0, 1) among those for which all times lie
    within the video; if there is none, fewer than `count` are returned.
    """
    count = min(count, num_moments(seconds, rate))
    latest = seconds[-1] + _half_a_frame(seconds, rate) - (count - 1) / rate
    starts = int(np.searchsorted(seconds, latest + _SAME, side="right"))
    moments = seconds[int(place * starts)] + np.arange(count) / rate
    return np.searchsorted((seconds[1:] + seconds[:-1]) / 2, moments - _SAME).astype(np.int64)


def num_moments(seconds: Float64[np.ndarray, " T"], rate: float) -> int:
    """Frames of the longest clip at a rate."""
    return int((seconds[-1] + _half_a_frame(seconds, rate)) * rate + _SAME) + 1


def _half_a_frame(seconds: np.ndarray, rate: float) -> float:
    """Time for which the last frame stays nearest, as if it were displayed as long as others."""
    return float(np.median(np.diff(seconds))) / 2 if len(seconds) > 1 else 0.0


def index_container(path: Path, max_pixels: int = MOST_PIXELS) -> Index:
    """Index a whole video file from its packets, decoding only the first frame.

    If frames cannot be counted by packets, the file is decoded once.

    Raises:
        Unreadable: for any fault of the file.
    """
    try:
        check_plain(path)
        if is_truncated(path):
            raise Unreadable(path, "truncated")
    except OSError as error:
        raise Unreadable(path, "missing", error.strerror or "") from error
    return _demuxed(path, max_pixels) or index_decoded(path, None, max_pixels)


def index_decoded(path: Path, fault: Unreadable | None = None, max_pixels: int = MOST_PIXELS) -> Index:
    """Index a video file by decoding it: completely, or with a known `fault` as far as it decodes."""
    times: list[int | None] = []
    keys: list[int] = []
    shape = (0, 0)
    with _still(fault), opened(path, max_pixels) as (container, stream):
        for frame in frames_of(container, stream, Work(path), salvage=fault is not None):
            if frame.is_corrupt:
                raise Unreadable(path, "damaged", f"frame {len(times)}")
            shape = shape if times else upright(path, frame, pixel_ratio(stream), max_pixels).shape[:2]
            times.append(frame.pts)
            if frame.key_frame and frame.pts is not None:
                keys.append(frame.pts)
        if not times:
            raise Unreadable(path, "damaged", "no frame decodes")
        known = [time for time in times if time is not None]
        if fault is None and len(known) == len(times) and (np.diff(known) > 0).all():
            return _index(stream, known, keys, shape, max_pixels)
        return _index(
            stream, range(len(times)), [], shape, max_pixels, fault.reason if fault else "", counted=True
        )


def _demuxed(path: Path, max_pixels: int) -> Index | None:
    """Index by packets only; None if their times are not those of the frames."""
    with opened(path, max_pixels) as (container, stream):
        times: list[int | None] = []
        keys: list[int] = []
        first = None
        for packet in packets_of(container, stream):
            if packet.is_corrupt:
                raise Unreadable(path, "damaged", f"packet {len(times)}")
            first = first or next(iter(packet.decode()), None)
            if not packet.size:  # the packet that ends the stream
                continue
            if not packet.is_discard:  # cut by an edit list: decoded, but not shown
                times.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
        if first is None or first.is_corrupt:
            raise Unreadable(path, "damaged", "no frame decodes" if times or stream.frames else "no packets")
        known = sorted(time for time in times if time is not None)
        told = bool(known and keys) and len(set(known)) == len(times) and first.pts == known[0] >= min(keys)
        if not told or stream.codec_context.codec.canonical_name not in _ONE_TO_ONE:
            return None
        shape = upright(path, first, pixel_ratio(stream), max_pixels).shape[:2]
        runs = np.diff(np.searchsorted(known, np.unique(keys)), append=len(known))
        Work(path).spend(int(runs.max()) * shape[0] * shape[1])  # to reach the last frame before a keyframe
        return _index(stream, known, keys, shape, max_pixels)


def _index(
    stream: VideoStream,
    times: Iterable[int],
    keys: Iterable[int],
    shape: tuple[int, ...],
    max_pixels: int,
    fault: str = "",
    counted: bool = False,
) -> Index:
    known = np.fromiter(times, np.int64)
    unit = float(stream.time_base) if stream.time_base and not counted else None
    return Index(
        times=known,
        keys=np.unique(np.fromiter(keys, np.int64)),
        rate=_mean_rate(known, unit, float(stream.average_rate) if stream.average_rate else None),
        height=shape[0],
        width=shape[1],
        codec=stream.codec_context.codec.canonical_name,
        fault=fault,
        unit=unit,
        max_pixels=max_pixels,
    )


def _mean_rate(times: Int64[np.ndarray, " T"], unit: float | None, told: float | None) -> float | None:
    """Frames per second by their times, or the declared rate if it agrees up to rounding."""
    if unit is None or len(times) < 2 or times[-1] <= times[0]:
        return told
    lasts = float(times[-1] - times[0]) * unit
    mean = (len(times) - 1) / lasts
    told_lasts = (len(times) - 1) / told if told else np.inf
    return told if abs(told_lasts - lasts) < max(ROUNDING * lasts, 2 * unit) else mean


@contextmanager
def _still(fault: Unreadable | None) -> Iterator[None]:
    """Keep the reason "truncated" for a file, whatever other faults its remaining part has."""
    try:
        yield
    except Unreadable as error:
        raise fault or error from error
