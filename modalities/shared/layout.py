"""Which split and which class the folders of a data set say, and which files are pieces of one source."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from jaxtyping import Int8

from ditmoe.outside import Parts, printable
from modalities.shared.datasets import SPLITS, place_of, places_of, splits_at

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
"""Names of splits that may well be others: abbreviations, languages; CycleGAN's `trainA`."""
_NUMBERED = re.compile(r"(?:frame|frm|img|image|view|render|f|v|clip|chunk)?[-_. ]?\d+", re.IGNORECASE)
_PIECE = re.compile(
    r"(.+?)[-_. ]*(?:frame|frm|chunk|part|clip|seg(?:ment)?|scene|shot|view|angle|cam|crop|tile|patch|slice|aug|rot)"
    r"[-_. ]?\d+",
    re.IGNORECASE,
)
_PIECE_WORDS = (
    "frame", "frm", "chunk", "part", "clip", "seg", "scene", "shot", "view", "angle", "cam", "crop", "tile", "patch",
    "slice", "aug", "rot",
)  # fmt: skip
_CUT = re.compile(r"(.+)_c\d+")
_NUMBERS = re.compile(r"(.+?)(?:[-_]\d+)+")


@dataclass(frozen=True)
class Place:
    """Where something stands: split and class by its folders, None where they say none, and its path below these."""

    split: str | None
    category: str | None
    parts: Parts


@dataclass(frozen=True)
class Layout:
    """A place for each file or folder, None outside of the splits; and from what the splits come, "" for nothing."""

    places: list[Place | None]
    origin: str


@cache
def split_word(name: str) -> str | None:
    """The split whose name this is, in any case and usual spelling."""
    return next((split for split, word in _EXACT.items() if word.fullmatch(name)), None)


@cache
def short_split(name: str) -> str | None:
    """The split that a name says which may be another's, as `tr` or `trainA`: to be believed only among such alone."""
    match = _SHORT.fullmatch(name)
    return match["word"] or match.lastgroup if match else None


def _side(name: str) -> Parts:
    """The class that `trainA` has in its name."""
    match = _SHORT.fullmatch(name)
    return (match["side"],) if match and match["side"] else ()


@cache
def split_within(name: str) -> tuple[str, str] | None:
    """The split that a name has as one of its words (sky_train, val2017), and what else it has, digits aside."""
    found = [(split, m) for split, word in _WITHIN.items() for m in [word.search(name)] if m]
    if len(found) != 1:
        return None
    split, match = found[0]
    rest = name[: match.start()] + "*" + name[match.end() :]
    return split, re.sub(r"[-_. ]*\d[\d.]*", "", rest).casefold()


def arrange(files: Sequence[Parts]) -> Layout:
    """Split and class of each file by the names of its folders, see `arrange_folders`."""
    numbers = {folder: i for i, folder in enumerate(dict.fromkeys(parts[:-1] for parts in files))}
    layout = arrange_folders(list(numbers))
    places = [(parts, layout.places[numbers[parts[:-1]]]) for parts in files]
    return Layout(
        [p and Place(p.split, p.category, (*p.parts, parts[-1])) for parts, p in places], layout.origin
    )


