"""How clips move: 1 for real clips, monotone under known damage, and broken laws of the built-in digits are seen."""

from collections.abc import Callable

import numpy as np
import pytest

from modalities.shared.confidence import ratio
from modalities.video import evaluate_videos
from modalities.video.data import MovingDigits
from modalities.video.metrics.digit_laws import LAWS, obeyed
from modalities.video.metrics.motion import motion, shrunk, smoothness

SIDE = 12
DATA = MovingDigits((32, 32), 16)


def clips(split: str = "test", num: int = 48) -> np.ndarray:
    return np.stack([DATA.clip(split, 0, number)[0] for number in range(num)])


def shares(made: np.ndarray) -> dict[str, float]:
    return {name: each[:, 0].sum() / max(1, each[:, 1].sum()) for name, each in obeyed(made, SIDE).items()}


def changed(made: np.ndarray, change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([change(clip, rng) for clip in made]).astype(np.uint8)


def shaken(reach: int) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    return lambda clip, rng: np.stack([np.roll(f, rng.integers(-reach, reach + 1, 2), (0, 1)) for f in clip])


def test_blocks_are_found_where_they_went_finer_than_a_pixel() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.random((8, 8)).repeat(12, 0).repeat(12, 1)
    smooth = np.cumsum(np.cumsum(np.pad(coarse, 6), 0), 1)
    smooth = (smooth[12:, 12:] - smooth[:-12, 12:] - smooth[12:, :-12] + smooth[:-12, :-12]) / 144 * 255

    def at(y: int, x: int) -> np.ndarray:  # thirds of a pixel
        return smooth[y : y + 72, x : x + 72].reshape(24, 3, 24, 3).mean((1, 3)).astype(np.uint8)

    pair = np.stack([at(9, 9), at(9 - 4, 9 + 5)])[..., None].repeat(3, -1)
    ways = motion(*shrunk(pair)[:, None])[0, 1, 1]
    assert np.allclose(ways, [4 / 3, -5 / 3], atol=0.25)


def test_real_halves_read_one_and_a_frozen_clip_zero() -> None:
    real = clips(num=96)
    report = evaluate_videos(real[::2], real[1::2], features="pixels", groups=0, progress=False)
    for name in ("flicker/real", "motion/real", "jerk/real", "warp/real"):
        low, high = report.intervals[name]
        assert low < 1 < high < 1.4
        assert 0.6 < report.rows["floor"][name] < 1.6
    still = real[::2, :1].repeat(16, 1)
    frozen = evaluate_videos(still, real[1::2], features="pixels", groups=0, progress=False)
    assert {frozen.values[f"{name}/real"] for name in ("flicker", "motion", "jerk", "warp")} == {0}
    nothing = evaluate_videos(real[::2], still, features="pixels", groups=0, progress=False)
    assert "jerk/real" not in nothing.values
    assert any("nothing moves in the reference" in note for note in nothing.notes)


def test_damage_in_time_raises_jerk_and_warp_the_more_of_it_there_is() -> None:
    real = clips(num=12)

    def of(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> np.ndarray:
        return np.mean([smoothness(clip) for clip in changed(real, change)], axis=0)

    def shuffled(num: int) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
        return lambda clip, rng: clip[[*rng.permutation(num), *range(num, 16)]]

    for worse in (shuffled, shaken):
        found = [of(worse(num)) for num in ((0, 6, 16) if worse is shuffled else (0, 1, 2))]
        assert (np.diff(found, axis=0) > 0).all()


@pytest.mark.parametrize(
    ("law", "change"),
    [
        ("two", lambda clip, rng: np.where(np.arange(32)[:, None, None] < 16, clip, 0)),
        ("ink", lambda clip, rng: clip * np.linspace(1, 0.2, 16)[:, None, None, None]),
        ("even", shaken(1)),
        ("mirrored", lambda clip, rng: clip[np.arange(16) // 3 * 3]),
        ("exchanged", lambda clip, rng: clip[rng.permutation(16)]),
    ],
)
def test_real_digits_obey_their_laws_and_others_do_not(law: str, change: Callable) -> None:
    real = clips()
    kept = shares(real)
    assert set(kept) == set(LAWS)
    assert min(kept.values()) > 0.85
    assert shares(changed(real, change))[law] < 0.6


def test_a_border_that_swallows_motion_is_no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    real, places = clips(), MovingDigits._places

    def stopping(self: MovingDigits, rng: np.random.Generator) -> np.ndarray:
        free = places(self, rng)
        stuck = free.copy()
        for axis in range(2):
            for digit in range(2):
                steps = np.diff(free[:, digit, axis])
                turns = np.flatnonzero(np.sign(steps[1:]) != np.sign(steps[:-1]))
                if len(turns):
                    stuck[turns[0] + 1 :, digit, axis] = stuck[turns[0] + 1, digit, axis]
        return stuck

    monkeypatch.setattr(MovingDigits, "_places", stopping)
    assert shares(clips())["mirrored"] < 0.5 < shares(real)["mirrored"]


def test_seams_and_laws_are_reported_where_they_are_asked_for() -> None:
    real, other = clips(num=24), clips("val", 24)
    cut = np.concatenate([other[:, :8], real[:, 8:]], 1)
    options = {"features": "pixels", "groups": 0, "progress": False, "digits": SIDE}
    smooth, joined = (evaluate_videos(made, real, seams=[8], **options).values for made in (other, cut))
    assert 0.7 < smooth["seam/real"] < 1.4
    assert joined["seam/real"] > 2
    assert joined["seam-jerk/real"] > 2 * smooth["seam-jerk/real"]
    assert joined["law/even"] < smooth["law/even"]
    loop = np.concatenate([real, real[:, -2:0:-1]], 1)  # there and back again
    back, rest = (evaluate_videos(made, real, seams=[0], **options).values for made in (loop, real))
    assert back["seam/real"] < 1.5 < rest["seam/real"]
    with pytest.raises(ValueError, match="seams must be"):
        evaluate_videos(cut, real, seams=[16], **options)


def test_a_ratio_covers_the_true_one_in_nineteen_of_twenty_cases() -> None:
    rng = np.random.default_rng(0)
    found = [ratio(*rng.gamma(2, 1, (2, 40)))[1] for _ in range(400)]
    assert 0.92 < np.mean([low <= 1 <= high for low, high in found]) < 0.975
    assert ratio(np.zeros(4), np.ones(4)) == (0, (0, 0))
    assert ratio(np.ones(4), np.zeros(4)) is None
