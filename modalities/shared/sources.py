"""Groups files that come from one source, such as frames of a clip, which must be in the same split."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ditmoe.outside import Parts

_NUMBERED = re.compile(r"(?:frame|frm|img|image|view|render|f|v|clip|chunk)?[-_. ]?\d+", re.IGNORECASE)
_PIECE = re.compile(
    r"(?:frame|frm|chunk|part|clip|seg(?:ment)?|scene|shot|view|angle|cam|crop|tile|patch|slice|aug|rot)"
    r"[-_. ]?\d++\Z",
    re.IGNORECASE,
)
_PIECE_WORDS = (
    "frame", "frm", "chunk", "part", "clip", "seg", "scene", "shot", "view", "angle", "cam", "crop", "tile", "patch",
    "slice", "aug", "rot",
)  # fmt: skip
_CUT = re.compile(r"(.+)_c\d+")
_BACK = re.compile(r"(?:\d++[-_])+(?=.)", re.DOTALL)
"""Numbers at the end of a name, matched on the reversed name."""


def sources(files: Sequence[Parts], dense: int = 1) -> list[str]:
    """The source of each file: files of one source belong in the same split.

    Args:
        files: paths below the class folder, or below the root.
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
    """The source of each file of each folder, by the files' names.

    Pieces have names such as `x_frame_001`, `x_view2`, UCF-101's `x_c01`; `x_000` beside `y_000`, if the number of
    sources in the folder is plausible; or 001, 002 in a folder of their own below the class. Any other file is its own
    source, by its path.

    Args:
        folders: names of the files in each folder below the class, or below the root.
        dense: for names that only end in a number, the most pieces per source on average, as a multiple of the number
            of sources in the folder.
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
    """The sources of the names in a folder, None for a name that is not a piece; None if all are not.

    Patterns that no name can match are ruled out first for all names at once: a folder may have millions.
    """
    text = "/".join(names).casefold()
    letters = set(text)
    says_cut, says_piece = (
        any(letters.issuperset(word) and word in text for word in words) for words in (("_c",), _PIECE_WORDS)
    )
    worth = says_cut or says_piece or not text.isascii() or _are_numbered(names)
    stems = [_stem(name) for name in names] if worth else []
    if says_cut:
        cut = [
            match[1] + name[len(stem) :] if (match := _CUT.fullmatch(stem)) else None
            for stem, name in zip(stems, names, strict=True)
        ]
        if any(cut):
            return cut
    for source, plausible in (
        (_before_piece, lambda pieces, of: True),
        (_before_numbers, lambda pieces, of: pieces <= dense * of * of),
    ):
        if not stems or (source is _before_piece and not says_piece):
            continue
        named = [source(stem) for stem in stems]
        counts = Counter(name for name in named if name is not None)
        if len(counts) > 1 and max(counts.values()) > 1 and plausible(counts.total(), len(counts)):
            return named
    return None


def _before_piece(stem: str) -> str | None:
    """The part of a name before a piece's word and number: x of `x_frame_001`.

    Linear in the length of the name, as is `_before_numbers`: names in untrusted archives have any length.
    """
    if not (match := _PIECE.search(stem)):
        return None
    before = stem[: match.start()]
    return _on_one_line(before.rstrip("-_. ") or before[:1])


def _before_numbers(stem: str) -> str | None:
    """The part of a name before the numbers at its end: abc of `abc_000010_000020`."""
    match = _BACK.match(stem[::-1])
    return _on_one_line(stem[: len(stem) - match.end()]) if match else None


def _on_one_line(source: str) -> str | None:
    return source if source and "\n" not in source else None


def _are_numbered(names: Sequence[str]) -> bool:
    """Whether `_before_numbers` can distinguish sources: two names differ before a number at their ends."""
    bare = {(name.rpartition(".")[0] or name).rstrip("0123456789") for name in names}
    return sum(name.endswith(("-", "_")) for name in bare) > 1


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name
