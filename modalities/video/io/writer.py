"""Writes clips: MP4 and GIF for viewing, FFV1 for evaluation; each file atomically."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ditmoe.checkpoint import replacing
from modalities.shared import enlarged, lay_out
from modalities.shared.animation import check_frames, encoded, write_gif, write_mp4
from modalities.video.io.container import opened
from modalities.video.io.frame_folders import ARRAYS, list_pictures

__all__ = ["SUFFIXES", "is_lossless", "write_animation", "write_clip", "write_ffv1", "write_gif", "write_mp4"]
SUFFIXES = (".mp4", ".gif", ".mkv")
"""File suffixes of `write_mp4`, `write_gif` and `write_ffv1`."""

_LOSSLESS = {"ffv1", "rawvideo", "png", "apng", "huffyuv", "ffvhuff", "utvideo", "magicyuv", "bmp"}


def write_ffv1(path: Path, frames: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
    """Write a lossless Matroska video (FFV1, RGB): reading returns the same frames."""
    check_frames(frames, fps)
    # Every frame is a keyframe, so that any can be sought; checksums reveal damage to other readers.
    # Tiny frames have no room for the slices that have checksums.
    level = {"level": "3", "slicecrc": "1"} if min(frames.shape[1:3]) >= 8 else {"level": "1"}
    film = encoded(frames, fps, "matroska", "ffv1", "bgr0", level | {"g": "1"})
    with replacing(path) as stream:
        stream.write(film)


def write_clip(clip: UInt8[np.ndarray, "T H W 3"], stem: Path, rate: float) -> list[Path]:
    """Write a clip as an MP4, enlarged if small, and as a lossless MKV; `stem` is their path without suffix."""
    shown, measured = stem.with_name(f"{stem.name}.mp4"), stem.with_name(f"{stem.name}.mkv")
    write_mp4(shown, enlarged(clip), rate)
    write_ffv1(measured, clip, rate)
    return [shown, measured]


def write_animation(clips: UInt8[np.ndarray, "S T H W 3"], names: list[str], file: Path, rate: float) -> Path:
    """Write an animated sheet of clips as a GIF."""
    frames = zip(*(enlarged(clip) for clip in clips), strict=True)
    write_gif(file, np.stack([lay_out(list(tiles), names) for tiles in frames]), rate)
    return file


def is_lossless(path: Path) -> bool:
    """Whether a video is certain to be lossless: a lossless codec without chroma subsampling or conversion.

    FFV1, raw, PNG, Huffman codecs and the like in RGB or grey, arrays, and folders of PNG only. Lossless H.264 cannot
    be told from lossy, and FFV1 in yuv420p has lost colour: both count as lossy.

    Raises:
        Unreadable: if it is not a video.
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
