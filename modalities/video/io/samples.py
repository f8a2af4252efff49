"""How many samples an MP4 counts: FFmpeg makes 40 bytes of memory for each, whether they are there or not.

Twenty bytes count four thousand million of them (`stsz`, `trun`), each track has its own, and each cut of a list of
them (`elst`) may show all samples of its track again. Each fragment of 8 bytes (`moof`), or of 12 in an index (`sidx`),
takes 60 for each track, which may be 8 bytes, too. Tables whose entries are there are read beyond the end of their box,
by each track anew. A compressed header hides all that, and what takes FFmpeg quadratic time: it reads it from memory,
where its timeout does not end it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from ditmoe.outside import open_regular
from modalities.video.io.kinds import MP4, container_of

_COUNTS = {b"stsz": 12, b"stz2": 12, b"trun": 8}
"""Boxes that count samples, and how many bytes behind the first of their name they do so."""
_CUTS = {b"elst": 8}
"""The same of cuts."""
_INDEX = re.compile(rb"sidx(?=\0.{21}(..)|[^\0].{29}(..))", re.DOTALL)
"""The same of fragments, by the version of the box."""
_TABLES = {b"stts": 8, b"ctts": 8, b"stsc": 12, b"stco": 4, b"co64": 8, b"stss": 4, b"stps": 4}
"""Boxes that list their entries, counted where `stts` counts them, and the bytes of an entry."""
_GROUPS = {
    re.compile(rb"sbgp(?=\x01.{11}(.{4})|[^\x01].{7}(.{4}))", re.DOTALL): 8,
    re.compile(rb"sgpd(?=\0.{7}(.{4})|\x01.{11}(.{4})|[^\0\x01].{15}(.{4}))", re.DOTALL): 1,
}
"""The same, counted elsewhere in each version of the box."""
_TRACK, _FRAGMENT = b"trak", b"moof"
_SPARE, _TIMES = 2**20, 4
"""Samples that are believed of any file, and beside them for each of its bytes: people cut a film a few times."""
_LONGEST = 40
_PIECE = 2**20
_SKIPPED = b"mdat"
_PACKED = re.compile(rb"cmov.{4}dcomzlib", re.DOTALL)
"""A header that is compressed, as QuickTime films could have."""


def counts_too_much(path: Path) -> bool:
    """Whether an MP4 counts more samples, with all cuts, or fragments of all tracks, or entries of tables, than its
    bytes can be; False for other containers.

    Counted is what follows each mark of a table outside of the samples themselves (`mdat`), whatever box it lies in.

    Raises:
        OSError, ValueError: if it cannot be read, or is no plain file.
    """
    about = os.stat(path)
    return _counts_too_much(path, about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=2**16)  # a clip opens its file again
def _counts_too_much(path: Path, size: int, *_: int) -> bool:
    if container_of(path) != MP4:
        return False
    samples, cuts, tracks, fragments, listed = 0, 1, 0, 0, 0
    with open_regular(path) as stream:
        for begin, end in _spans(stream, size):
            samples += sum(_counts(stream, begin, end, _COUNTS))
            cuts = max([cuts, *_counts(stream, begin, end, _CUTS)])
            for table, entry in _TABLES.items():
                listed += entry * sum(_counts(stream, begin, end, {table: 8}))
            for piece in _pieces(stream, begin, end):
                tracks += piece.count(_TRACK, 0, _PIECE + 3)
                fragments += piece.count(_FRAGMENT, 0, _PIECE + 3)
                fragments += sum(int.from_bytes(each[1] or each[2], "big") for each in _INDEX.finditer(piece))
                listed += sum(entry * _sum_of(group, piece) for group, entry in _GROUPS.items())
    return max(samples * cuts, tracks * fragments, _TIMES * listed) > _SPARE + _TIMES * size


def _sum_of(counts: re.Pattern[bytes], piece: bytes) -> int:
    return sum(int.from_bytes(next(filter(None, each.groups())), "big") for each in counts.finditer(piece))


def has_packed_header(path: Path) -> bool:
    """Whether an MP4 has a compressed header, in any box; errors as of `counts_too_much`."""
    about = os.stat(path)
    return _has_packed_header(path, about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=2**16)
def _has_packed_header(path: Path, size: int, *_: int) -> bool:
    if container_of(path) != MP4:
        return False
    with open_regular(path) as stream:
        spans = _spans(stream, size)
        return any(_PACKED.search(piece) for begin, end in spans for piece in _pieces(stream, begin, end))


def _spans(stream: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """What lies between the boxes of samples, which are stepped over as FFmpeg steps over them."""
    begin = at = 0
    while at + 8 <= size:
        stream.seek(at)
        head = stream.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # up to the end, or nonsense
            break
        if head[4:8] == _SKIPPED:
            yield begin, at
            begin = min(size, at + length)
        at += length
    yield begin, size


def _counts(stream: BinaryIO, begin: int, end: int, tables: Mapping[bytes, int]) -> Iterator[int]:
    """The numbers that tables of a part of a file begin with."""
    for piece in _pieces(stream, begin, end):
        for mark, ahead in tables.items():
            at = piece.find(mark, 0, _PIECE + 3)
            while at >= 0:
                yield int.from_bytes(piece[at + ahead : at + ahead + 4], "big")
                at = piece.find(mark, at + 1, _PIECE + 3)


def _pieces(stream: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    """A part of a file in pieces, each with the first bytes of the next."""
    while begin < end:
        stream.seek(begin)
        yield stream.read(min(_PIECE + _LONGEST, end - begin))
        begin += _PIECE
