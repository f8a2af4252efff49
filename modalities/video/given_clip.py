"""Reads a given clip or image at the model's size and frame rate."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from modalities.latent.given import read_picture, shown
from modalities.shared.decode import STILLS
from modalities.video.data.clip_reader import fit
from modalities.video.io.index import nearest_frames, num_moments
from modalities.video.io.reader import read_clip, read_index, read_numbers

if TYPE_CHECKING:
    from modalities.video.adapter import Video

Clip = UInt8[np.ndarray, "T H W 3"]
MOST_FRAMES = 4096
"""Most given frames, and most frames between two clips."""


def read(modality: "Video", given: Any, size: tuple[int, int], told: list[str]) -> Clip:
    """Read a clip or an image at the model's size and frame rate; `told` gets notes on what was changed.

    Raises:
        ValueError: if there are no frames.
    """
    if isinstance(given, str | Path):
        path = Path(given)
        if path.is_file() and path.suffix.lower() in STILLS:
            clip = read_picture(path)[None]
        else:
            clip = of_file(modality, path, told)
    else:
        clip = np.asarray(given)
        clip = clip[None] if clip.ndim == 3 else clip
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or not clip.size:
            raise ValueError(
                f"a given clip must be a file or an array (T, H, W, 3) of uint8, got {clip.dtype} {clip.shape}"
            )
    if clip.shape[1:3] != size:
        told.append(f"{shown(given)} is {clip.shape[1]} x {clip.shape[2]}: brought to {size[0]} x {size[1]}")
    return fit(clip, size)


def of_file(modality: "Video", path: Path, told: list[str]) -> Clip:
    """Frames of a video, a folder of frames, or an array, at the frame rate of training."""
    index = read_index(path)
    if modality.resample:
        seconds = index.seconds(modality.rate)
        num = num_moments(seconds, modality.rate)
        check_length(path, num)  # timestamps may be arbitrarily far apart
        numbers = nearest_frames(seconds, 0.0, num, modality.rate)
        if len(numbers) != len(index) or (np.diff(numbers) != 1).any():
            told.append(
                f"{shown(path)}: frames taken at {modality.rate:g} a second, {len(numbers)} of {len(index)}"
            )
    else:
        own = modality.stride > 1 and (index.rate is None or abs(index.rate - modality.rate) > 1e-3)
        numbers = np.arange(0, len(index), modality.stride if own else 1)
        if own:
            told.append(f"{shown(path)}: every frame in {modality.stride}, as in training")
    check_length(path, len(numbers))
    if len(numbers) == len(index):
        return read_clip(path, 0, len(index), index=index)
    return read_numbers(path, numbers, index=index)


def check_length(path: Path, num: int) -> None:
    """Raise ValueError for too many frames."""
    if num > MOST_FRAMES:
        raise ValueError(f"{shown(path)} must have at most {MOST_FRAMES} frames, got {num}")
