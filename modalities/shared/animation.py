"""Frames that move as files to look at, MP4 and GIF; each written whole or not at all."""

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
    """Write an H.264 video that plays everywhere (yuv420p, BT.601, index first); lossy, so to look at only.

    An odd height or width is made even by repeating the last row or column, since colour has half the
    resolution. `crf` is x264's quality, from 0 (best) to 51.
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
    """Write an endless GIF: 256 colours a frame, times in hundredths of a second that keep the mean rate.

    Viewers slow frames down that are shorter than 0.02 s, so above 50 frames per second it plays slower.
    """
    check_frames(frames, fps)
    count = np.arange(len(frames) + 1)
    ends = np.maximum(np.round(100 / fps * count), 2 * count)
    times = np.diff(ends).clip(max=65_535).astype(int) * 10
    first, *others = (Image.fromarray(frame) for frame in frames)
    # Drawn in memory first: Pillow seeks in what it writes.
    drawn = io.BytesIO()
    first.save(drawn, "GIF", save_all=True, append_images=others, duration=times.tolist(), loop=0)
    with replacing(path) as stream:
        stream.write(drawn.getvalue())


def check_frames(frames: np.ndarray, fps: float) -> None:
    """Raises ValueError unless they are a clip of bytes, at a rate that files can have."""
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
    """A clip as a file, made in memory: FFmpeg tells traces on the terminal where a disk is full, and goes on.

    Args:
        form, codec, pixels: FFmpeg's names of the container, the encoder and the layout of pixels.
        options: of the encoder.
    """
    container_options = {"movflags": "faststart"} if form == "mp4" else {}
    drawn = io.BytesIO()
    with av.open(
        # Of an MP4 the index is at first at the end, and what is before it is read again to move it.
        drawn, "w", format=form, options=container_options, io_open=lambda *_: io.BytesIO(drawn.getvalue())
    ) as container:  # fmt: skip
        # 1001 keeps 30000/1001 and the like exact.
        rate = Fraction(fps).limit_denominator(1001)
        video = cast(VideoStream, container.add_stream(codec, rate, dict(options)))
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], pixels
        if pixels == "yuv420p":
            # What FFmpeg converts to; untagged, a player takes large pictures for BT.709, in other colours.
            video.codec_context.colorspace = Colorspace.SMPTE170M
            video.codec_context.color_range = ColorRange.MPEG
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return drawn.getvalue()
