"""Every modality holds every law of `tests/modalities/laws.py`, also one that is given on the fly; a broken one not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.modalities.laws import LAWS, Subject, find

MODALITIES = find()


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", MODALITIES)
def test_every_modality_holds(name: str, law: Callable[[Subject, Path], None], tmp_path: Path) -> None:
    law(MODALITIES[name], tmp_path)


CLASS = """
import numpy as np
import torch

import signals


class Pieces(signals.Pieces):
    {tokens}


class Waves(signals.Signals):
    name = "{name}"
    {adapter}
"""
BROKEN = {
    "its tokens come back in another order": (
        "def unpatchify(self, tokens, layout, like, t, c): return tokens.flip(1).reshape(like.shape)",
        "",
        "tokens_fill_their_layout_and_become_samples_again",
    ),
    "two tokens at one position": (
        "def positions(self, layout): return super().positions(layout) * 0",
        "",
        "each_token_has_a_position_of_its_own",
    ),
    "packed in another order": (
        "def pack(self, samples): rows, layout = super().pack(samples); return rows.flip(0), layout",
        "",
        "packed_is_each_alone",
    ),
    "times of the first token for all": (
        "",
        "def tokens(self, hidden_size):\n"
        "        made = super().tokens(hidden_size)\n"
        "        made.sample_times = lambda t, x, layout=None: t.flatten()[:len(x)].view(-1, 1, 1)\n"
        "        return made",
        "samples_are_noised_as_their_tokens_are_told",
    ),
    "a batch of its own each time": (
        "",
        "def batch(self, size, seed, step, rank=0, world=1):\n"
        "        x, y = super().batch(size, seed, step, rank, world)\n"
        "        return x + np.random.randn(), y",
        "a_batch_is_a_function_of_its_address",
    ),
    "every step the same": (
        "",
        "def batch(self, size, seed, step, rank=0, world=1): return super().batch(size, seed, 0, rank, world)",
        "a_batch_is_a_function_of_its_address",
    ),
    "every rank the same": (
        "",
        "def batch(self, size, seed, step, rank=0, world=1): return super().batch(size, seed, step)",
        "a_batch_is_a_function_of_its_address",
    ),
    "facts that no checkpoint holds": (
        "",
        "def data_facts(self): return super().data_facts() | {'mean': np.zeros(2)}",
        "facts_go_through_json_and_a_checkpoint_and_are_enough_to_decode",
    ),
    "decoding by what it saw": (
        "",
        "def batch(self, *where): self.scale = 2.0; return super().batch(*where)\n"
        "    def decode(self, x): return super().decode(x) * getattr(self, 'scale', 1.0)",
        "facts_go_through_json_and_a_checkpoint_and_are_enough_to_decode",
    ),
    "a word that is not checked": (
        "",
        "def shape_of(self, length=None): return (1, self.length if length is None else int(length) ** 2)",
        "words_ask_for_a_shape_or_are_refused_in_one_line",
    ),
    "files in another order": (
        "",
        "def read(self, path):\n"
        "        found = super().read(path)\n"
        "        return type(found)(found.data[::-1])",
        "what_is_written_is_read",
    ),
    "nothing understood, and that no text": (
        "",
        "def understood(self): return None",
        "what_was_understood_is_said_in_a_few_lines",
    ),
    "endings that it does not write": ("", "suffixes = ('.wave',)", "what_is_written_is_read"),
}  # fmt: skip


def stranger(folder: Path, name: str, tokens: str = "", adapter: str = "") -> Subject:
    """A class and a YAML in a folder of a person's own."""
    (folder / "configs/modality").mkdir(parents=True)
    (folder / f"{name}.py").write_text(
        CLASS.format(name=name, tokens=tokens or "pass", adapter=adapter or "pass")
    )
    text = f"_target_: {name}.Waves\nlength: 32\ntokens:\n  _target_: {name}.Pieces\n  _partial_: true\n  patch: 4\n"
    (folder / "configs/modality" / f"{name}.yaml").write_text(text)
    return find(folder / "configs")[name]


def test_a_modality_that_is_given_on_the_fly_holds_all_laws(tmp_path: Path) -> None:
    mine = stranger(tmp_path / "mine", "waves")
    for law in LAWS:
        (place := tmp_path / law.__name__).mkdir()
        law(mine, place)


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_modality_breaks_its_law(what: str, tmp_path: Path) -> None:
    tokens, adapter, name = BROKEN[what]
    broken = stranger(tmp_path / "mine", f"waves_{list(BROKEN).index(what)}", tokens, adapter)
    law = next(law for law in LAWS if law.__name__ == name)
    with pytest.raises((AssertionError, ValueError, TypeError)):
        law(broken, tmp_path)
