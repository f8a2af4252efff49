"""Trial reading, in a process that can be killed, of containers that can take FFmpeg very long.

FFmpeg handles comments of Ogg, properties of FLV, INFO tags of AVI and programs of MPEG-TS in quadratic time. While it
does so on its buffer, which may hold the whole file, neither its own timeout nor a signal ends it: 650 kB took
minutes.
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
"""Time limit to read the packets of a file without decoding: a hundred times what intact files take."""
MEMORY = 2**30
"""Bytes that the process may allocate beyond what it starts with."""
_SMALL = 2**15
"""Bytes of a file too small to be a problem."""
_MOST_WORDS = 2**15
"""Most bytes of an AVI's INFO list."""
_PIECE = 2**20


def is_endless(path: Path, read: Callable[[], None]) -> bool:
    """Whether reading the packets of a video file exceeds the time limit, or kills its process.

    MP4, GIF, Matroska (checked by `tables`) and AVI with a small INFO list are not tried.

    Args:
        read: reads all packets.

    Raises:
        OSError, ValueError: if it cannot be opened, or is not a regular file; also whatever `read` raises.
    """
    about = os.stat(path)
    if about.st_size <= _SMALL:
        return False
    return _is_endless(_Read(path, read), about.st_size, about.st_mtime_ns, about.st_ino)


class _Read:
    """A path and its reader, compared by path only, as a cache key."""

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
    """Whether INFO lists of an AVI, anywhere in the file, are implausibly large."""
    found, tail = 0, b""
    stream.seek(0)
    while piece := stream.read(_PIECE):
        held = tail + piece
        for mark in re.finditer(b"LIST(.{4})INFO", held, re.DOTALL):
            found += int.from_bytes(mark[1], "little")
        tail = held[-11:]
    return found > _MOST_WORDS
