"""Writes clips to look at, as MP4 or GIF; each file atomically."""

import io
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image

from ditmoe.checkpoint import replacing


def write_mp4(path: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: float, crf: int = 18) -> None:
    """Write an H.264 video that plays everywhere (yuv420p, BT.601, index first); lossy, so for viewing only.

    An odd height or width is made even by repeating the last row or column, since chroma is subsampled. `crf` is
    x264's quality, from 0 (best) to 51.
    """
    check_frames(frames, fps)
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must lie in [0, 51], got {crf}")
    even = ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0))
    options = {"crf": str(crf), "preset": "medium"}
    film = encoded(np.pad(frames, even, "edge"), fps, "mp4", "libx264", "yuv420p", options)
    with replacing(path) as stream:
        stream.write(film)


def write_gif(path: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
    """Write a looping GIF: 256 colours per frame, delays in hundredths of a second that keep the mean rate.

    Viewers slow down frames shorter than 0.02 s, so above 50 frames per second it plays slower.
    """
    check_frames(frames, fps)
    count = np.arange(len(frames) + 1)
    ends = np.maximum(np.round(100 / fps * count), 2 * count)
    times = np.diff(ends).clip(max=65_535).astype(int) * 10
    first, *others = (Image.fromarray(frame) for frame in frames)
    # Encoded in memory first: Pillow seeks in its output.
    drawn = io.BytesIO()
    first.save(drawn, "GIF", save_all=True, append_images=others, duration=times.tolist(), loop=0)
    with replacing(path) as stream:
        stream.write(drawn.getvalue())


def check_frames(frames: np.ndarray, fps: float) -> None:
    """Raise ValueError unless these are uint8 frames, at a frame rate that files can store."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"frames must be uint8 of (T, H, W, 3), got {frames.dtype} of {frames.shape}")
    if not 0.001 <= fps <= 1000:
        raise ValueError(f"fps must lie in [0.001, 1000], got {fps}")


def encoded(
    frames: np.ndarray,
    fps: float,
    form: str,
    codec: str,
    pixels: str,
    options: Mapping[str, str],
) -> bytes:
    """Encode a clip to a file in memory: on a full disk, FFmpeg prints a trace and goes on.

    Args:
        form, codec, pixels: FFmpeg's names of the container, the encoder and the pixel format.
        options: options of the encoder.
    """
    # Without a random number in Matroska's head, equal clips are equal files.
    container_options = {"fflags": "bitexact"} | ({"movflags": "faststart"} if form == "mp4" else {})
    drawn = io.BytesIO()
    with av.open(
        # An MP4's index is first written at the end; to move it to the front, FFmpeg reads the file back.
        drawn, "w", format=form, options=container_options, io_open=lambda *_: io.BytesIO(drawn.getvalue())
    ) as container:  # fmt: skip
        # 1001 keeps 30000/1001 and the like exact.
        rate = Fraction(fps).limit_denominator(1001)
        video = cast(VideoStream, container.add_stream(codec, rate, dict(options)))
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], pixels
        if pixels == "yuv420p":
            # FFmpeg converts to BT.601; untagged, players assume BT.709 for large frames, with other colours.
            video.codec_context.colorspace = Colorspace.SMPTE170M
            video.codec_context.color_range = ColorRange.MPEG
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return drawn.getvalue()
