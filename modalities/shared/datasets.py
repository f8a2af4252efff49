"""What data sets of every kind do alike: splits, the order of training, and what becomes of unreadable files."""

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
"""Address of the stream of permutations; what a data set draws besides has other numbers."""
NAMED = 20
"""Files that are named on stderr before they are only counted."""
_LOCK = Lock()


def check_split(name: str) -> None:
    if name not in SPLITS:
        raise ValueError(f"a split must be one of {', '.join(SPLITS)}, got {name!r}")


def numbers(size: int, step: int, rank: int = 0, world: int = 1) -> range:
    """Which samples of the training stream are in a batch: those of all ranks and steps, one after the other."""
    first = (step * world + rank) * size
    return range(first, first + size)


def item_of(length: int, seed: int, number: int) -> int:
    """Which of `length` items is number `number` of the training stream, which has a new permutation each epoch."""
    epoch, place = divmod(number, length)
    return int(_permutation(length, seed, epoch)[place])


@lru_cache(maxsize=8)
def _permutation(length: int, seed: int, epoch: int) -> Int64[np.ndarray, " N"]:
    return np.random.default_rng([seed, EPOCH, epoch]).permutation(length)


def first_readable(
    items: Sequence[T], index: int, read: Callable[[T], V | None], category: Callable[[T], Hashable]
) -> tuple[T, V] | None:
    """An item and what is read of it, or the next one of its class where it is unreadable; None where all are."""
    wanted = category(items[index])
    for i in chain(range(index, len(items)), range(index)):
        item = items[i]
        if category(item) == wanted and (found := read(item)) is not None:
            return item, found
    return None


class LeftOut(dict[K, str]):
    """Name -> reason of what was left out so far; each is told once on stderr, from the 20th on they are counted.

    A copy in another process is quiet: what is new there is told where it comes back to (`Noted`).

    Args:
        what: they are, "skipped unreadable picture".
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.news: list[tuple[K, str, str]] | None = None
        """In a copy, what was added and not sent yet."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _quiet, (self.what, dict(self))

    def add(self, name: K, reason: str, line: object = None) -> None:
        """Note a name; `line` is shown in place of the reason."""
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
    """What reads a batch, and what it newly left out on the way; `Reader.read` of a modality with files.

    Args:
        read: makes what is read of the arguments of `batch`.
        left_out: where it notes what it left out; in another process these are copies.
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
        """What was read, when all that was left out is noted and told here, too."""
        for of, news in zip(self.left_out, found[1], strict=True):
            for name, reason, line in news:
                of.add(name, reason, line)
        return found[0]
