"""Which files are pieces of one source, such as frames of a clip: a split must not tear them apart."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ditmoe.outside import Parts

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
