"""Infers splits and classes from the names of a data set's folders."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ditmoe.outside import Parts, printable

_WORDS = {
    "train": r"train(?:ing)?(?:[-_ ]?(?:set|data))?",
    "val": r"(?:val(?:id(?:at(?:e|ion))?)?|eval(?:uation)?|dev)(?:[-_ ]?(?:set|data))?",
    "test": r"test(?:ing)?(?:[-_ ]?(?:set|data))?",
}
_EXACT = {split: re.compile(word, re.IGNORECASE) for split, word in _WORDS.items()}
_WITHIN = {
    split: re.compile(rf"(?:^|(?<=[-_. ])){word}(?=$|[-_. \d])", re.I) for split, word in _WORDS.items()
}
_SHORT = re.compile(
    r"(?:(?P<train>tr|trn)|(?P<val>va|vl)|(?P<test>te|ts|tst))|(?P<word>train|val|test)[-_]?(?P<side>[AB])"
)
"""Ambiguous names of splits: abbreviations, which may be languages; CycleGAN's `trainA`."""
_NUMBER = re.compile(r"([-_. ]++)(?!\d)|[-_. ]*+\d[\d.]*+")
"""A number with the separators before it; or separators without a number (group 1), consumed once."""


@dataclass(frozen=True)
class Place:
    """Split and class of a file by its folders, None if they do not say, and its path below these."""

    split: str | None
    category: str | None
    parts: Parts


@dataclass(frozen=True)
class Layout:
    """A place for each file or folder, None outside the splits; and the origin of the splits, "" without any."""

    places: list[Place | None]
    origin: str


@cache
def split_word(name: str) -> str | None:
    """The split with this name, in any case and usual spelling."""
    return next((split for split, word in _EXACT.items() if word.fullmatch(name)), None)


@cache
def short_split(name: str) -> str | None:
    """The split of an ambiguous name such as `tr` or `trainA`: valid only among other such names."""
    match = _SHORT.fullmatch(name)
    return match["word"] or match.lastgroup if match else None


def _side(name: str) -> Parts:
    """The class in a name such as `trainA`."""
    match = _SHORT.fullmatch(name)
    return (match["side"],) if match and match["side"] else ()


@cache
def split_within(name: str) -> tuple[str, str] | None:
    """The split that is one word of a name (sky_train, val2017), and the rest of the name without digits."""
    found = [(split, m) for split, word in _WITHIN.items() for m in [word.search(name)] if m]
    if len(found) != 1:
        return None
    split, match = found[0]
    rest = name[: match.start()] + "*" + name[match.end() :]
    return split, _NUMBER.sub(r"\1", rest).casefold()


def arrange(files: Sequence[Parts]) -> Layout:
    """Split and class of each file by its folder names, see `arrange_folders`."""
    numbers = {folder: i for i, folder in enumerate(dict.fromkeys(parts[:-1] for parts in files))}
    layout = arrange_folders(list(numbers))
    places = [(parts, layout.places[numbers[parts[:-1]]]) for parts in files]
    return Layout(
        [p and Place(p.split, p.category, (*p.parts, parts[-1])) for parts, p in places], layout.origin
    )


def only_class(root: Path, samples: Iterable[tuple[Parts, Place | None, int]]) -> list[str]:
    """A note if all samples are of one class, in folders that may be the classes meant: the root is one too high.

    Args:
        samples: folder, its place, and how many samples it holds.
    """
    found = [(folder, place, num) for folder, place, num in samples if place and place.category]
    names = {place.parts[0] for _, place, _ in found if place.parts}
    if (
        len({place.category for _, place, _ in found}) != 1
        or not 2 <= len(names) <= sum(n for *_, n in found) / 2
    ):
        return []
    tops = {folder[: len(folder) - len(place.parts)] for folder, place, _ in found}
    told = f"all is of the class {found[0][1].category}"
    if len(tops) > 1:
        return [f"{told}; for its own folders as classes, put them into those of the splits"]
    return [f"{told}; for its own folders as classes give root={root.joinpath(*tops.pop())}"]


def arrange_folders(folders: Sequence[Parts]) -> Layout:
    """Split and class of the files in each folder, by the folders' names; `()` is the root.

    Splits are top-level folders (`train/cat/1.png`), or folders below each class (`airplane/train/1.off`, ModelNet),
    or either of these below a single folder; classes are the first of the other folders. A folder with the name of a
    split counts as one only among other splits, or alone: `train` between `car` and `ship` is a class. `tr` and `te`,
    and CycleGAN's `trainA` and `testB` (classes A and B), are splits only if no other folders are beside them.
    """
    tops = {folder[0] for folder in folders if folder}
    if splits := _split_folders(folders):
        sides = {name: _side(name) for name in splits}
        several = len({*sides.values()}) > 1
        places = [
            _below(splits.get(folder[0]), (*(sides.get(folder[0], ()) if several else ()), *folder[1:]))
            if folder
            else None
            for folder in folders
        ]
        return Layout(places, _named(splits))
    if len(tops) == 1 and all(folders):
        within = [folder[1:] for folder in folders]
        if _split_folders(within) or _split_below_classes(within, {folder[0] for folder in within if folder}):
            return arrange_folders(within)
    if inner := _split_below_classes(folders, tops):
        places = [
            Place(split, folder[0], folder[2:]) if folder[1:] and (split := inner.get(folder[1])) else None
            for folder in folders
        ]
        return Layout(places, f"{_named(inner)} in each class")
    return Layout([_place(None, folder) for folder in folders], "")


def _below(split: str | None, folder: Parts) -> Place | None:
    return _place(split, folder) if split else None


def _place(split: str | None, folder: Parts) -> Place:
    return Place(split, folder[0], folder[1:]) if folder else Place(split, None, ())


def _named(splits: dict[str, str]) -> str:
    return "from the folders " + ", ".join(
        printable(name if name == split else f"{name} ({split})") for name, split in sorted(splits.items())
    )


def _split_folders(folders: Sequence[Parts]) -> dict[str, str]:
    """Name -> split of the top-level folders that are splits."""
    inner: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        if folder:
            inner[folder[0]].update(folder[1:2])
    if short := _all_short(inner):
        return short
    exact = {name: split for name in inner if (split := split_word(name))}
    if len(set(exact.values())) > 1 or (exact and len(exact) == len(inner)):
        return exact
    if "train" in exact.values():
        below = set().union(*(inner[name] for name in exact))
        others = set().union(*(inner[name] for name in inner if name not in exact))
        if below and (not others or below & others) and not all(map(split_word, below)):
            return exact
    alike: dict[str, dict[str, str]] = defaultdict(dict)
    for name in inner:
        if found := split_within(name):
            alike[found[1]][name] = found[0]
    best = max(alike.values(), key=len, default={})
    return best if len(set(best.values())) > 1 else {}


def _all_short(names: Collection[str]) -> dict[str, str]:
    """Name -> split, if all are names of splits, some of them ambiguous, and not all of the same split."""
    found = {name: split for name in names if (split := split_word(name) or short_split(name))}
    whole = len(found) == len(names) and len(set(found.values())) > 1
    return found if whole and not all(map(split_word, names)) else {}


def _split_below_classes(folders: Sequence[Parts], tops: set[str]) -> dict[str, str]:
    """Name -> split of the folders below each class."""
    below = {(folder[0], folder[1]) for folder in folders if len(folder) > 1}
    found = {name: split for _, name in below if (split := split_word(name))}
    found = _all_short({name for _, name in below}) or found
    classes = {category for category, name in below if name in found}
    return found if classes == tops and len(set(found.values())) > 1 else {}
