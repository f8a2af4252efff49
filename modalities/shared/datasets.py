"""Common parts of all data sets: splits, the order of training samples, and handling of unreadable files."""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from itertools import chain
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int64

from ditmoe.outside import tell

T, V = TypeVar("T"), TypeVar("V")
K = TypeVar("K", bound=Hashable)
SPLITS = ("train", "val", "test")
EPOCH = 1
"""Address of the random stream of permutations; other random streams of a data set have other addresses."""
NAMED = 20
"""Files named on stderr; further ones are only counted."""
_LOCK = Lock()


def check_split(name: str) -> None:
    if name not in SPLITS:
        raise ValueError(f"a split must be one of {', '.join(SPLITS)}, got {name!r}")


def numbers(size: int, step: int, rank: int = 0, world: int = 1) -> range:
    """Indices in the training stream of a batch; steps and ranks follow one another."""
    first = (step * world + rank) * size
    return range(first, first + size)


def item_of(length: int, seed: int, number: int) -> int:
    """The item at index `number` of the training stream, which has a new permutation of `length` items each epoch."""
    epoch, place = divmod(number, length)
    return int(_permutation(length, seed, epoch)[place])


@lru_cache(maxsize=8)
def _permutation(length: int, seed: int, epoch: int) -> Int64[np.ndarray, " N"]:
    return np.random.default_rng([seed, EPOCH, epoch]).permutation(length)


def first_readable(
    items: Sequence[T], index: int, read: Callable[[T], V | None], category: Callable[[T], Hashable]
) -> tuple[T, V] | None:
    """Read an item, or the next readable one of its class; None if all are unreadable."""
    wanted = category(items[index])
    for i in chain(range(index, len(items)), range(index)):
        item = items[i]
        if category(item) == wanted and (found := read(item)) is not None:
            return item, found
    return None


class LeftOut(dict[K, str]):
    """Name -> reason of items left out so far; each is reported once on stderr, from the 20th on only counted.

    A copy in a worker process is silent: new entries are reported in the main process (`Noted`).

    Args:
        what: description of the items, e.g. "skipped unreadable picture".
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.news: list[tuple[K, str, str]] | None = None
        """In a copy, what was added and not sent yet."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _quiet, (self.what, dict(self))

    def add(self, name: K, reason: str, line: object = None) -> None:
        """Add a name; `line` is shown in place of the reason."""
        with _LOCK:
            if name in self:
                return
            self[name] = reason
            if self.news is not None:
                self.news.append((name, reason, str(line or reason)))
            elif len(self) <= NAMED:
                last = " (further ones are only counted)" if len(self) == NAMED else ""
                tell(f"{self.what} {len(self)}: {line or reason}{last}")


def _quiet(what: str, known: dict[K, str]) -> LeftOut[K]:
    copy: LeftOut[K] = LeftOut(what)
    copy.update(known)
    copy.news = []
    return copy


class Noted:
    """Reads a batch and returns it with the items newly left out; `Reader.read` of a modality with files.

    Args:
        read: reads a batch, with the arguments of `batch`.
        left_out: where `read` records what it left out; copies in a worker process.
    """

    def __init__(self, read: Callable[..., Any], left_out: Sequence[LeftOut[Any]]) -> None:
        self.read, self.left_out = read, list(left_out)

    def __call__(self, *address: int) -> tuple[Any, list[list[tuple[Any, str, str]]]]:
        found = self.read(*address)
        news = [list(of.news or ()) for of in self.left_out]
        for of in self.left_out:
            if of.news:
                of.news.clear()
        return found, news

    def told(self, found: tuple[Any, Sequence[Sequence[tuple[Any, str, str]]]]) -> Any:
        """Record and report here what was left out, and return the batch."""
        for of, news in zip(self.left_out, found[1], strict=True):
            for name, reason, line in news:
                of.add(name, reason, line)
        return found[0]
