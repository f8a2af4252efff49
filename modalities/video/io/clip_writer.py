"""Generated clips as files: to look at, to measure, and all of them moving on one sheet."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from modalities.shared import enlarged, lay_out
from modalities.video.io.writer import write_ffv1, write_gif, write_mp4


def write_clip(clip: UInt8[np.ndarray, "T H W 3"], stem: Path, rate: float) -> list[Path]:
    """A clip as an MP4, enlarged if it is small, and as an MKV without loss; `stem` is both without their endings."""
    shown, measured = stem.with_name(f"{stem.name}.mp4"), stem.with_name(f"{stem.name}.mkv")
    write_mp4(shown, enlarged(clip), rate)
    write_ffv1(measured, clip, rate)
    return [shown, measured]


def write_animation(clips: UInt8[np.ndarray, "S T H W 3"], names: list[str], file: Path, rate: float) -> Path:
    """A sheet of clips that move, as a GIF."""
    frames = zip(*(enlarged(clip) for clip in clips), strict=True)
    write_gif(file, np.stack([lay_out(list(tiles), names) for tiles in frames]), rate)
    return file
