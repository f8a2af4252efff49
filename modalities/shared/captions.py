"""Captions of the samples of a data set, and the choice of one of them for each training sample."""

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
from ditmoe.outside import decoded, is_regular, parse_json, printable, read_beside, real_path
from modalities.shared.datasets import LeftOut
from modalities.shared.labels import read_told, told_in

T = TypeVar("T")
_CAPTION = 3
"""Address of the random stream that picks one of several captions, see `datasets.EPOCH`."""
MOST_WORDS = 20_000
"""Size of the vocabulary: the most frequent words of the training captions are kept."""
LOOKED_AT = 1000
"""Training samples inspected for the summary of captions before training."""
WORDS = "caption_words"
"""Name of the vocabulary among the data facts of a checkpoint."""
LONGEST, MOST, LARGEST = 2000, 64, 2**18
"""Most characters of a caption, captions of a sample, and bytes of a caption file."""


@dataclass(frozen=True)
class Described:
    """Class indices and captions of samples, one caption each."""

    labels: Int64[np.ndarray, " B"]
    captions: Sequence[str]

    @property
    def asked(self) -> Condition:
        """These labels as conditions; a sample without a class is still conditional, by its caption."""
        values = {LABEL: torch.from_numpy(self.labels), TEXT: text_rows(self.captions)}
        return Condition(values, torch.zeros(len(self.labels), dtype=torch.bool))


Labels = Int64[np.ndarray, " B"] | Described
"""Labels of samples: class indices, or these with captions."""


def asked_of(found: Labels) -> Tensor | Condition:
    """Convert labels to what a batch returns: class indices, or conditions with captions."""
    return found.asked if isinstance(found, Described) else torch.from_numpy(found)


def all_of(labels: Int64[np.ndarray, " B"], captions: Iterable[Sequence[str]]) -> Condition:
    """Conditions with every caption of each sample, from which `one_of_all` picks one."""
    return Described(labels, ["\n".join(" ".join(one.split()) for one in each) for each in captions]).asked


def one_of_all(asked: Condition, seed: int, turns: Sequence[int], flips: Sequence[bool]) -> Condition:
    """Pick one caption per sample by its stream index; for mirrored samples, left and right are exchanged in it."""
    if (each := captions_of(asked)) is None:
        return asked
    drawn = [_one(told.split("\n"), seed, number) for told, number in zip(each, turns, strict=True)]
    drawn = [mirrored(one) if flip else one for one, flip in zip(drawn, flips, strict=True)]
    return replace(asked, values={**asked.values, TEXT: text_rows(drawn)})


def trimmed(asked: Condition) -> Condition:
    """Cut the zero padding behind the longest caption, left from longer ones elsewhere."""
    if TEXT not in asked.values or not len(asked):
        return asked
    rows = asked.values[TEXT]
    width = max(1, int(rows.any(0).nonzero().max()) + 1) if rows.any() else 1
    return replace(asked, values={**asked.values, TEXT: rows[:, :width].contiguous()})


def with_classes(found: Labels, change: Int64[np.ndarray, " _"]) -> Labels:
    """Map the class indices by a table."""
    if isinstance(found, Described):
        return replace(found, labels=change[found.labels])
    return change[found]


@dataclass(frozen=True)
class Captioner(Generic[T]):
    """Captions of the items of a data set.

    Attributes:
        written: gives the written captions of an item, possibly none.
        class_of: gives the name of an item's class, the fallback if there is no caption; "" without a class.
    """

    written: Callable[[T], Sequence[str]]
    class_of: Callable[[T], str]

    def of(self, item: T) -> list[str]:
        """All captions of an item, at least one, which may be empty ("")."""
        if found := list(self.written(item)):
            return found
        return [class_caption(self.class_of(item))]

    def drawn(self, item: T, seed: int, number: int) -> str:
        """The caption of an item at index `number` of a training stream."""
        return _one(self.of(item), seed, number)

    def first(self, item: T) -> str:
        """The first caption of an item, where none is picked at random."""
        return self.of(item)[0]

    def distinct(self, items: Iterable[T]) -> Iterator[str]:
        """The distinct captions of many items."""
        seen: set[str] = set()
        for item in items:
            for caption in self.of(item):
                if caption not in seen:
                    seen.add(caption)
                    yield caption


