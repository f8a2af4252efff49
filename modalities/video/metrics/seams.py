"""Metrics at seams between given and new frames: the size of the step, and the change of motion."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

from ditmoe.outside import check_number
from modalities.video.metrics.clip_sets import Side
from modalities.video.metrics.motion import smoothness


def at_seams(side: Side, seams: Sequence[int], stride: int) -> dict[str, Float[np.ndarray, " S"]]:
    """For each video of a set: "seam", the mean absolute change across its seams, 0 to 255, and "seam-jerk" there.

    Args:
        seams: indices of the frames before which videos are joined; 0 joins the last frame to the first (a loop).
        stride: distance between the frames compared.

    Raises:
        ValueError: with one line, for a seam that a video does not have.
    """
    found = []
    for clip in side.clips:
        each = []
        for seam in seams:
            check_number("seams", seam, 0, clip.video.shape[0] - 1, whole=True)
            frames = clip.video[around(seam, clip.video.shape[0], stride)]
            joint = 2 if seam == 0 else min(2, seam // stride)
            step = np.abs(frames[joint].astype(float) - frames[joint - 1]).mean() if joint else 0.0
            each.append((step, smoothness(frames)[0]))
        found.append(np.mean(each, axis=0))
    steps, jerks = np.transpose(found)
    return {"seam": steps, "seam-jerk": jerks}


def around(seam: int, num: int, stride: int) -> Int64[np.ndarray, " _"]:
    """Indices of two frames on each side, fewer at the ends of a video."""
    places = seam + stride * np.arange(-2, 2)
    return places % num if seam == 0 else places[(places >= 0) & (places < num)]
