"""One video file, open: its packets and frames, with every fault as one sentence and a reason."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import av
import av.frame
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

from ditmoe.outside import open_regular, printable
from modalities.shared.decode import HEIC
from modalities.video.io.integrity import sums_fit
from modalities.video.io.kinds import OTHERS, container_of
from modalities.video.io.samples import counts_too_much
from modalities.video.io.tables import MOST_ENTRIES, has_endless_tables
from modalities.video.io.transparent import Decoder, NotShown, has_alpha, on_white
from modalities.video.io.trial import is_endless

REASONS = {
    "missing": "an existing file, got nothing there",
    "special": "a plain file or a folder, got a pipe, a device, a socket or all but holes",
    "too large": "small enough for the memory, got more",
    "empty": "a video, got an empty one",
    "not a video": "a video, got something else or a damaged header",
    "still": "a video, got a still picture of a phone (HEIC): convert it to PNG or JPEG",
    "no video stream": "a video, got a file without pictures",
    "no decoder": "a video that FFmpeg decodes, got a codec it does not know",
    "truncated": "a whole video, got a truncated one",
    "damaged": "a whole video, got a damaged one",
    "odd rotation": "a video turned by quarter turns, got another display matrix",
    "turned": "upright where it is transparent, got one that is to be turned",
    "too short": "long enough for the clip, got too few frames",
    "disagrees": "read alike by both backends, got another number of frames from decord",
}
"""Why a video is not read: reason -> what it must be and what came."""

# Without these a text file named .mp4 may be a play list that opens other files or addresses.
_GUARD = {"protocol_whitelist": "file"}


MOST_PIXELS = 37_750_000
"""Of a frame, where no one says otherwise, which is 8K: one flipped bit in a header asks for gigabytes else."""
_LARGEST_PIECE = 2**29
"""Bytes that FFmpeg may take at a time: an MP4 of 200 bytes counts samples for gigabytes of tables otherwise."""
LONGEST = 30.0
"""Seconds until a file is open, or a packet read: FFmpeg compares each tag of a header with all those before."""
DENSE = 2**14
"""Pixels that may be decoded for each byte of a file, or of a megabyte, before what is asked for comes: 12 seconds of
frames in which nothing moves, of which a GIF needs 22 bytes each. What moves has at most a tenth a byte."""
MOST_RATIO, LEAST_RATIO = 8.0, 0.005
"""Widths of a pixel that are believed, and by how much it must differ from a square to be seen."""


class Unreadable(ValueError):  # noqa: N818 (a state of the file, which policies catch)
    """A video that cannot be read as it was asked for: `reason` is a key of `REASONS`, `path` the file."""

    def __init__(self, path: Path, reason: str, detail: str = "") -> None:
        what = REASONS[reason] + (f" ({printable(detail)})" if detail else "")
        super().__init__(f"{printable(path)} must be {what}")
        self.path, self.reason, self.detail = path, reason, detail

    def __reduce__(self) -> tuple[type["Unreadable"], tuple[Path, str, str]]:
        return Unreadable, (self.path, self.reason, self.detail)


class Work:
    """What may still be decoded of a file at once, in pixels (`DENSE`)."""

    def __init__(self, path: Path) -> None:
        size = os.path.getsize(path) if path.exists() else 0
        self.path, self.left = path, DENSE * max(size, 2**20)

    def spend(self, pixels: int) -> None:
        """Raises Unreadable if they are too many."""
        self.left -= pixels
        if self.left < 0:
            raise Unreadable(self.path, "too large", f"over {DENSE} pixels a byte lie between two keyframes")


def check_plain(path: Path) -> None:
    """Raises Unreadable for what is no plain file, has nothing in it, or is a photo in tiles, of which FFmpeg has the
    first; OSError for what cannot be opened."""
    try:
        with open_regular(path) as stream:
            head = stream.peek(16)
    except ValueError as error:
        raise Unreadable(path, "special") from error
    if not head:
        raise Unreadable(path, "empty")
    if HEIC.match(head):
        raise Unreadable(path, "still")


@contextmanager
def opened(path: Path, max_pixels: int = MOST_PIXELS) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the first video stream of a file and close it whatever happens.

    Frames of more than `max_pixels` are refused by what the header says of them, and by the decoder where it says less.

    FFmpeg's errors, here and in the body, leave as `Unreadable`.
    """
    reason = "not a video"
    _bound_memory()
    with suppress(OSError):  # which FFmpeg tells
        check_plain(path)
        if has_endless_tables(path):
            raise Unreadable(
                path, "not a video", f"more than {MOST_ENTRIES} tags, chapters and cues out of order"
            )
        if counts_too_much(path):
            raise Unreadable(path, "not a video", "it counts more samples than its bytes can be")
        if is_endless(path, partial(_read_through, path)):
            raise Unreadable(
                path, "not a video", "its packets are not read in the time that whole files take"
            )
    try:
        with (
            _source(path) as source,
            av.open(source, options=_guard(path), metadata_errors="replace", timeout=LONGEST) as container,
        ):
            stream = _first_video(path, container)
            # With slices in threads FFmpeg does not flag what it makes up; files are the parallel unit.
            stream.thread_type = "NONE"
            check_size(path, stream.codec_context.width, stream.codec_context.height, max_pixels)
            stream.codec_context.options = {"max_pixels": str(max_pixels)}
            reason = "damaged"
            yield container, stream
    except av.ExitError as error:
        raise Unreadable(
            path, "not a video", f"more than {LONGEST:g} seconds to open it or to go on"
        ) from error
    except av.FFmpegError as error:
        raise Unreadable(path, _state(path) or reason, error.strerror or type(error).__name__) from error


