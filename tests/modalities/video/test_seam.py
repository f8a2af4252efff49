"""Beside given frames new ones get what the decoder misses of these, as far as its errors go on from frame to frame."""

import numpy as np
import pytest

from modalities.video.seam import smooth_seams

FRAMES, SIZE = 12, (24, 24, 3)


def decoded(frames: np.ndarray, alike: float, seed: int = 0) -> np.ndarray:
    """As a decoder gives them whose errors are a first-order autoregression."""
    rng, errors = np.random.default_rng(seed), []
    for _ in frames:
        own = rng.normal(size=SIZE)
        errors.append(own if not errors else alike * errors[-1] + (1 - alike**2) ** 0.5 * own)
    return (frames - 12 * np.array(errors)).round().clip(0, 255).astype(np.uint8)[None]


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("new", "both"), [(slice(7, 12), 0), (slice(0, 4), 0), (slice(5, 6), 1)])
def test_the_error_beside_given_frames_is_as_small_as_it_can_be_guessed(alike, new: slice, both: int) -> None:
    frames = np.full((FRAMES, *SIZE), 128, np.uint8)
    given = np.ones(FRAMES, bool)
    given[new] = False
    samples = decoded(frames, alike)
    smooth = smooth_seams(samples, frames, given)
    left = np.square(smooth.astype(float) - frames).mean(axis=(0, 2, 3, 4)) / 144
    beside = new.start or new.stop - 1
    least = (1 - alike**2) / (1 + alike**2) if both else 1 - alike**2
    assert left[beside] == pytest.approx(least, abs=0.08)
    others = [t for t in range(FRAMES) if t != beside]
    assert np.array_equal(smooth[:, others], samples[:, others])


def test_nothing_changes_where_nothing_can_be_guessed() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (FRAMES, *SIZE), np.uint8)
    first, none, every = (np.arange(FRAMES) < n for n in (1, 0, FRAMES))
    samples = decoded(frames, 0.9)
    for given in (first, none, every):
        assert np.array_equal(smooth_seams(samples, frames, given), samples)
    half = np.arange(FRAMES) < 6
    assert np.array_equal(smooth_seams(frames[None], frames, half), frames[None])
