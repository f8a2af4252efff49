"""Physical consistency of the built-in moving digits: uniform motion, reflection, collisions, exactly two digits.

Each law is measured as the fraction of its instances that obey it, near 1 for real clips:

    two        frames: two digits, neither larger than a digit, no closer to each other than at a collision
    ink        steps: at most 8 % of the brightness appears or vanishes
    even       rows and columns of digits over three frames, far from borders and each other: constant velocity
    mirrored   changes of velocity at a border: only the normal component is reversed
    exchanged  changes of velocity at a collision: that component is exchanged

Digits are located by 2-means clustering of brightness in each frame, as real digits overlap little.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, UInt8

LAWS = ("two", "ink", "even", "mirrored", "exchanged")
Counts = Mapping[str, Float[np.ndarray, "S 2"]]
"""Law -> for each clip, how often it was obeyed, and how often it applied."""

FASTEST = 0.065
"""Largest speed, in digit sizes per frame."""
_DARK = 0.1  # fraction of white below which a pixel is not ink
_INK = 0.08  # tolerated change of ink from frame to frame, as a fraction of the clip's
_EVEN = 0.03  # tolerance of velocities, in digit sizes
_TURN = 0.06  # least change of velocity that is an event, in digit sizes
_NEAR, _MET = 1.0, 0.6  # distances of centres in digit sizes: a possible collision; closer than possible
_ROUNDS = 12


def obeyed(clips: UInt8[np.ndarray, "S T H W 3"], side: int, stride: int = 1) -> Counts:
    """For each clip, how often each law is obeyed, and how often it applies.

    Args:
        side: size of a digit in pixels.
        stride: steps of the motion from frame to frame.
    """
    speed = FASTEST * side * stride
    found = zip(*(digits_of(clip) for clip in clips), strict=True)
    place, low, high, ink = (np.stack(each) for each in found)
    return _laws(place, low, high, ink, np.array(clips.shape[2:4]), side, speed)


def digits_of(clip: UInt8[np.ndarray, "T H W 3"]) -> tuple[np.ndarray, ...]:
    """Centres (T, 2, 2), first and last rows and columns (T, 2, 2) each, and ink (T, 2) of two digits in each frame."""
    ink = np.maximum(clip.mean(-1) / 255 - _DARK, 0)
    grid = np.indices(ink.shape[1:]).reshape(2, -1).T.astype(float)
    flat = ink.reshape(len(ink), -1)
    total = np.maximum(flat.sum(1), 1e-9)[:, None]
    mean = flat @ grid / total
    square = np.einsum("tp,pi,pj->tij", flat, grid, grid, optimize=True) / total[..., None]
    spread, axes = np.linalg.eigh(square - mean[:, :, None] * mean[:, None])
    half = np.sqrt(np.maximum(spread[:, 1:], 0)) * axes[..., 1]
    place = np.stack([mean - half, mean + half], 1)
    for _ in range(_ROUNDS):
        way = place[:, 1] - place[:, 0]
        level = (place[:, 1] ** 2 - place[:, 0] ** 2).sum(1) / 2
        second = way @ grid.T > level[:, None]
        parts = np.stack([flat * ~second, flat * second], 1)
        weight = np.maximum(parts.sum(2), 1e-9)
        place = parts @ grid / weight[..., None]
    for t in range(1, len(place)):
        expected = place[t - 1] + (place[t - 1] - place[t - 2] if t > 1 else 0)
        if np.linalg.norm(place[t] - expected) > np.linalg.norm(place[t, ::-1] - expected):
            for of in (place, parts, weight):
                of[t] = of[t, ::-1].copy()
    seen = parts.reshape(len(parts), 2, *ink.shape[1:]) > _DARK
    edges = [np.asarray(seen.any(axis)) for axis in (3, 2)]
    low = np.stack([edge.argmax(2) for edge in edges], -1)
    high = np.stack([edge.shape[2] - 1 - edge[..., ::-1].argmax(2) for edge in edges], -1)
    return place, low, high, weight


def _laws(
    place: Float[np.ndarray, "S T 2 2"],
    low: np.ndarray,
    high: np.ndarray,
    ink: Float[np.ndarray, "S T 2"],
    size: np.ndarray,
    side: int,
    speed: float,
) -> Counts:
    extent = high - low + 1
    gap = np.abs(place[:, :, 1] - place[:, :, 0]).max(-1)
    whole = (extent <= side + 2).all((2, 3)) & (ink.min(2) > 0.15 * ink.sum(2)) & (ink.min(2) > 1e-3)
    amount = ink.sum(2)
    counts = {
        "two": _count(whole & (gap > _MET * side)),
        "ink": _count(np.abs(np.diff(amount)) <= _INK * np.maximum(amount.mean(1, keepdims=True), 1e-3)),
    }
    margin = np.maximum(side - extent, 0) + speed + 1  # a digit's box may extend that far beyond its ink
    at_border = (low < margin) | (high > size - 1 - margin)  # S T digit axis
    meeting = gap < _NEAR * side + 2 * speed
    velocity = np.diff(place, axis=1)
    if place.shape[1] < 3:
        return counts | {name: np.zeros((len(place), 2)) for name in LAWS[2:]}
    apart = _all_three(~at_border & ~meeting[..., None, None])
    counts["even"] = _count(np.abs(np.diff(velocity, axis=1)) <= _EVEN * side, apart)
    before, after = velocity[:, :-2], velocity[:, 2:]  # around the step with the event
    turned = np.abs(after - before)
    event = (turned > _TURN * side) & _peaks(turned)
    border = at_border[:, 1:-2] | at_border[:, 2:-1]
    met = (meeting[:, 1:-2] | meeting[:, 2:-1])[..., None, None]
    tolerance = 2 * _EVEN * side
    kept = (turned <= tolerance)[..., ::-1]
    corner = border[..., ::-1]
    counts["mirrored"] = _count((np.abs(after + before) <= tolerance) & kept, event & border & ~corner & ~met)
    crossed = np.abs(after - before[:, :, ::-1]) <= tolerance
    counts["exchanged"] = _count(
        (crossed & kept).all(2), event.any(2) & met[..., 0] & ~border.any((2, 3))[..., None]
    )
    return counts


def _count(obeyed: Bool[np.ndarray, "S *n"], of: Bool[np.ndarray, "S *n"] | None = None) -> np.ndarray:
    of = np.ones_like(obeyed) if of is None else of
    return np.stack([(obeyed & of).reshape(len(of), -1).sum(1), of.reshape(len(of), -1).sum(1)], 1).astype(
        float
    )


def _all_three(x: Bool[np.ndarray, "S T *n"]) -> Bool[np.ndarray, "S _ *n"]:
    return x[:, :-2] & x[:, 1:-1] & x[:, 2:]


def _peaks(x: Float[np.ndarray, "S E *n"]) -> Bool[np.ndarray, "S E *n"]:
    """Local maxima."""
    padded = np.pad(x, [(0, 0), (1, 1), *[(0, 0)] * (x.ndim - 2)])
    return (x >= padded[:, :-2]) & (x > padded[:, 2:])