def arrange_folders(folders: Sequence[Parts]) -> Layout:
    """Split and class of the files in each of some folders, by the names of these; `()` is the root.

    Splits are folders at the top (`train/cat/1.png`), or below each class (`airplane/train/1.off`, ModelNet), or both
    of these below a single folder; classes are the first folders beside that. A folder that is named as a split is one
    only among others, or alone: `train` between `car` and `ship` is a class. `tr` and `te`, and CycleGAN's `trainA` and
    `testB` (of the classes A and B), are splits only where nothing else is beside them.
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
    """Name -> split of the folders at the top that are splits."""
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
    """Name -> split, if all are names of splits, some of them short ones, and not all of the same split."""
    found = {name: split for name in names if (split := split_word(name) or short_split(name))}
    whole = len(found) == len(names) and len(set(found.values())) > 1
    return found if whole and not all(map(split_word, names)) else {}


def _split_below_classes(folders: Sequence[Parts], tops: set[str]) -> dict[str, str]:
    """Name -> split of the folders that each class has for itself."""
    below = {(folder[0], folder[1]) for folder in folders if len(folder) > 1}
    found = {name: split for _, name in below if (split := split_word(name))}
    found = _all_short({name for _, name in below}) or found
    classes = {category for category, name in below if name in found}
    return found if classes == tops and len(set(found.values())) > 1 else {}


def sources(files: Sequence[Parts], dense: int = 1) -> list[str]:
    """What each file is a piece of: files of one source belong on one side of a split.

    Args:
        files: paths below the class, or below the root.
        dense: see `sources_in`.
    """
    folders: dict[Parts, list[int]] = defaultdict(list)
    for i, parts in enumerate(files):
        folders[parts[:-1]].append(i)
    found = [""] * len(files)
    names = {folder: [files[i][-1] for i in inside] for folder, inside in folders.items()}
    for inside, keys in zip(folders.values(), sources_in(names, dense), strict=True):
        for i, key in zip(inside, keys, strict=True):
            found[i] = key
    return found


def sources_in(folders: Mapping[Parts, Sequence[str]], dense: int = 1) -> Iterator[list[str]]:
    """What each file of each folder is a piece of, by the files' names.

    Pieces are known by their names: `x_frame_001`, `x_view2`, UCF-101's `x_c01`; `x_000` beside `y_000`, where a
    folder has as many sources as that is plausible for; 001, 002 in a folder of their own below the class. What is no
    piece is its own source, by its path.

    Args:
        folders: names of the files in each folder below the class, or below the root.
        dense: pieces of a source on average, at most so many times the number of sources in the folder, for names
            that end in a number and say nothing else.
    """
    numbered = [
        folder
        for folder, inside in folders.items()
        if len(folder) > 1 and len(inside) > 1 and all(_NUMBERED.fullmatch(_stem(name)) for name in inside)
    ]
    sequences = set(numbered) if len(numbered) > 1 else set()
    for folder, inside in folders.items():
        if folder in sequences:
            yield ["/".join(folder)] * len(inside)
            continue
        prefix = "".join(f"{name}/" for name in folder)
        if (pieces := _pieces(inside, dense)) is None:
            yield [prefix + name for name in inside]
        else:
            yield [
                prefix + (name if piece is None else piece)
                for name, piece in zip(inside, pieces, strict=True)
            ]


def _pieces(names: Sequence[str], dense: int) -> list[str | None] | None:
    """Of the names in a folder, those of their sources, None for what is no piece; None where all are none.

    What no name can match is seen first in all of them at once: a folder may have millions.
    """
    text = "/".join(names).casefold()
    letters = set(text)
    says = [
        pattern
        for pattern, words in ((_CUT, ("_c",)), (_PIECE, _PIECE_WORDS))
        if any(letters.issuperset(word) and word in text for word in words)
    ]
    stems = [_stem(name) for name in names] if says or not text.isascii() or _are_numbered(names) else []
    if _CUT in says:
        cut = [
            match[1] + name[len(stem) :] if (match := _CUT.fullmatch(stem)) else None
            for stem, name in zip(stems, names, strict=True)
        ]
        if any(cut):
            return cut
    for pattern, plausible in (
        (_PIECE, lambda pieces, of: True),
        (_NUMBERS, lambda pieces, of: pieces <= dense * of * of),
    ):
        if not stems or (pattern is _PIECE and pattern not in says):
            continue
        named = [match[1] if (match := pattern.fullmatch(stem)) else None for stem in stems]
        counts = Counter(name for name in named if name is not None)
        if len(counts) > 1 and max(counts.values()) > 1 and plausible(counts.total(), len(counts)):
            return named
    return None


def _are_numbered(names: Sequence[str]) -> bool:
    """Whether `_NUMBERS` can tell several sources: two names that differ before a number at their ends."""
    bare = {(name.rpartition(".")[0] or name).rstrip("0123456789") for name in names}
    return sum(name.endswith(("-", "_")) for name in bare) > 1


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def draw(
    keys: Sequence[str], shares: Sequence[float], categories: Sequence[object] | None = None
) -> tuple[list[str], int]:
    """A split for each item, see `draw_numbers`, and how many are exceptions."""
    found, moved, _ = draw_numbers(keys, shares, categories)
    return [SPLITS[i] for i in found.tolist()], moved


def draw_numbers(
    keys: Sequence[str], shares: Sequence[float], categories: Sequence[object] | np.ndarray | None = None
) -> tuple[Int8[np.ndarray, " N"], int, int]:
    """A split for each item by a hash of its key, so that other items do not change it.

    There are exceptions: of a class without anything to train on, the source nearest to it is moved there. And in
    small sets: where a split comes out with less than half its share, or with too few to be
    measured, those whose hash lies nearest are moved into it, all of a key together.

    Args:
        keys: of the items' sources.
        shares: of train and val; what is left is that of test.
        categories: of the items; a class keeps something to train on, where others can be moved.

    Returns:
        An index into `SPLITS` for each item, how many are exceptions, and how many share their source with others.
    """
    places = places_of(keys)
    hashed = splits_at(places, shares)
    found = (
        hashed if categories is None or shares[0] <= 1e-6 else _with_all_trained(places, hashed, categories)
    )
    _, counts = np.unique(places, return_counts=True)
    pieces = int(counts[counts > 1].sum())
    share, least = _least(len(keys), shares)
    sizes = np.bincount(found, minlength=len(SPLITS))
    if all(sizes[i] >= least[split] for i, split in enumerate(SPLITS)):
        return found, int((found != hashed).sum()), pieces
    side = _moved(keys, found, share, least, [None] * len(keys) if categories is None else list(categories))
    found = np.array([SPLITS.index(side[key]) for key in keys], np.int8)
    return found, int((found != hashed).sum()), pieces


def _with_all_trained(
    places: np.ndarray, found: Int8[np.ndarray, " N"], categories: Sequence[object] | np.ndarray
) -> Int8[np.ndarray, " N"]:
    """The splits with something of each class in train: all that shares its place, as pieces of one source do."""
    listed = categories.tolist() if isinstance(categories, np.ndarray) else categories
    trained = {category for category, split in zip(listed, found.tolist(), strict=True) if split == 0}
    nearest: dict[object, int] = {}
    for i, category in enumerate(listed):
        if category is not None and category not in trained:
            best = nearest.setdefault(category, i)
            nearest[category] = i if places[i] < places[best] else best
    return np.where(np.isin(places, places[list(nearest.values())]), np.int8(0), found) if nearest else found


def _least(num: int, shares: Sequence[float]) -> tuple[dict[str, float], dict[str, int]]:
    """Share of each split, and the items that it should have at the least."""
    share = dict(zip(SPLITS, (*shares[:2], 1 - sum(shares[:2])), strict=True))
    few = {"train": 1, "val": 1 if num >= 6 else 0, "test": 2 if num >= 4 else 0}
    return share, {s: max(few[s], int(num * share[s] / 2)) if share[s] > 1e-6 else 0 for s in SPLITS}


def _moved(
    keys: Sequence[str],
    found: Int8[np.ndarray, " N"],
    share: Mapping[str, float],
    least: Mapping[str, int],
    categories: Sequence[object],
) -> dict[str, str]:
    """Key -> split, when what small splits lack was moved into them."""
    side = {key: SPLITS[i] for key, i in zip(keys, found.tolist(), strict=True)}
    counts, sizes = Counter(keys), Counter(side[key] for key in keys)
    ends: dict[str, Callable[[str], float]] = {
        "train": place_of,
        "val": lambda key: abs(place_of(key) - share["train"] - share["val"] / 2),
        "test": lambda key: -place_of(key),
    }
    of_key = dict(zip(keys, categories, strict=True))
    trained = Counter(c for key, c in zip(keys, categories, strict=True) if side[key] == "train")

    def cost(key: str, split: str) -> tuple[bool, float, str]:
        bares = side[key] == "train" and trained[of_key[key]] <= counts[key]
        return bares, ends[split](key), key

    for split in ("train", "test", "val"):
        while sizes[split] < least[split]:
            rich = [k for k in side if side[k] != split and sizes[side[k]] - counts[k] >= least[side[k]]]
            if not rich:
                break
            key = min(rich, key=partial(cost, split=split))
            trained[of_key[key]] += counts[key] * ((split == "train") - (side[key] == "train"))
            sizes[side[key]] -= counts[key]
            sizes[split] += counts[key]
            side[key] = split
    return side


def drawn_by_name(moved: int, pieces: int, shares: Sequence[float]) -> str:
    """From what the splits of `draw` come, in words; `pieces` are items that share their source with others."""
    parts = [f"{share:.0%}" for share in (*shares[:2], 1 - sum(shares[:2]))]
    words = f"drawn by name ({' '.join(parts)})"
    if pieces:
        words += f", {pieces} pieces by their sources"
    return words + (f", {moved} moved because the set or a class is small" if moved else "")
