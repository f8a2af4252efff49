"""A cloud or a mesh from all sides: a GIF without end, and an MP4."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

FRAMES, SIZE, FRAME_MS = 24, 192, 80
FIRST = 38.0
"""Degrees around the upright axis at which it begins: those of pictures that do not turn."""


def write_turntable(
    stem: Path, draw: Callable[..., UInt8[np.ndarray, "H W 3"]], frames: int = FRAMES, size: int = SIZE
) -> list[Path]:
    """A turn around the upright axis, by the names that `stem` begins.

    Args:
        draw: a picture for `azimuth`, `size` and `turning`, as `render` and `render_mesh` draw it.
    """
    # FFmpeg's libraries, which nothing else here needs.
    from modalities.shared.animation import write_gif, write_mp4

    turns = FIRST + np.linspace(0, 360, frames, endpoint=False)
    drawn = np.stack([draw(azimuth=float(turn), size=size, turning=True) for turn in turns])
    paths = [stem.with_name(f"{stem.name}{ending}") for ending in (".gif", ".mp4")]
    for path, write in zip(paths, (write_gif, write_mp4), strict=True):
        write(path, drawn, 1000 / FRAME_MS)
    return paths
