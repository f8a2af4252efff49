"""Motion metrics of a set relative to the reference: ratios to real clips, at seams, and laws of built-in digits."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from modalities.shared import frechet
from modalities.shared.confidence import ratio, wilson
from modalities.video.metrics import digit_laws
from modalities.video.metrics.clip_sets import Side
from modalities.video.metrics.seams import at_seams

MOVEMENT = ("flicker", "motion", "jerk", "warp")
SEAMS = {"seam": "flicker", "seam-jerk": "jerk"}
"""Metric at seams -> metric of real clips it is compared with."""


@dataclass
class Movement:
    """Values and their 95 % intervals, by name."""

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, name: str, found: tuple[float, tuple[float, float]] | None) -> None:
        """Add a value with its interval; None is skipped."""
        if found is not None:
            self.values[name], self.intervals[name] = found


def ratios(side: Side, real: Side) -> Movement:
    """`MOVEMENT` as ratios of means, without those that are zero for the reference."""
    found = Movement()
    for name in MOVEMENT:
        found.add(f"{name}/real", ratio(side.of(name), real.of(name)))
    return found


def floor(real: Side, seed: int) -> dict[str, float]:
    """The ratios of one random half of the reference to the other."""
    one, other = (real.take(half) for half in frechet.halves(len(real), seed))
    return ratios(one, other).values


def measured(
    side: Side, real: Side, seams: Sequence[int] | None, digits: int | None, stride: int
) -> Movement:
    """All motion metrics of generated clips.

    Args:
        seams: see `at_seams`; None for clips without seams.
        digits: size of the built-in moving digits in pixels; None for other clips.
        stride: between the frames of a clip.
    """
    found = ratios(side, real)
    for name, each in at_seams(side, seams, stride).items() if seams else ():
        found.add(f"{name}/real", ratio(each, real.of(SEAMS[name])))
    if digits is not None:
        kept = laws(side, digits, stride)
        found.values |= kept.values
        found.intervals |= kept.intervals
    return found


def laws(side: Side, digits: int, stride: int) -> Movement:
    """The fraction in which each of the digits' laws is obeyed; omitted if sizes differ, or the law never applies."""
    found = Movement()
    if len({clip.size for clip in side.clips}) > 1:
        return found
    counts = digit_laws.obeyed(np.stack([clip.read() for clip in side.clips]), digits, stride)
    for name, (kept, of) in ((name, each.T) for name, each in counts.items()):
        if of.any():
            share = float(kept.sum() / of.sum())
            found.add(f"law/{name}", (share, wilson(share, int((of > 0).sum()))))
    return found
