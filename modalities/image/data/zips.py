"""Images in zips, as used by EDM: with a dataset.json or a metadata.jsonl."""

import csv
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ditmoe.outside import open_regular, printable
from ditmoe.outside.paths import LARGEST_JSON
from modalities.image.data.archive_members import LOCAL_HEADER, LONGEST_NAME, TOO_LONG, Found, Member, Written
from modalities.image.data.pictures import SUFFIXES
from modalities.shared.captions import LARGEST, shown_captions
from modalities.shared.labels import FILES, MOST_TEXT, parse_labels, parse_told
from modalities.shared.understood import Ignored

DENSE = 20
"""Highest compression ratio of a label list, each byte of which takes up to 40 bytes of memory when parsed."""
_METHODS = {
    6: "implode", 9: "Deflate64", zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA", 93: "Zstandard", 95: "xz",
    98: "PPMd",
}  # fmt: skip
"""Compression methods that are not read, by their number in the zip specification."""
_SAYS_UTF8 = 0x800
"""Flag of a member whose name is UTF-8."""
_UNICODE_PATH = 0x7075
"""Extra field with the name in UTF-8 and the CRC-32 of the name in the header that it replaces."""
NO_ENCODING = "say no encoding and are shown in letters of DOS (cp437)"


def read_zip(
    shard: Path, name: str, split: str | None, ignored: Ignored, notes: list[str], captions: bool
) -> Iterator[Found]:
    """List the images of a zip: classes from its dataset.json or metadata.jsonl, captions there or beside them.

    Raises:
        ValueError: one line, if it is none.
    """
    contents = _Contents(shard, ignored, captions)
    try:
        with open_regular(shard) as stream, zipfile.ZipFile(stream) as archive:
            for path, entry in _paths(archive, shard.name, notes):
                contents.add(path, entry, archive)
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        RecursionError,
        NotImplementedError,
        RuntimeError,
        KeyError,
        csv.Error,
    ) as error:
        raise ValueError(f"{printable(shard)} is no readable zip: {printable(error)}") from error
    labels, texts = contents.labels, contents.texts
    _check_apart(
        shard, [*(member for _, member in contents.pictures), *(text.member for text in texts.values())]
    )
    for path, member in contents.pictures:
        stem = re.sub(r"\.\w+$", "", path)
        yield Found(
            printable(f"{name}/{stem}"),
            split,
            labels.get(path) if labels is not None else None,
            path.rpartition("/")[0] if labels is None else "",
            member,
            captions=texts.get(stem) or shown_captions(contents.told.get(path, [])),
        )


@dataclass
class _Contents:
    """The files of a zip read so far: locations of images, listed labels and captions, and texts beside them."""

    shard: Path
    ignored: Ignored
    captions: bool
    pictures: list[tuple[str, Member]] = field(default_factory=list)
    labels: dict[str, str] | None = None
    told: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, Written] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def add(self, path: str, entry: zipfile.ZipInfo, archive: zipfile.ZipFile) -> None:
        """Record the location of an image, read a label list, ignore other files."""
        if len(path) > LONGEST_NAME:
            self.ignored.add(TOO_LONG, path[:40], by_name=True)
            return
        if path.endswith("/") or any(map(self.ignored.is_hidden, path.split("/"))):
            return
        deflated = entry.compress_type == zipfile.ZIP_DEFLATED
        plain = (deflated or entry.compress_type == zipfile.ZIP_STORED) and not entry.flag_bits & 1
        if not plain:
            method = _METHODS.get(entry.compress_type, f"method {entry.compress_type}")
            how = "with a password" if entry.flag_bits & 1 else f"compressed by {method}"
            self.ignored.add(f"in archives, {how}, where stored or deflated ones are read", path)
            return
        member = Member(self.shard, entry.header_offset, entry.compress_size, entry.file_size, deflated)
        if path.lower().endswith(SUFFIXES):
            self.pictures.append((path, member))
        elif path in FILES:
            self._read_list(path, entry, archive)
        elif self.captions and path.lower().endswith(".txt") and entry.file_size <= LARGEST:
            self.texts[path[:-4]] = Written(member)
        else:
            self.ignored.add("in archives, of a kind that is not read", path)

    def _read_list(self, path: str, entry: zipfile.ZipInfo, archive: zipfile.ZipFile) -> None:
        """Read labels, and captions if wanted."""
        if entry.file_size > min(LARGEST_JSON, max(MOST_TEXT, DENSE * entry.compress_size)):
            raise ValueError(f"its {path} must not become {entry.file_size} bytes")
        if path in self.read:  # repeated names may all be the same bytes of the archive
            raise ValueError(f"it must hold one {path}, got another one")
        self.read.add(path)
        content = archive.read(entry)
        self.labels = parse_labels(path, content) or self.labels
        if self.captions and path != FILES[0]:
            self.told = parse_told(path, content)


def _paths(archive: zipfile.ZipFile, of: str, notes: list[str]) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Each member of an archive with its path, separated by "/"; adds a note if names have no known encoding.

    In such names a backslash may be the second byte of a character (表 in Shift JIS), so it is a separator only if "/"
    never occurs.
    """
    named = [(*name_of(entry), entry) for entry in archive.infolist()]
    unknown = [name for name, known, _ in named if not known]
    slashes = any("/" in name for name in unknown)
    if unknown and not any(NO_ENCODING in note for note in notes):
        notes.append(
            f"{len(unknown)} names in {of} {NO_ENCODING}; for the right ones unpack it with a program that is told "
            "which they are (unzip -O cp932, or cp936), and give the folder"
        )
    for name, known, entry in named:
        yield name if slashes and not known else name.replace("\\", "/"), entry


def name_of(entry: zipfile.ZipInfo) -> tuple[str, bool]:
    """The name of a member, and whether its encoding is known.

    It is known if the member has the UTF-8 flag or the Unicode path field, or if its bytes are valid UTF-8 (ASCII
    included), which macOS writes without the flag. Otherwise code page 437 is used, as the zip specification says.
    """
    name = entry.orig_filename
    if known := bool(entry.flag_bits & _SAYS_UTF8):
        return name.partition("\0")[0], known
    written = name.encode("cp437")
    for each in (_unicode_path(entry.extra, written), written):
        with suppress(UnicodeError):
            if each is not None:
                return each.decode().partition("\0")[0], True
    return name.partition("\0")[0], known


def _unicode_path(extra: bytes, written: bytes) -> bytes | None:
    """The UTF-8 name in a member's extra fields, if its checksum is that of the name in the header."""
    head, at = struct.pack("<BI", 1, zlib.crc32(written)), 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        field, at = extra[at + 4 : at + 4 + size], at + 4 + size
        if kind == _UNICODE_PATH and field.startswith(head):
            return field[len(head) :]
    return None


def _check_apart(zipped: Path, members: list[Member]) -> None:
    """Raise ValueError for a zip with overlapping members: a bomb would be read as often as it is listed."""
    end = 0
    for member in sorted(members, key=lambda member: member.start):
        if member.start < end:
            raise ValueError(f"{printable(zipped)} is no readable zip: its members lie across each other")
        end = member.start + LOCAL_HEADER + member.size
