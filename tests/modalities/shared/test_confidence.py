"""Intervals hold what they should: of shares of samples that come in groups, and of means."""

import numpy as np
import pytest

from modalities.shared.confidence import mean_of_groups, of_mean, share_of_groups, wilson


def test_effective_numbers_by_hand_and_within_bounds() -> None:
    right = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
    assert share_of_groups(right, np.arange(8) // 4) == (
        3 / 8,
        pytest.approx(15 / 64 / (2 * 2 * 1.5**2 / 64)),
    )
    assert share_of_groups(right, np.arange(8)) == (3 / 8, pytest.approx(7))  # v has n - 1
    assert share_of_groups(right, np.arange(8) % 2)[1] == 8  # as alike as this no groups are by chance
    for all_alike in (np.ones(8, bool), np.zeros(8, bool)):
        assert share_of_groups(all_alike, np.arange(8) // 4)[1] == 2
    assert share_of_groups(right, np.zeros(8, int)) == (3 / 8, 1)


def test_intervals_hold_what_they_should() -> None:
    """Of 400 sets of 40 prompts with four pictures, whose chances differ by prompt."""
    rng, group, held = np.random.default_rng(0), np.repeat(np.arange(40), 4), {"groups": 0, "pictures": 0}
    for _ in range(400):
        right = rng.random(160) < np.repeat(rng.beta(0.5, 0.5, 40), 4)
        share, num = share_of_groups(right, group)
        for name, count in (("groups", num), ("pictures", 160)):
            low, high = wilson(share, count)
            held[name] += low <= 0.5 <= high
    assert 0.92 < held["groups"] / 400 < 0.98
    assert held["pictures"] / 400 < 0.85  # what treating pictures as independent would claim


def test_means_of_groups_are_as_sure_as_those_of_their_means() -> None:
    rng = np.random.default_rng(0)
    means = rng.random(10)
    whole = mean_of_groups(means, np.arange(10))
    assert (whole.value, whole.error, whole.df) == pytest.approx(
        (means.mean(), means.std(ddof=1) / 10**0.5, 9)
    )
    within = np.tile([-0.1, 0.1, 0.3, -0.3], 10)  # which does not matter where all groups are whole
    again = mean_of_groups(np.repeat(means, 4) + within, np.repeat(np.arange(10), 4))
    assert (again.value, again.error, again.df) == pytest.approx((whole.value, whole.error, 9))
    held = 0
    for _ in range(400):
        x = np.repeat(rng.beta(0.5, 0.5, 20), 4) * rng.random(80)
        low, high = mean_of_groups(x, np.repeat(np.arange(20), 4)).interval()
        held += low <= 0.25 <= high
    assert 0.9 < held / 400 < 0.98
    assert np.isnan(mean_of_groups(means, np.zeros(10, int)).error)


def test_intervals_of_means() -> None:
    assert of_mean([0.5], [(0.2, 0.6)]) == pytest.approx((0.2, 0.6))
    assert of_mean([0.0, 1.0], [(0.0, 0.3), (0.6, 1.0)]) == pytest.approx((0.5 - 0.2, 0.5 + 0.15))
    low, high = of_mean([0.5] * 4, [(0.3, 0.9)] * 4)
    assert (low, high) == pytest.approx((0.4, 0.7))  # halved by four of them
