"""Captions of the samples of a data set: which there are, and which of them a training sample has."""

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ditmoe.conditioning import TEXT, Condition, text_rows
from ditmoe.conditioning.condition import LABEL
from ditmoe.modality import Captions
from ditmoe.outside import is_regular, printable, read_regular

T = TypeVar("T")
TEMPLATE = "a {class}"
"""Of a sample that has no caption but a class."""
_CAPTION = 3
"""Address of the random stream that draws one of several captions, see `datasets.EPOCH`."""
MOST_WORDS = 20_000
"""Of training captions that are kept, the most frequent."""
WORDS = "caption_words"
"""Of what a checkpoint remembers of the data."""
LONGEST, MOST, LARGEST = 2000, 64, 2**18
"""Letters of a caption, captions of a sample, bytes of a file of captions."""


@dataclass(frozen=True)
class Described:
    """What samples are: their class indices, and a caption of each."""

    labels: Int64[np.ndarray, " B"]
    captions: Sequence[str]

    def __getitem__(self, rows: np.ndarray) -> "Described":
        """That of some samples."""
        return Described(self.labels[rows], [self.captions[i] for i in np.arange(len(self.captions))[rows]])

    @property
    def asked(self) -> Condition:
        """As conditions; a sample without a class asks for something all the same."""
        values = {LABEL: torch.from_numpy(self.labels), TEXT: text_rows(self.captions)}
        return Condition(values, torch.zeros(len(self.labels), dtype=torch.bool))


Labels = Int64[np.ndarray, " B"] | Described
"""What a data set says of samples."""


def asked_of(found: Labels) -> Tensor | Condition:
    """What a data set says of samples as a batch hands it on: class indices, or conditions with captions."""
    return found.asked if isinstance(found, Described) else torch.from_numpy(found)


def with_classes(found: Labels, change: Int64[np.ndarray, " _"]) -> Labels:
    """The same with other class indices, by a table."""
    if isinstance(found, Described):
        return replace(found, labels=change[found.labels])
    return change[found]


@dataclass(frozen=True)
class Captioner(Generic[T]):
    """Captions of the items of a data set.

    Attributes:
        written: those of an item, none where nobody wrote one.
        class_of: the name of an item's class, "" without one.
        template: of an item without a caption, "{class}" within it stands for its class.
    """

    written: Callable[[T], Sequence[str]]
    class_of: Callable[[T], str]
    template: str = TEMPLATE

    def of(self, item: T) -> list[str]:
        """All captions of an item, at least one; "" says nothing."""
        if found := list(self.written(item)):
            return found
        name = self.class_of(item)
        return [self.template.replace("{class}", name.replace("_", " ")) if name else ""]

    def drawn(self, item: T, seed: int, number: int) -> str:
        """The caption of number `number` of a training stream; the first for reference."""
        found = self.of(item)
        if len(found) == 1:
            return found[0]
        return found[np.random.default_rng([seed, _CAPTION, number]).integers(len(found))]

    def first(self, item: T) -> str:
        """The caption of an item where none is drawn."""
        return self.of(item)[0]

    def distinct(self, items: Iterable[T]) -> Iterator[str]:
        """Each caption of many items, once."""
        seen: set[str] = set()
        for item in items:
            for caption in self.of(item):
                if caption not in seen:
                    seen.add(caption)
                    yield caption


class Captioned(Captions):
    """A modality whose data set has captions, by its option `captions`."""

    captions: bool

    @property
    @abstractmethod
    def data(self) -> Any:
        """The data set, which has `captions_of_split`."""

    @abstractmethod
    def data_facts(self) -> dict[str, Any]:
        """Of `Modality`; those of a modality with captions have `WORDS`."""

    @property
    def caption_words(self) -> Sequence[str]:
        return self.data_facts().get(WORDS, [])

    def captions_of_split(self, split: str) -> Iterable[str]:
        return self.data.captions_of_split(split)


def captions_beside(file: Path) -> list[str]:
    """The captions in the text file of the same name, one a line; none where there is no such file.

    Lines that do not show are escaped; longer ones than `LONGEST` are cut, more than `MOST` left out.

    Raises:
        OSError: if it is there and cannot be read, or is larger than that allows.
    """
    text = file.with_suffix(".txt")
    if text == file or not is_regular(text):
        return []
    return captions_in(read_regular(text, LARGEST))


def captions_in(content: bytes) -> list[str]:
    """The captions in a text, one a line."""
    lines = (printable(line.strip()) for line in content.decode("utf-8-sig", "replace").splitlines())
    return [line[:LONGEST] for line in lines if line][:MOST]


def mirrored(caption: str) -> str:
    """What a caption says of the mirror image: left is right."""
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return re.sub(r"\b([Ll]eft|[Rr]ight)\b", lambda found: other[found[0]], caption)


def words_of(captions: Iterable[str], most: int = MOST_WORDS) -> list[str]:
    """Words of captions in small letters, the most frequent first, then by their letters."""
    counts = Counter(word for caption in captions for word in split_words(caption))
    return sorted(counts, key=lambda word: (-counts[word], word))[:most]


def split_words(caption: str) -> list[str]:
    """Words and marks of a caption in small letters."""
    return re.findall(r"\w+|[^\w\s]", caption.lower())
