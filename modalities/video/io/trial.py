"""A file of a container that others may make endless is read once in a process that can be ended.

FFmpeg compares each comment of an Ogg, property of an FLV, word of an AVI, or program of an MPEG-TS with all before.
While it does so on what is in its buffer, which may be the whole file, neither its own limit of time nor a signal ends
it: 650 kB took minutes.
"""

import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from ditmoe.outside import open_regular
from modalities.shared.isolation import isolated
from modalities.video.io.kinds import AVI, GIF, MATROSKA, MP4, container_of

SECONDS, SECONDS_PER_MB = 6.0, 0.5
"""To read the packets of a file, of which none is decoded: a hundred times as long as whole ones take."""
MEMORY = 2**30
"""Bytes that the process may take beside what it has."""
_SMALL = 2**15
"""Bytes of a file in which too little has room."""
_MOST_WORDS = 2**15
"""Bytes of the words of an AVI (its list INFO)."""
_PIECE = 2**20


def is_endless(path: Path, read: Callable[[], None]) -> bool:
    """Whether reading the packets of a video file takes longer than `SECONDS` allow, or ends its process.

    MP4, GIF, Matroska, whose tables are looked at (`tables`), and AVI of few words are not tried.

    Args:
        read: reads them all.

    Raises:
        OSError, ValueError: if it cannot be opened, or is no plain file; what `read` raises.
    """
    about = os.stat(path)
    if about.st_size <= _SMALL:
        return False
    return _is_endless(_Read(path, read), about.st_size, about.st_mtime_ns, about.st_ino)


class _Read:
    """A path that is equal to itself, and how to read it."""

    def __init__(self, path: Path, read: Callable[[], None]) -> None:
        self.path, self.read = path, read

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Read) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)


@lru_cache(maxsize=2**16)  # a clip opens its file again
def _is_endless(what: _Read, size: int, *_: int) -> bool:
    if _is_bounded(what.path):
        return False
    try:
        isolated(what.read, SECONDS + SECONDS_PER_MB * size / 1e6, MEMORY)
    except (TimeoutError, ChildProcessError):
        return True
    return False


def _is_bounded(path: Path) -> bool:
    kind = container_of(path)
    with open_regular(path) as stream:
        if kind == AVI:
            return not _has_many_words(stream)
        return kind in (MATROSKA, GIF) or (kind == MP4 and stream.read(8)[4:] == b"ftyp")


def _has_many_words(stream: BinaryIO) -> bool:
    """Whether lists of words of an AVI, wherever they lie, have more bytes than people write."""
    found, tail = 0, b""
    stream.seek(0)
    while piece := stream.read(_PIECE):
        held = tail + piece
        for mark in re.finditer(b"LIST(.{4})INFO", held, re.DOTALL):
            found += int.from_bytes(mark[1], "little")
        tail = held[-11:]
    return found > _MOST_WORDS
