"""What `benchmarks.quality.text_binding` changes in captions, and what its table leaves out."""

import numpy as np
import pytest
import torch

from benchmarks.quality.text_binding import WRONG, caption_of, said, table, wrong_captions
from modalities.video.data.moving_digits import MovingDigits

OWN = "two digits: an eight at the top moving left and a three moving up"
NEXT = "a zero moving down and a one in the lower left moving right"


def test_each_kind_changes_what_it_says() -> None:
    wrong = wrong_captions([OWN, NEXT])
    assert {name: each[0] for name, each in wrong.items()} == {
        "ways exchanged": "an eight at the top moving up and a three moving left",
        "places exchanged": "an eight moving left and a three at the top moving up",
        "digits exchanged": "a three at the top moving left and an eight moving up",
        "other ways": "an eight at the top moving down and a three moving right",
        "other digits": "a zero at the top moving left and a one moving up",
    }


def test_captions_that_would_say_the_same_are_left_out() -> None:
    same = "a three moving up and a three moving left"
    wrong = wrong_captions([same, "a three moving left and a three moving up"])
    assert all(each[0] is None for each in wrong.values())


def test_built_in_captions_are_read_whole() -> None:
    for caption in MovingDigits((32, 32), 9, captions=True).captions_of_split("train", 100):
        assert caption_of(said(caption)) == caption.removeprefix("two digits: ")
    with pytest.raises(ValueError, match="must name two moving digits, got 'a chair'"):
        said("a chair")


def test_the_table_ignores_what_was_left_out() -> None:
    growth = np.full((5, 2), 0.01) + 0.001 * np.random.default_rng(0).normal(size=(5, 2))
    growth[0] = np.nan
    kept = growth[1:, 0].mean() * 1e4
    row = table(dict.fromkeys(WRONG, growth), torch.linspace(0, 1000, 3).tolist()).splitlines()[2]
    assert row.startswith(f"| 0 to 500 | {kept:.0f} (")
