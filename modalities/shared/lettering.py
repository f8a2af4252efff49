"""Fonts for labels in any script: system fonts where Pillow's own has no glyphs."""

import os
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont

from ditmoe.outside import at_home, files_below, printable

FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/System/Library/Fonts",
    "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts", "/run/current-system/sw/share/X11/fonts",
)  # fmt: skip
"""System font folders, besides `fonts` in XDG_DATA_HOME and XDG_DATA_DIRS. No program is run to find them."""
GOOD = ("notosans", "dejavusans", "liberationsans", "arial", "segoeui", "helvetica", "sans")
ODD = ("bold", "italic", "oblique", "mono", "serif", "light", "black", "thin", "condensed")
"""Words in file names of fonts that are tried after the others."""
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
MOST = 1000
"""Most fonts tried for a label."""
SEARCHES = 16
"""Most searches for the labels of one sheet."""
_NOWHERE = "\U0010fffe"  # a noncharacter, for which no font has a glyph
_SIZE = 24


class Face(NamedTuple):
    """The font in a file, the first of a collection; without a file, Pillow's own."""

    file: str = ""

    def at(self, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        """The font at a size; OSError if the file has no scalable font."""
        if not self.file:
            return ImageFont.load_default(size=size)
        return ImageFont.truetype(self.file, size)


class Lettering:
    """Chooses fonts for the labels of a sheet.

    A label is set in one font that has all of its letters. Letters missing from all fonts become escapes (`\\u6905`),
    or their unaccented form. Pillow's own font comes first, so that most sheets are the same on all machines.
    """

    def __init__(self) -> None:
        self._faces = [Face()]
        self._searches = SEARCHES

    def choose(self, text: str) -> tuple[Face, str]:
        """The font for a text, and the text as that font can render it, on one line."""
        text = printable(text)
        letters = frozenset(filter(_is_drawn, text))
        for face in self._faces:
            if _covers(face, letters):
                return face, text
        if found := self._find(letters):
            return found, text
        for letter in sorted(letters):  # several scripts may need a font each
            if not any(_has(face, letter) for face in self._faces):
                self._find(frozenset(letter))
        face = max(self._faces, key=lambda each: sum(_has(each, letter) for letter in letters))
        return face, "".join(_written(text, face))

    def _find(self, letters: frozenset[str]) -> Face | None:
        if self._searches:
            self._searches -= 1
            if found := find(letters):
                self._faces.append(found)
                return found
        return None


@lru_cache(maxsize=256)
def find(letters: frozenset[str]) -> Face | None:
    """A system font that has these letters, if there is one."""
    return next((face for face in _installed() if _covers(face, letters)), None)


@lru_cache(maxsize=1)
def _installed() -> tuple[Face, ...]:
    """System fonts, upright ones of regular weight first; never fonts of the working directory."""
    shared = [os.environ.get("XDG_DATA_HOME", ""), *os.environ.get("XDG_DATA_DIRS", "").split(os.pathsep)]
    places = [at_home(folder) for folder in (*FOLDERS, *(f"{place}/fonts" for place in shared if place))]
    files = {
        file
        for place in dict.fromkeys(places)
        if place.is_absolute() and place.is_dir()
        for file in files_below(place)
        if file.suffix.lower() in SUFFIXES
    }
    return tuple(Face(str(file)) for file in sorted(files, key=_rank)[:MOST])


def _rank(file: Path) -> tuple[int, int, str]:
    name = file.name.lower().replace("-", "").replace("_", "")
    good = next((place for place, word in enumerate(GOOD) if word in name), len(GOOD))
    return sum(word in name for word in ODD), good, str(file)


def _is_drawn(letter: str) -> bool:
    """Whether a letter needs a glyph; spaces and joiners need none."""
    return unicodedata.category(letter)[0] not in "ZC"


def _covers(face: Face, letters: frozenset[str]) -> bool:
    return all(_has(face, letter) for letter in letters)


@lru_cache(maxsize=16384)
def _has(face: Face, letter: str) -> bool:
    """Whether a font has a glyph for a letter: one that differs from that of a missing character."""
    try:
        font = face.at(_SIZE)
        if isinstance(font, ImageFont.FreeTypeFont):  # one by one, not as parts of a syllable
            font = font.font_variant(layout_engine=ImageFont.Layout.BASIC)
        one, none = font.getmask(letter), font.getmask(_NOWHERE)
    except (OSError, ValueError):
        return False
    return one.size != none.size or bytes(one) != bytes(none)


def _written(text: str, face: Face) -> Iterator[str]:
    """A text as a font can render it: missing letters without accents, or as escapes."""
    plain = False
    for letter in text:
        bare = [c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c)]
        if not _is_drawn(letter) or _has(face, letter):
            plain = True
            yield letter
        elif all(_has(face, c) for c in bare) and (bare or plain):  # a mark is dropped with its letter
            plain = True
            yield "".join(bare)
        else:
            plain = False
            yield letter.encode("ascii", "backslashreplace").decode()
