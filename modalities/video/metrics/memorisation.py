"""Memorisation: distances of clips to the training clips, compared with those of held-out clips."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8

HELD_OUT = 10
"""A clip is novel if it is farther from the training set than this percentile of held-out clips."""
COPY = 1e-5
"""Clips nearer than this are copies: below the rounding of one pixel."""
_PAIRS = 2**24  # frame distances held in memory at a time


def thumbnails(frames: UInt8[np.ndarray, "F h w 3"]) -> Float32[np.ndarray, "F 48"]:
    """Mean colours of 4 x 4 areas of each frame, 0 to 1, so that frames of any sizes can be compared."""
    x = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 1).float() / 255
    return F.adaptive_avg_pool2d(x, 4).flatten(1).numpy()


def nearest(
    clips: Sequence[Float32[np.ndarray, "_ 48"]], train: Sequence[Float32[np.ndarray, "_ 48"]]
) -> Float[np.ndarray, " S"]:
    """Distance of each clip to its nearest training clip, 0 to 1; all clips of a side have the same length.

        d(s) = min_t mean_i min_j |s_i - t_j|, as root mean square over the 48 values of a frame

    Taking the nearest frame makes it independent of where in the video a copy starts and of its speed.
    """
    # In double precision: distances by matrix products lose half the digits near 0.
    wide = torch.from_numpy(np.concatenate(train)).double()
    out = []
    for part in _parts(clips, max(1, _PAIRS // max(1, len(clips[0]) * len(wide)))):
        frames = torch.from_numpy(np.concatenate(part)).double()
        distances = torch.cdist(frames, wide, compute_mode="use_mm_for_euclid_dist")
        each = distances.unflatten(0, (len(part), -1)).unflatten(2, (len(train), -1)).amin(3).mean(1)
        out.append(each.amin(1) / wide.shape[1] ** 0.5)
    return torch.cat(out).numpy()


def values(ways: Mapping[str, Float[np.ndarray, " _"]], role: str) -> dict[str, float]:
    """nearest-train, the median of these distances, and novelty, the fraction above the nearest tenth of held-out
    ones; empty without distances.

    New real clips have a novelty of 0.9 by construction, copies 0; more than 0.9 is not better: noise is novel too.

    Args:
        ways: distances of the "generated" and the "reference" clips.
        role: one of the two.
    """
    if not ways:
        return {}
    limit = np.percentile(ways["reference"], HELD_OUT)
    return {"nearest-train": float(np.median(ways[role])), "novelty": float((ways[role] > limit).mean())}


def _parts(clips: Sequence[np.ndarray], size: int) -> Iterator[Sequence[np.ndarray]]:
    for start in range(0, len(clips), size):
        yield clips[start : start + size]
