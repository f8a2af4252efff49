"""Turntable animations of a cloud or a mesh: a looping GIF, and an MP4."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

FRAMES, SIZE, FRAME_MS = 24, 192, 80
FIRST = 38.0
"""Initial azimuth in degrees, that of still pictures."""


def write_turntable(
    stem: Path, draw: Callable[..., UInt8[np.ndarray, "H W 3"]], frames: int = FRAMES, size: int = SIZE
) -> list[Path]:
    """Write a turn around the upright axis, with names from `stem`.

    Args:
        draw: renders a picture for `azimuth`, `size` and `turning`, like `render` and `render_mesh`.
    """
    # FFmpeg's libraries, which nothing else here needs.
    from modalities.shared.animation import write_gif, write_mp4

    turns = FIRST + np.linspace(0, 360, frames, endpoint=False)
    drawn = np.stack([draw(azimuth=float(turn), size=size, turning=True) for turn in turns])
    paths = [stem.with_name(f"{stem.name}{ending}") for ending in (".gif", ".mp4")]
    for path, write in zip(paths, (write_gif, write_mp4), strict=True):
        write(path, drawn, 1000 / FRAME_MS)
    return paths
