"""The measures of text: what is counted in samples, what experts follow, and what states of words tell."""

import random

import numpy as np
import pytest
import torch

from benchmarks.quality import text_states
from benchmarks.quality.clip_digits import read_digits
from benchmarks.quality.clip_reading import of_clips, reader_of_clips
from benchmarks.quality.text_binding import wrong_captions
from benchmarks.quality.text_compute import correlation
from ditmoe.conditioning import captions_of
from modalities.video.data.moving_digits import MovingDigits


def test_which_digit_moves_where_is_read_off_real_clips() -> None:
    data = MovingDigits((32, 32), 9, captions=True)
    real = data.reference("test", 16)
    assert real.asked is not None
    captions, reader = captions_of(real.asked) or [], reader_of_clips(data, num=60)
    own = of_clips(real.data, captions, reader)
    other = of_clips(real.data, [*captions[1:], captions[0]], reader)
    assert own["ways"].mean() == 1
    assert own["bound"].mean() >= 0.8
    assert other["bound"].mean() <= 0.2
    exchanged = [
        new or own for new, own in zip(wrong_captions(captions)["ways exchanged"], captions, strict=True)
    ]
    differs = np.array([a != b for a, b in zip(captions, exchanged, strict=True)])
    assert of_clips(real.data, exchanged, reader)["bound"][differs].mean() <= 0.2


def test_digits_of_one_class_are_read_off_real_clips() -> None:
    data = MovingDigits((32, 32), 9)
    real = data.reference("test", 16)
    assert real.labels is not None
    reader = reader_of_clips(data, num=60)
    right = read_digits(real.data, real.labels, reader)
    assert right.shape == (16, 2)
    assert right.mean() >= 0.8
    assert read_digits(real.data, (real.labels + 1) % 10, reader).mean() <= 0.2


def test_what_two_values_share_by_place_alone_is_taken_off() -> None:
    rng = np.random.default_rng(0)
    place = 3 * rng.normal(size=16)
    a, b = place + rng.normal(size=(2, 64, 16))
    shared = rng.normal(size=(64, 16))
    assert correlation(a, b, given_place=False)[0] > 0.8
    assert abs(correlation(a, b, given_place=True)[0]) < 0.1
    assert correlation(a + shared, b + shared, given_place=True)[0] == pytest.approx(0.5, abs=0.1)
    assert np.isnan(correlation(np.ones((4, 3)), b[:4, :3], given_place=False)[0])


def test_a_reader_learns_what_a_state_tells_and_only_that() -> None:
    """Whose way is in its own state, without layers; in another word's, through a layer that mixes words."""
    draw, torch_seed = random.Random(0), torch.manual_seed(0)
    names, ways = torch.randn(2, 4, 32, generator=torch_seed)

    def one(mixed: bool) -> text_states.Row:
        name, way = draw.randrange(4), draw.randrange(4)
        states = torch.stack([names[name], ways[way]])
        return (states if mixed else states + states.flip(0)), 0, way

    own, other = ([one(mixed) for _ in range(600)] for mixed in (False, True))
    assert text_states.accuracy(own[:500], own[500:], layers=0, steps=80, seed=0) > 0.95
    assert text_states.accuracy(other[:500], other[500:], layers=0, steps=80, seed=0) < 0.5
    assert text_states.accuracy(other[:500], other[500:], layers=1, steps=80, seed=0) > 0.95
