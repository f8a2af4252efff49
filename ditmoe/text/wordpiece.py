"""WordPiece, the tokenizer of BERT and its descendants (arXiv 1609.08144; BERT, arXiv 1810.04805)."""

import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from ditmoe.outside import printable, read_regular

LONGEST_WORD = 100
"""Longest word in characters; a longer one is unknown, as in BERT's training."""
LARGEST_VOCABULARY = 2**25
"""Largest vocabulary file in bytes."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_CONTROLS = ("Cc", "Cf", "Co", "Cs")
_CJK = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF), (0xF900, 0xFAFF)),
    (0x2F800, 0x2FA1F),
)
"""Ranges of ideographs, each of which is a word."""


class WordPiece:
    """Splits words greedily into the longest known pieces, from left to right.

    Args:
        ids: piece -> index; pieces are in lower case, and those that continue a word begin with ##.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        if missing := [name for name in SPECIAL if name not in ids]:
            raise ValueError(
                f"a vocabulary of WordPiece must have {', '.join(SPECIAL)}, got none for {missing[0]}"
            )
        self.ids = ids

    @classmethod
    def open(cls, file: Path) -> "WordPiece":
        """Read a vocabulary file with one piece per line."""
        lines = read_regular(file, LARGEST_VOCABULARY).decode("utf-8", "replace").split("\n")
        try:
            return cls({line.rstrip("\r"): number for number, line in enumerate(lines)})
        except ValueError as error:
            raise ValueError(f"{printable(file)}: {error}") from error

    def pieces(self, text: str) -> list[int]:
        """Indices of all pieces of a text, without special tokens."""
        return [piece for word in words(text) for piece in self._word(word)]

    def __call__(self, text: str, limit: int) -> list[int]:
        """Indices of [CLS], the first pieces and [SEP], together at most `limit`."""
        return [self.ids["[CLS]"], *self.pieces(text)[: limit - 2], self.ids["[SEP]"]]

    def _word(self, word: str) -> list[int]:
        unknown, found, start = [self.ids["[UNK]"]], [], 0
        if len(word) > LONGEST_WORD:
            return unknown
        while start < len(word):
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if mark + word[start:end] in self.ids), None)
            if end is None:
                return unknown
            found.append(self.ids[mark + word[start:end]])
            start = end
        return found


def words(text: str) -> Iterator[str]:
    """Split a text at spaces into lower-case words without accents or control characters.

    Each punctuation character and each ideograph is a word.
    """
    text = unicodedata.normalize("NFD", text.lower())
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Mn")
    word = ""
    for letter in text:
        alone = _is_punctuation(letter) or any(low <= ord(letter) <= high for low, high in _CJK)
        space = letter.isspace() or unicodedata.category(letter) == "Zs"
        if (alone or space) and word:
            yield word
            word = ""
        if alone:
            yield letter
        elif not space and unicodedata.category(letter) not in _CONTROLS and letter not in "\0\ufffd":
            word += letter
    if word:
        yield word


def _is_punctuation(letter: str) -> bool:
    if letter.isascii():  # includes $, ^ and `, which are symbols in Unicode
        return letter.isprintable() and not letter.isalnum() and letter != " "
    return unicodedata.category(letter)[0] == "P"
