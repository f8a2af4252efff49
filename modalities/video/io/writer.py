"""Clips as files: MP4 and GIF to look at, FFV1 and PNG to measure; each written whole or not at all."""

import io
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import IO, cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image

from ditmoe.checkpoint import replacing
from modalities.video.io.container import opened
from modalities.video.io.frame_folders import ARRAYS, list_pictures

SUFFIXES = (".mp4", ".gif", ".mkv")
"""File endings of `write_mp4`, `write_gif` and `write_ffv1`."""

_LOSSLESS = {"ffv1", "rawvideo", "png", "apng", "huffyuv", "ffvhuff", "utvideo", "magicyuv", "bmp"}


def write_mp4(path: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: float, crf: int = 18) -> None:
    """Write an H.264 video that plays everywhere (yuv420p, BT.601, index first); lossy, so to look at only.

    An odd height or width is made even by repeating the last row or column, since colour has half the
    resolution. `crf` is x264's quality, from 0 (best) to 51.
    """
    _check(frames, fps)
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must lie in [0, 51], got {crf}")
    even = ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0))
    with replacing(path) as stream:
        options = {"crf": str(crf), "preset": "medium"}
        _encode(stream, np.pad(frames, even, "edge"), fps, "mp4", "libx264", "yuv420p", options)


def write_ffv1(path: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
    """Write a lossless Matroska video (FFV1, RGB): reading gives the same frames."""
    _check(frames, fps)
    with replacing(path) as stream:
        # Each frame stands alone, so that any can be sought; the check sums tell other readers of damage.
        # Pictures of a few pixels have no room for the slices that have the sums.
        level = {"level": "3", "slicecrc": "1"} if min(frames.shape[1:3]) >= 8 else {"level": "1"}
        _encode(stream, frames, fps, "matroska", "ffv1", "bgr0", level | {"g": "1"})


def write_gif(path: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
    """Write an endless GIF: 256 colours a frame, times in hundredths of a second that keep the mean rate.

    Viewers slow frames down that are shorter than 0.02 s, so above 50 frames per second it plays slower.
    """
    _check(frames, fps)
    count = np.arange(len(frames) + 1)
    ends = np.maximum(np.round(100 / fps * count), 2 * count)
    times = np.diff(ends).clip(max=65_535).astype(int) * 10
    first, *others = (Image.fromarray(frame) for frame in frames)
    # Drawn in memory first: Pillow seeks in what it writes.
    drawn = io.BytesIO()
    first.save(drawn, "GIF", save_all=True, append_images=others, duration=times.tolist(), loop=0)
    with replacing(path) as stream:
        stream.write(drawn.getvalue())


def is_lossless(path: Path) -> bool:
    """Whether a video can be told to be exactly what was written: a lossless codec with all colours kept.

    FFV1, raw, PNG, Huffman codecs and the like in RGB or grey, arrays, and folders of nothing but PNG. A
    lossless H.264 cannot be told from another one, and FFV1 in yuv420p has lost colour: both count as lossy.

    Raises:
        Unreadable: if it is no video.
    """
    if path.is_dir():
        files = list_pictures(path)
        return bool(files) and all(file.suffix.lower() == ".png" for file in files)
    if path.suffix.lower() in ARRAYS and path.is_file():
        return True
    with opened(path) as (_, stream):
        context = stream.codec_context
        if context.codec.canonical_name not in _LOSSLESS or context.format is None:
            return False
        grey = context.format.name.startswith("gray")
        return (context.format.is_rgb or grey) and all(part.bits >= 8 for part in context.format.components)


def _check(frames: np.ndarray, fps: float) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"frames must be uint8 of (T, H, W, 3), got {frames.dtype} of {frames.shape}")
    if not 0.001 <= fps <= 1000:
        raise ValueError(f"fps must lie in [0.001, 1000], got {fps}")


def _encode(
    stream: IO[bytes],
    frames: np.ndarray,
    fps: float,
    form: str,
    codec: str,
    pixels: str,
    options: Mapping[str, str],
) -> None:
    container_options = {"movflags": "faststart"} if form == "mp4" else {}
    with av.open(stream, "w", format=form, options=container_options) as container:
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
