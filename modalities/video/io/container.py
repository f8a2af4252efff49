"""An open video file: its packets and frames, with every fault as one sentence with a reason."""

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
from modalities.video.io.kinds import MP4, OTHERS, container_of
from modalities.video.io.samples import counts_too_much, has_packed_header
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
"""Reasons why a video is not read -> what it must be and what was found."""

# Without this, a text file named .mp4 could be a playlist that opens other files or URLs.
_GUARD = {"protocol_whitelist": "file"}


MOST_PIXELS = 37_750_000
"""Default limit of a frame, above 8K: otherwise one flipped bit in a header could demand gigabytes."""
_LARGEST_PIECE = 2**29
"""Largest single allocation of FFmpeg, in bytes: otherwise a 200-byte MP4 can declare gigabytes of tables."""
LONGEST = 30.0
"""Timeout in seconds to open a file or read a packet: FFmpeg's handling of header tags is quadratic."""
DENSE = 2**14
"""Most pixels decoded per byte of a file (of at least a megabyte) before the requested frames come: 12 seconds of
static frames, of which a GIF needs 22 bytes each. Moving content has at most a tenth as many pixels per byte."""
MOST_RATIO, LEAST_RATIO = 8.0, 0.005
"""Largest plausible pixel aspect ratio, and the smallest deviation from 1 that is corrected."""


class Unreadable(ValueError):  # noqa: N818 (a state of the file, which policies catch)
    """A video that cannot be read as requested: `reason` is a key of `REASONS`, `path` the file."""

    def __init__(self, path: Path, reason: str, detail: str = "") -> None:
        what = REASONS[reason] + (f" ({printable(detail)})" if detail else "")
        super().__init__(f"{printable(path)} must be {what}")
        self.path, self.reason, self.detail = path, reason, detail

    def __reduce__(self) -> tuple[type["Unreadable"], tuple[Path, str, str]]:
        return Unreadable, (self.path, self.reason, self.detail)


class Work:
    """Remaining decoding budget of one request to a file, in pixels (`DENSE`)."""

    def __init__(self, path: Path) -> None:
        size = os.path.getsize(path) if path.exists() else 0
        self.path, self.left = path, DENSE * max(size, 2**20)

    def spend(self, pixels: int) -> None:
        """Raise Unreadable if the budget is exceeded."""
        self.left -= pixels
        if self.left < 0:
            raise Unreadable(self.path, "too large", f"over {DENSE} pixels a byte lie between two keyframes")


def check_plain(path: Path) -> None:
    """Raise Unreadable for what is not a regular file, is empty, or is a tiled photo, of which FFmpeg reads the first
    tile only; OSError for what cannot be opened."""
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

    Frames of more than `max_pixels` are refused by their header, and by the decoder if the header says less.

    FFmpeg's errors, here and in the body, become `Unreadable`.
    """
    reason = "not a video"
    _bound_memory()
    with suppress(OSError):  # FFmpeg reports it
        check_plain(path)
        if has_endless_tables(path):
            raise Unreadable(
                path, "not a video", f"more than {MOST_ENTRIES} tags, chapters and cues out of order"
            )
        if has_packed_header(path):
            raise Unreadable(path, "not a video", "its header is compressed: convert it")
        if counts_too_much(path):
            raise Unreadable(
                path, "not a video", "it counts more samples, fragments or entries than its bytes can be"
            )
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
            # With slice threads FFmpeg does not flag concealed pictures; parallelism is over files.
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
    """Read all packets of a file; any fault is reported where the file is opened."""
    with (
        suppress(av.FFmpegError, IndexError),
        _source(path) as source,
        av.open(source, options=_guard(path), metadata_errors="replace") as container,
    ):
        for _ in container.demux():
            pass


def check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Raise Unreadable for a frame with more pixels."""
    if width * height > max_pixels:
        raise Unreadable(
            path,
            "too large",
            f"frames of {width} x {height}, where {max_pixels / 1e6:g} megapixels are allowed",
        )


@cache
def _bound_memory() -> None:
    with suppress(AttributeError, OSError):  # PyAV does not expose the setting, but ships the library
        bound = ctypes.CDLL(av.frame.__file__).av_max_alloc
        bound.argtypes, bound.restype = (ctypes.c_size_t,), None
        bound(_LARGEST_PIECE)


def _guard(path: Path) -> dict[str, str]:
    """Options that restrict FFmpeg to files, to the container that their first bytes say, and to what is used of it."""
    try:
        kind = container_of(path)
    except (OSError, ValueError):  # which FFmpeg tells
        kind = OTHERS
    chapters = {"ignore_chapters": "1"} if kind == MP4 else {}  # for 20,000 of a file of 7 kB it took minutes
    return {**_GUARD, "format_whitelist": kind, **chapters}


def _source(path: Path) -> AbstractContextManager[Any]:
    """What FFmpeg opens: a name with the file protocol, or a stream if the name is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return open_regular(path)
    return nullcontext(f"file:{path}")


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """Read packets from the current position; the last one is empty and flushes the decoder."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except IndexError as error:  # PyAV fails on a stream that first appears in mid-file
            raise av.InvalidDataError(0, "another stream begins in the middle") from error
        yield packet


def frames_of(
    container: InputContainer, stream: VideoStream, work: Work, salvage: bool = False
) -> Iterator[VideoFrame]:
    """Decode from the current position, in presentation order, within the budget `work`.

    With `salvage`, frames that do not decode, or only with concealment, are left out, and a truncated file just ends.
    Otherwise FFmpeg's errors are passed on, and the caller must check frames (`is_corrupt`); FFV1's checksums are
    verified here, since FFmpeg conceals such damage without a flag.
    """
    packets, decode = packets_of(container, stream), Decoder(stream)
    # Whether checksums were found so far.
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
    """Pixel aspect ratio (width / height) from the container or the codec; 1 if missing or implausible."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if 1 / MOST_RATIO <= ratio <= MOST_RATIO and abs(ratio - 1) > LEAST_RATIO else 1.0


def upright(
    path: Path, frame: VideoFrame, ratio: float = 1.0, max_pixels: int = MOST_PIXELS
) -> UInt8[np.ndarray, "H W 3"]:
    """The frame as a player shows it: RGB, rotated and mirrored by the display matrix; a view of FFmpeg's memory.

    Non-square pixels (`pixel_ratio`) are resized in width, keeping the rows; transparent areas become white, as for
    images.

    The matrix has x' = a x + c y and y' = b x + d y in 16.16 fixed point, stored as a b u c d v x y w. PyAV's
    `rotation` is only the angle and mistakes a mirror image for a half turn.

    Raises:
        Unreadable: if the matrix is not a multiple of a quarter turn.
    """
    # By default FFmpeg starts threads for each frame, ten times as slow for small ones. And `frame.side_data` makes a
    # reference cycle, which keeps the frame, its memory and those threads until a garbage collection.
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
    """The first video stream that is not cover art."""
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
