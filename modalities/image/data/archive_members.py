"""What lies in archives, and where: files that are read one by one, without unpacking."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ditmoe.outside import may_hold, open_regular, printable
from modalities.shared.captions import captions_in, captions_in_json

LOCAL_HEADER = 30
"""Bytes in front of a member of a zip, with its name behind them."""
LONGEST_NAME = 4096
"""Letters of a member's path; systems take as many, and archives any number."""
TOO_LONG = f"in archives, with names of more than {LONGEST_NAME} letters"


@dataclass(frozen=True)
class Member:
    """A file in an archive: `size` bytes from `start`; -1 where it does not lie there as it is (sparse).

    In a zip, `start` is that of its header, and `inflated` the bytes that come of it.
    """

    tar: Path
    start: int
    size: int
    inflated: int | None = None
    deflated: bool = False


def member_bytes(member: Member) -> bytes:
    """The content of a file in an archive.

    Raises:
        OSError, ValueError: if it does not lie there as it is, or would become too large.
    """
    with open_regular(member.tar) as stream:
        there, start = os.fstat(stream.fileno()).st_size, member.start
        if member.inflated is not None:  # the header in front of it has a name and more of some length
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
    """Where the captions of a picture lie in its archive: in a text, one a line, or in a record of JSON."""

    member: Member
    json: bool = False

    def read(self) -> list[str]:
        """The captions.

        Raises:
            OSError, ValueError: as `member_bytes` does.
        """
        content = member_bytes(self.member)
        return captions_in_json(content) if self.json else captions_in(content)


@dataclass(frozen=True)
class Found:
    """A picture of an archive: its name, the split and the class that are said of it, and the folder it lies in."""

    name: str
    split: str | None
    label: str | None
    folder: str
    member: Member
    said_by: str = ""
    """The ending of the file that says the class."""
    captions: Sequence[str] | Written = ()
    """Its captions, or where they lie."""
