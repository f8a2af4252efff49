"""What `benchmarks.quality.text_binding` changes in captions, and what its table leaves out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.text_binding import WRONG, caption_of, growths, said, table, wrong_captions
from ditmoe.analysis.probe import make_probe
from ditmoe.conditioning import captions_of
from ditmoe.config import build
from ditmoe.config.restore import Restored
from ditmoe.train import make_trainer
from modalities.video.data.moving_digits import MovingDigits
from tests.subjects import composed

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


def test_only_a_model_that_reads_loses_by_wrong_captions(tmp_path: Path) -> None:
    """Before training it reads nothing: all losses are equal."""
    words = ("modality=video", "model=debug", "conditioning=text", "encoder@conditioning.encoder=learned")
    options = composed(
        "train", *words, "conditioning.states=null", "modality.codec.steps=0", "trainer.steps=1"
    )
    modality = build.make_modality(options)
    trainer = make_trainer(options, modality, tmp_path / "run")
    run = Restored(trainer.model, modality, trainer.process, options, 0, tmp_path / "run")
    probe = make_probe(run.model, modality, run.process, "test", 8, 2, seed=0)
    unread = growths(run, probe)
    assert {name: np.nanmax(np.abs(each)) for name, each in unread.items()} == dict.fromkeys(unread, 0.0)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    read = growths(run, probe)
    assert all((np.abs(each[np.isfinite(each)]) > 0).all() for each in read.values())
    for name, each in wrong_captions(captions_of(probe.asked) or []).items():
        assert np.isnan(read[name]).all(1).tolist() == [new is None for new in each]
