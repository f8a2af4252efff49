"""Captions as tensors."""

import torch

from ditmoe.conditioning import TEXT, Condition, captions_of, text_rows


def test_captions_of_any_script_come_back_whatever_else_is_in_the_batch() -> None:
    captions = ["", "a chair", "ein Stuhl für zwei", "四条腿的椅子", "כיסא", "👩‍🔬 smiles", "nul\0 within"]
    # Each of its own width.
    rows = [Condition({TEXT: text_rows([one])}, torch.zeros(1, dtype=torch.bool)) for one in captions]
    together = Condition.cat(rows)
    assert captions_of(together) == [one.replace("\0", " ") for one in captions]
    assert captions_of(together.take([3, 1])) == [captions[3], captions[1]]
    assert captions_of(together.nothing) == [""] * len(captions)
    assert captions_of(Condition.of_labels(torch.arange(3), 3)) is None
    assert captions_of(Condition({TEXT: text_rows(["\ud800x"])}, torch.zeros(1, dtype=torch.bool))) == ["?x"]
