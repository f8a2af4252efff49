"""Counts tags, chapters and out-of-order cues in a Matroska file, which FFmpeg processes in quadratic time.

It does so after reading them all, where neither its own timeout nor a signal stops it: 40,000 tags in a file of a
megabyte took ten seconds, and each doubling takes four times as long.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from ditmoe.outside import open_regular

MOST_ENTRIES = 10_000
"""Limit on tags, chapters and out-of-order cues of a file: about a second's work."""
_MOST_ELEMENTS = 300_000
"""Most elements examined."""
_SMALL = 2**16
"""Bytes of a file too small to hold that many."""
_EBML = b"\x1a\x45\xdf\xa3"
_TAGS, _CHAPTERS, _CUES = b"\x12\x54\xc3\x67", b"\x10\x43\xa7\x70", b"\x1c\x53\xbb\x6b"
_WITHIN = {0x7373, 0x67C8, 0x45B9, 0xB6, 0xBB}
"""Tag, SimpleTag, EditionEntry, ChapterAtom, CuePoint."""
_CUE_TIME = 0xB3
_DEEPEST = 16
"""Deepest nesting of elements, as in FFmpeg."""
_PIECE = 2**20


class _Many(Exception):  # noqa: N818 (what is looked for)
    """There are more than `MOST_ENTRIES`."""


def has_endless_tables(path: Path) -> bool:
    """Whether a Matroska or WebM file has more entries than FFmpeg sorts in a second; False for all other files.

    Elements are counted after each ID of Tags, Chapters or Cues anywhere in the file, since its index, or resyncing
    after damage, may lead there. In frame data such an ID occurs by chance once in four billion bytes, followed by
    nothing valid.

    Raises:
        OSError, ValueError: if it cannot be read, or is not a regular file.
    """
    stat = os.stat(path)
    return stat.st_size > _SMALL and _has_endless_tables(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=2**16)  # a clip opens its file again
def _has_endless_tables(path: Path, size: int, *_: int) -> bool:
    with open_regular(path) as stream:
        if stream.read(4) != _EBML:
            return False
        count = _Count(stream, size)
        try:
            for at in _marks(stream):
                count.add(at)
        except _Many:
            return True
    return False


def _marks(stream: BinaryIO) -> Iterator[int]:
    """Offsets of the elements, ascending within a chunk; the caller may move the stream."""
    begin, tail = 0, b""
    while True:
        stream.seek(begin)
        if not (piece := stream.read(_PIECE)):
            return
        held = tail + piece
        for mark in (_TAGS, _CHAPTERS, _CUES):
            at = held.find(mark)
            while at >= 0:
                yield begin - len(tail) + at
                at = held.find(mark, at + 1)
        begin, tail = begin + len(piece), held[-3:]


class _Count:
    """Counts the entries in elements of a file."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size = stream, size
        self.entries, self.elements = 0, 0
        self.latest = -1

    def add(self, at: int) -> None:
        """Count the entries in the element at this offset."""
        self.latest = -1
        for _, begin, end in self._children(at, self.size):
            self._descend(begin, end, 1)
            return

    def _descend(self, begin: int, end: int, depth: int) -> None:
        for kind, start, stop in self._children(begin, end):
            if kind == _CUE_TIME and stop - start <= 8:
                self._cue(start, stop)
            elif kind in _WITHIN:
                self.entries += kind != 0xBB
                if self.entries > MOST_ENTRIES:
                    raise _Many
                if depth < _DEEPEST:
                    self._descend(start, stop, depth + 1)

    def _cue(self, start: int, stop: int) -> None:
        """Count a cue that is out of order, since inserting it moves all later ones."""
        self.stream.seek(start)
        time = int.from_bytes(self.stream.read(stop - start), "big")
        if time < self.latest or time >> 63:
            self.entries += 1
        self.latest = max(self.latest, time)

    def _children(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """ID, begin and end of the content of each element, up to the first invalid one."""
        while begin < end:
            self.elements += 1
            if self.elements > _MOST_ELEMENTS:
                raise _Many
            self.stream.seek(begin)
            head = self.stream.read(12)
            named = 9 - head[0].bit_length() if head else 9
            measured = 9 - head[named].bit_length() if named <= 4 and len(head) > named else 9
            start = begin + named + measured
            if measured > 8 or len(head) < named + measured:
                return
            kind = int.from_bytes(head[:named], "big")
            most = (1 << 7 * measured) - 1
            length = int.from_bytes(head[named : named + measured], "big") & most
            stop = end if length == most else min(end, start + length)
            yield kind, start, stop
            begin = stop
