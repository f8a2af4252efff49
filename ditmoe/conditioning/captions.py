"""Captions as tensors: UTF-8 in rows of bytes, so that a `Condition` can hold them like any other value."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from ditmoe.conditioning.condition import Condition

TEXT = "text"
"""Name of captions among the values of a condition: UTF-8, (B, L), zero-padded."""
_WORD = re.compile(r"\w+|[^\w\s]")


def text_rows(captions: Sequence[str]) -> UInt8[Tensor, "B L"]:
    """Captions as rows of bytes, at least one byte wide.

    A character that UTF-8 cannot encode (half of a surrogate pair) becomes "?", a zero byte a space.
    """
    rows = [caption.replace("\0", " ").encode("utf-8", "replace") for caption in captions]
    width = max(1, *map(len, rows)) if rows else 1
    joined = b"".join(row.ljust(width, b"\0") for row in rows)
    return torch.from_numpy(np.frombuffer(bytearray(joined), np.uint8).reshape(len(rows), width))


def captions_of(condition: Condition) -> list[str] | None:
    """The captions of a condition, "" for unconditional samples; None if it has none."""
    if TEXT not in condition.values:
        return None
    rows = condition.values[TEXT].cpu().numpy()
    texts = [row.tobytes().rstrip(b"\0").decode("utf-8", "replace") for row in rows]
    return ["" if null else text for text, null in zip(texts, condition.null.tolist(), strict=True)]


def split_words(caption: str) -> list[str]:
    """Words and punctuation marks of a caption, in lower case."""
    return _WORD.findall(caption.lower())


def class_caption(name: str) -> str:
    """The caption that represents a class, in training and sampling: "a hot dog", "an apple"; "" for none."""
    said = " ".join(name.replace("_", " ").split())
    return f"{'an' if said[0].lower() in 'aeiou' else 'a'} {said}" if said else ""