class Captioned(Captions):
    """A modality whose data set has captions if its option `captions` is set."""

    captions: bool

    @property
    @abstractmethod
    def data(self) -> Any:
        """The data set, which has `captions_of_split`."""

    @abstractmethod
    def data_facts(self) -> dict[str, Any]:
        """As in `Modality`; with captions, they contain `WORDS`."""

    @property
    def caption_words(self) -> Sequence[str]:
        return listed_words(self.data_facts().get(WORDS, []))

    def captions_understood(self) -> str:
        """One line on how many training samples have captions of their own; "" without captions."""
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
        """The data source that has the captions."""
        return self.data

    def words_known(self, data_facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The vocabulary as a data fact, from a checkpoint or from the training data; empty without captions.

        Raises:
            ValueError: if the checkpoint's vocabulary is invalid.
        """
        if not self.captions:
            return {}
        words = (data_facts or {}).get(WORDS)
        if words is None:
            return {WORDS: words_of(self.captions_of_split("train"))}
        return {WORDS: listed_words(words)}


def listed_words(words: Any) -> list[str]:
    """Validate the vocabulary in the facts of a checkpoint; ValueError if it is not a list of words."""
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{WORDS} must be a list of words")
    return words


def _one(captions: Sequence[str], seed: int, number: int) -> str:
    if len(captions) == 1:
        return captions[0]
    return captions[np.random.default_rng([seed, _CAPTION, number]).integers(len(captions)).item()]


class WrittenCaptions:
    """Captions written for files: in a text file of the same name, or in the metadata of a parent folder.

    Folders whose captions lie outside of the data, by a link, are counted on stderr: their text could be private.

    Args:
        root: the topmost folder searched for metadata.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._told: dict[Path, dict[str, list[str]]] = {}
        self._seen: set[Path] = set()
        self._outside: LeftOut[Path] = LeftOut("captions from outside of the data, folder")

    def __call__(self, file: Path) -> list[str]:
        """The captions of a file, possibly none."""
        if found := captions_beside(file):
            self._look(file.parent)
            return found
        folders = list(file.parents)
        below = folders.index(self.root) + 1 if self.root in folders else 0
        for folder in folders[:below]:
            if folder not in self._told:
                self._told[folder] = read_told(folder)
            if found := self._told[folder].get(file.relative_to(folder).as_posix(), []):
                self._look(folder)
                return shown_captions(found)
        return []

    def _look(self, folder: Path) -> None:
        if folder not in self._seen:
            self._seen.add(folder)
            if not (real := real_path(folder)).is_relative_to(real_path(self.root)):
                self._outside.add(folder, f"{folder} is a link to {real}, or lies in one")


def captions_beside(file: Path) -> list[str]:
    """The captions in the text file of the same name, one per line; none if there is no such file.

    Non-printable characters are escaped; captions are cut at `LONGEST` characters, and at most `MOST` are read.

    Raises:
        OSError, ValueError: if it exists and cannot be read, is too large, or a link out of its folder.
    """
    # A folder of frames may have a dot in its name.
    text = file.with_name(f"{file.name}.txt") if file.suffix and file.is_dir() else file.with_suffix(".txt")
    if text == file or not is_regular(text):
        return []
    return captions_in(read_beside(text, LARGEST))


def captions_in(content: bytes) -> list[str]:
    """The captions in a text, one per line."""
    lines = decoded(content, "replace").splitlines()
    return [caption for line in lines if (caption := _shown(line.strip()))][:MOST]


def captions_in_json(content: bytes) -> list[str]:
    """The captions in a JSON record; none if it is damaged, which is reported where its class is read."""
    try:
        return shown_captions(told_in(parse_json(content)))
    except (ValueError, RecursionError):
        return []


def shown_captions(texts: Sequence[str]) -> list[str]:
    """Texts as captions, one line each."""
    return [caption for text in texts[:MOST] if (caption := _shown(" ".join(text.split())))]


def _shown(caption: str) -> str:
    return printable(caption[:LONGEST])[:LONGEST]


def mirrored(caption: str) -> str:
    """The caption of the mirror image: left and right exchanged."""
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return re.sub(r"\b([Ll]eft|[Rr]ight)\b", lambda found: other[found[0]], caption)


def with_mirrored(captions: Iterable[str]) -> Iterator[str]:
    """The distinct captions, including those of the mirror images."""
    seen: set[str] = set()
    for caption in captions:
        for one in (caption, mirrored(caption)):
            if one not in seen:
                seen.add(one)
                yield one


def words_of(captions: Iterable[str], most: int = MOST_WORDS) -> list[str]:
    """The words of captions in lower case, by decreasing frequency, then alphabetically."""
    counts = Counter(word for caption in captions for word in split_words(caption))
    return sorted(counts, key=lambda word: (-counts[word], word))[:most]
