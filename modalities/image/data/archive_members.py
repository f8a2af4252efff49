"""Members of archives and their offsets, so that single files are read without unpacking."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ditmoe.outside import may_hold, open_regular, printable
from modalities.shared.captions import captions_in, captions_in_json

LOCAL_HEADER = 30
"""Bytes of the fixed part of a zip member's local header, before its name."""
LONGEST_NAME = 4096
"""Most characters of a member's path: the limit of operating systems, while archives have none."""
TOO_LONG = f"in archives, with names of more than {LONGEST_NAME} letters"


@dataclass(frozen=True)
class Member:
    """A file in an archive: `size` bytes from `start`; -1 if it is not stored contiguously (sparse).

    In a zip, `start` is the offset of the local header, and `inflated` the uncompressed size in bytes.
    """

    tar: Path
    start: int
    size: int
    inflated: int | None = None
    deflated: bool = False


def member_bytes(member: Member) -> bytes:
    """The content of a file in an archive.

    Raises:
        OSError, ValueError: if it is not stored contiguously, or would become too large.
    """
    with open_regular(member.tar) as stream:
        there, start = os.fstat(stream.fileno()).st_size, member.start
        if member.inflated is not None:  # the local header ends with fields of variable length
            stream.seek(start)
            head = stream.read(LOCAL_HEADER)
            start += (
                LOCAL_HEADER + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
            )
        if not 0 <= member.size <= there - start or start < 0:
            raise ValueError(
                f"a picture in {printable(member.tar)} must lie there as it is, got a sparse or cut one"
            )
        stream.seek(start)
        content = stream.read(member.size)
    if not member.deflated:
        return content
    if (inflated := member.inflated or 0) > may_hold(member.size):
        raise ValueError(f"a picture in {printable(member.tar)} must not become {inflated} bytes")
    try:
        return zlib.decompressobj(-15).decompress(content, max(1, inflated))
    except zlib.error as error:
        raise ValueError(f"a picture in {printable(member.tar)} is damaged: {error}") from error


@dataclass(frozen=True)
class Written:
    """Where the captions of an image are in its archive: in a text, one per line, or in a JSON record."""

    member: Member
    json: bool = False

    def read(self) -> list[str]:
        """Read the captions.

        Raises:
            OSError, ValueError: as `member_bytes` does.
        """
        content = member_bytes(self.member)
        return captions_in_json(content) if self.json else captions_in(content)


@dataclass(frozen=True)
class Found:
    """An image in an archive: its name, its split and class if given, and its folder."""

    name: str
    split: str | None
    label: str | None
    folder: str
    member: Member
    said_by: str = ""
    """Suffix of the file that gives the class."""
    captions: Sequence[str] | Written = ()
    """The captions, or where they are stored."""
