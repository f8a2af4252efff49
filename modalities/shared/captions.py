"""Captions of the samples of a data set: which there are, and which of them a training sample has."""

import json
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ditmoe.conditioning import TEXT, Condition, captions_of, class_caption, split_words, text_rows
from ditmoe.conditioning.condition import LABEL
from ditmoe.modality import Captions
from ditmoe.outside import decoded, is_regular, printable, read_regular
from modalities.shared.labels import read_told, told_in

T = TypeVar("T")
_CAPTION = 3
"""Address of the random stream that draws one of several captions, see `datasets.EPOCH`."""
MOST_WORDS = 20_000
"""Of training captions that are kept, the most frequent."""
LOOKED_AT = 1000
"""Training samples, for what is told of captions before training."""
WORDS = "caption_words"
"""Of what a checkpoint remembers of the data."""
LONGEST, MOST, LARGEST = 2000, 64, 2**18
"""Letters of a caption, captions of a sample, bytes of a file of captions."""


@dataclass(frozen=True)
class Described:
    """What samples are: their class indices, and a caption of each."""

    labels: Int64[np.ndarray, " B"]
    captions: Sequence[str]

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


def all_of(labels: Int64[np.ndarray, " B"], captions: Iterable[Sequence[str]]) -> Condition:
    """Conditions with every caption of each sample, of which `one_of_all` draws one."""
    return Described(labels, ["\n".join(" ".join(one.split()) for one in each) for each in captions]).asked


def one_of_all(asked: Condition, seed: int, turns: Sequence[int], flips: Sequence[bool]) -> Condition:
    """With one caption for each sample, drawn for numbers of a seed's stream; of mirror images what is true of them."""
    if (each := captions_of(asked)) is None:
        return asked
    drawn = [_one(told.split("\n"), seed, number) for told, number in zip(each, turns, strict=True)]
    drawn = [mirrored(one) if flip else one for one, flip in zip(drawn, flips, strict=True)]
    return replace(asked, values={**asked.values, TEXT: text_rows(drawn)})


def trimmed(asked: Condition) -> Condition:
    """Without the zeros behind the longest caption, which come of longer ones elsewhere."""
    if TEXT not in asked.values or not len(asked):
        return asked
    rows = asked.values[TEXT]
    width = max(1, int(rows.any(0).nonzero().max()) + 1) if rows.any() else 1
    return replace(asked, values={**asked.values, TEXT: rows[:, :width].contiguous()})


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
        class_of: the name of an item's class, which stands in where it has no caption; "" without one.
    """

    written: Callable[[T], Sequence[str]]
    class_of: Callable[[T], str]

    def of(self, item: T) -> list[str]:
        """All captions of an item, at least one; "" says nothing."""
        if found := list(self.written(item)):
            return found
        return [class_caption(self.class_of(item))]

    def drawn(self, item: T, seed: int, number: int) -> str:
        """The caption of number `number` of a training stream; the first for reference."""
        return _one(self.of(item), seed, number)

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
        return listed_words(self.data_facts().get(WORDS, []))

    def captions_understood(self) -> str:
        """How many training samples have captions of their own, in a line; "" where nobody asks."""
        captioner = getattr(self.data, "captioner", None) if self.captions else None
        if captioner is None:
            return ""
        some = self.data.split("train")[:LOOKED_AT]
        own = sum(bool(list(captioner.written(item))) for item in some)
        rest = ", the others 'a <class>'" if own < len(some) else ""
        return f"captions {own} of {len(some)} training samples looked at have captions of their own{rest}"

    def captions_of_split(self, split: str) -> Iterable[str]:
        if not self.captions:
            raise ValueError("modality.captions must be true for data that describe themselves in sentences")
        return self._described.captions_of_split(split)

    @property
    def _described(self) -> Any:
        """What has the captions."""
        return self.data

    def words_known(self, data_facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Words of the captions as facts, from a checkpoint's facts or of the training data; none without captions.

        Raises:
            ValueError: if the checkpoint's are none.
        """
        if not self.captions:
            return {}
        words = (data_facts or {}).get(WORDS)
        if words is None:
            return {WORDS: words_of(self.captions_of_split("train"))}
        return {WORDS: listed_words(words)}


def listed_words(words: Any) -> list[str]:
    """Words among the facts of a checkpoint; ValueError if they are none."""
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{WORDS} must be a list of words")
    return words


def _one(captions: Sequence[str], seed: int, number: int) -> str:
    if len(captions) == 1:
        return captions[0]
    return captions[np.random.default_rng([seed, _CAPTION, number]).integers(len(captions)).item()]


class WrittenCaptions:
    """What people wrote of files: in a text of the same name, or in the metadata of a folder above.

    Args:
        root: of the files, the last folder that is looked into.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._told: dict[Path, dict[str, list[str]]] = {}

    def __call__(self, file: Path) -> list[str]:
        """The captions of a file, none where nobody wrote one."""
        if found := captions_beside(file):
            return found
        folders = list(file.parents)
        below = folders.index(self.root) + 1 if self.root in folders else 0
        for folder in folders[:below]:
            if folder not in self._told:
                self._told[folder] = read_told(folder)
            if found := self._told[folder].get(file.relative_to(folder).as_posix(), []):
                return shown_captions(found)
        return []


def captions_beside(file: Path) -> list[str]:
    """The captions in the text file of the same name, one a line; none where there is no such file.

    What does not show is escaped; longer ones than `LONGEST` are cut, more than `MOST` left out.

    Raises:
        OSError: if it is there and cannot be read, or is larger than that allows.
    """
    # A folder of frames may have a point in its name.
    text = file.with_name(f"{file.name}.txt") if file.suffix and file.is_dir() else file.with_suffix(".txt")
    if text == file or not is_regular(text):
        return []
    return captions_in(read_regular(text, LARGEST))


def captions_in(content: bytes) -> list[str]:
    """The captions in a text, one a line."""
    lines = decoded(content, "replace").splitlines()
    return [caption for line in lines if (caption := _shown(line.strip()))][:MOST]


def captions_in_json(content: bytes) -> list[str]:
    """The captions in a record of JSON; none where it is damaged, which whoever reads its class says."""
    try:
        return shown_captions(told_in(json.loads(content)))
    except (ValueError, RecursionError):
        return []


def shown_captions(texts: Sequence[str]) -> list[str]:
    """Texts as captions, each one line."""
    return [caption for text in texts[:MOST] if (caption := _shown(" ".join(text.split())))]


def _shown(caption: str) -> str:
    return printable(caption[:LONGEST])[:LONGEST]


def mirrored(caption: str) -> str:
    """What a caption says of the mirror image: left is right."""
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return re.sub(r"\b([Ll]eft|[Rr]ight)\b", lambda found: other[found[0]], caption)


def with_mirrored(captions: Iterable[str]) -> Iterator[str]:
    """Each caption once, those of mirror images among them."""
    seen: set[str] = set()
    for caption in captions:
        for one in (caption, mirrored(caption)):
            if one not in seen:
                seen.add(one)
                yield one


def words_of(captions: Iterable[str], most: int = MOST_WORDS) -> list[str]:
    """Words of captions in small letters, the most frequent first, then by their letters."""
    counts = Counter(word for caption in captions for word in split_words(caption))
    return sorted(counts, key=lambda word: (-counts[word], word))[:most]