def _read_through(path: Path) -> None:
    """Read all packets of a file; whatever else is wrong with it, whoever opens it says."""
    with (
        suppress(av.FFmpegError, IndexError),
        _source(path) as source,
        av.open(source, options=_guard(path), metadata_errors="replace") as container,
    ):
        for _ in container.demux():
            pass


def check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Raises Unreadable for a frame of more pixels."""
    if width * height > max_pixels:
        raise Unreadable(
            path,
            "too large",
            f"frames of {width} x {height}, where {max_pixels / 1e6:g} megapixels are allowed",
        )


@cache
def _bound_memory() -> None:
    with suppress(AttributeError, OSError):  # PyAV has no word for it, but brings the library that has
        bound = ctypes.CDLL(av.frame.__file__).av_max_alloc
        bound.argtypes, bound.restype = (ctypes.c_size_t,), None
        bound(_LARGEST_PIECE)


def _guard(path: Path) -> dict[str, str]:
    """What FFmpeg may open: files, of the container that the first bytes tell."""
    try:
        kind = container_of(path)
    except (OSError, ValueError):  # which FFmpeg tells
        kind = OTHERS
    return {**_GUARD, "format_whitelist": kind}


def _source(path: Path) -> AbstractContextManager[Any]:
    """What FFmpeg opens: a name, which its prefix keeps from being taken for a protocol; it knows UTF-8 alone."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return open_regular(path)
    return nullcontext(f"file:{path}")


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """Read packets from where the container stands; the last one is empty and ends the stream."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except IndexError as error:  # PyAV stumbles over a stream that first shows itself in the middle
            raise av.InvalidDataError(0, "another stream begins in the middle") from error
        yield packet


def frames_of(
    container: InputContainer, stream: VideoStream, work: Work, salvage: bool = False
) -> Iterator[VideoFrame]:
    """Decode from where the container stands, in presentation order, for as long as there is `work` left.

    With `salvage`, what does not decode, or only with pictures concealed, is left out; the end comes where
    the file breaks off. Otherwise FFmpeg's errors come through, and frames are the caller's to check
    (`is_corrupt`); FFV1's check sums are looked at here, since FFmpeg conceals what they tell of without a flag.
    """
    packets, decode = packets_of(container, stream), Decoder(stream)
    # Whether there were sums so far.
    summed = False if stream.codec_context.codec.canonical_name == "ffv1" else None
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError:
            if salvage:
                return
            raise
        try:
            if summed is not None and packet.size:
                fit = sums_fit(bytes(packet))
                if fit is False or (summed and fit is None):
                    raise av.InvalidDataError(0, "a check sum does not fit")
                summed = summed or fit is True
            frames = decode(packet)
        except NotShown as error:
            raise Unreadable(work.path, error.reason, error.detail) from error
        except av.FFmpegError:
            if not salvage:
                raise
            continue
        work.spend(sum(frame.width * frame.height for frame in frames))
        yield from (frame for frame in frames if not (salvage and frame.is_corrupt))


def pixel_ratio(stream: VideoStream) -> float:
    """Width of a pixel by its height, as the container or the codec says; 1 where neither does, or none believes it."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if 1 / MOST_RATIO <= ratio <= MOST_RATIO and abs(ratio - 1) > LEAST_RATIO else 1.0


def upright(
    path: Path, frame: VideoFrame, ratio: float = 1.0, max_pixels: int = MOST_PIXELS
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture as a player shows it: RGB, turned and mirrored by the display matrix; a view of FFmpeg's memory.

    Pixels that are not square (`pixel_ratio`) make it wider or narrower, its rows stay; what is transparent lies on
    white, as of a picture.

    The matrix has x' = a x + c y and y' = b x + d y in 16.16 fixed point, stored as a b u c d v x y w. PyAV's
    `rotation` is the angle alone and takes a mirror image for a half turn.

    Raises:
        Unreadable: if the matrix is no quarter turn.
    """
    # With its default, FFmpeg starts threads for each frame, which takes ten times as long for small ones. And
    # `frame.side_data` keeps its container in the frame and so the frame, its memory and those threads, until a
    # collection of garbage.
    clear = has_alpha(frame.format.name)
    kind, channels = ("rgba", 4) if clear else ("rgb24", 3)
    if ratio == 1:
        shown = frame.reformat(format=kind, threads=1)
    else:
        width = max(1, round(frame.width * ratio))
        check_size(path, width, frame.height, max_pixels)
        shown = frame.reformat(width, frame.height, kind, interpolation="BICUBIC", threads=1)
    plane = shown.planes[0]
    picture = np.ndarray(
        (shown.height, shown.width, channels),
        np.uint8,
        cast(bytes, plane),
        strides=(plane.line_size, channels, 1),
    )
    if clear:
        picture = on_white(picture)
    beside = SideDataContainer(frame)  # type: ignore[call-arg]  # PyAV's stub has no constructor
    matrix = beside.get("DISPLAYMATRIX") if len(beside) else None
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(cast(bytes, matrix), np.int32)[:5].tolist()
    if a and d and not b and not c:
        return picture[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1]
    if b and c and not a and not d:
        return picture.swapaxes(0, 1)[:: 1 if b > 0 else -1, :: 1 if c > 0 else -1]
    raise Unreadable(path, "odd rotation", f"{frame.rotation} degrees")


def _first_video(path: Path, container: InputContainer) -> VideoStream:
    """The first stream of pictures that is not the cover of a song."""
    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        if stream.codec_context is None:
            raise Unreadable(path, "no decoder")
        return stream
    raise Unreadable(path, "no video stream")


def _state(path: Path) -> str | None:
    if not path.exists():
        return "missing"
    return None if os.path.getsize(path) else "empty"
