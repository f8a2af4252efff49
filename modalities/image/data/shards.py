"""Pictures in archives: webdataset's tars with .cls, .json and the like beside them, EDM's zips; where they lie."""

import csv
import json
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ditmoe.outside import Plain, may_hold, open_regular, printable
from ditmoe.outside.paths import LARGEST_JSON
from modalities.image.data.pictures import SUFFIXES
from modalities.shared.captions import LARGEST, captions_in, captions_in_json, shown_captions
from modalities.shared.labels import FILES, MOST_TEXT, label_in, parse_labels, parse_told, text_label
from modalities.shared.layout import split_within, split_word
from modalities.shared.understood import Ignored

ARCHIVES = (".tar", ".zip")
COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")
_FIELDS = ("jpg", "jpeg", "png", "image", "img", "input")
"""Of several pictures of a sample, the one that it is of."""
_LABELS = ("cls", "cls.txt", "label", "label.txt", "json", "index")
_MANY = 16
"""Samples each of which has a number of its own; as many classes are not likely."""
LARGEST_HEADER = 2**13
"""Bytes of what a tar says of a member in front of it, such as a long name; Python reads more in quadratic time."""
_LOCAL_HEADER = 30
"""Bytes in front of a member of a zip, with its name behind them."""
DENSE = 20
"""How many times its own size a list of labels may become; each byte of it then takes up to 40 in memory."""


class _Entry(tarfile.TarInfo):
    """A member of a tar with little said in front of it: of a megabyte tarfile makes gigabytes of keys."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Entry":
        entry = super().frombuf(buf, encoding, errors)
        if entry.type in _SAID_BEFORE and entry.size > LARGEST_HEADER:
            raise tarfile.ReadError(
                f"{entry.size} bytes of names and the like where {LARGEST_HEADER} are allowed"
            )
        return entry

    def _proc_gnusparse_00(self, entry: tarfile.TarInfo, *_: object) -> None:
        """Only that it is sparse: tarfile looks for its pieces in quadratic time, and nobody reads it."""
        entry.sparse = []  # type: ignore


_SAID_BEFORE = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


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
            head = stream.read(_LOCAL_HEADER)
            start += (
                _LOCAL_HEADER + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
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


@dataclass
class Sample:
    """The files of one key: pictures by their endings, what is said of its class, and where its captions lie."""

    pictures: dict[str, Member] = field(default_factory=dict)
    labels: dict[str, str | None] = field(default_factory=dict)
    captions: Written | None = None


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


def split_of_shard(parts: tuple[str, ...]) -> str | None:
    """The split of a shard by the names of its folders and its own: train/000.tar, imagenet-val-000017.tar."""
    *folders, name = parts
    for folder in folders:
        if split := split_word(folder):
            return split
    stem = (
        name.partition(".")[0] if name.lower().endswith((".tar.gz", ".tar.xz")) else name.rpartition(".")[0]
    )
    found = split_within(stem)
    return found[0] if found else None


def read_archive(
    shard: Path, parts: tuple[str, ...], ignored: Ignored, notes: list[str], captions: bool = False
) -> Iterator[Found]:
    """The pictures of one archive, and where the captions lie if these are wanted.

    Raises:
        ValueError: one line, if it is none.
    """
    split, name = split_of_shard(parts), "/".join(parts)
    if shard.name.lower().endswith(".zip"):
        yield from _zipped(shard, name, split, ignored, captions)
        return
    for key, sample in _samples(shard, name, ignored, notes, captions).items():
        folder, _, _ = key[0].rpartition("/")
        chosen = min(sample.pictures, key=lambda ending: (_rank(ending), ending))
        for other in sample.pictures:
            if other != chosen:
                ignored.add("further pictures of a sample", f"x.{other}")
        said = {kind: label for kind, label in sample.labels.items() if label is not None}
        kind = next((kind for kind in _LABELS if kind in said), "")
        again = f" ({key[1] + 1})" if key[1] else ""
        title = printable(f"{name}/{key[0]}{again}")
        yield Found(
            title, split, said.get(kind), folder, sample.pictures[chosen], kind, sample.captions or ()
        )


def without_identities(found: list[Found], notes: list[str]) -> list[Found]:
    """Without the labels of `.index`, where these are others for each picture of every archive: they count pictures."""
    by_tar: dict[Path, list[str | None]] = {}
    for of in found:
        if of.said_by == "index":
            by_tar.setdefault(of.member.tar, []).append(of.label)
    if max(map(len, by_tar.values()), default=0) < _MANY or any(
        len({*of}) < len(of) for of in by_tar.values()
    ):
        return found
    notes.append("the .index of each picture is another one, and so not taken for a class")
    return [replace(of, label=None) if of.said_by == "index" else of for of in found]


def _rank(ending: str) -> int:
    return min(
        (i for i, word in enumerate(_FIELDS) if word in ending.lower().split(".")), default=len(_FIELDS)
    )


Key = tuple[str, int]


def _samples(shard: Path, name: str, ignored: Ignored, notes: list[str], captions: bool) -> dict[Key, Sample]:
    """Samples with a picture, by key; a name that comes again begins another sample."""
    files: list[tuple[str, str, Member | str | None]] = []
    texts: dict[str, Written] = {}
    unread: list[str] = []
    try:
        with open_regular(shard) as stream, _opened(stream) as tar:
            size = shard.stat().st_size
            try:
                for entry in tar:
                    # Each has a copy of what is said of all of them.
                    tar.members.clear()  # type: ignore[attr-defined]
                    if not entry.offset < entry.offset_data <= tar.offset:
                        # A size below zero leads back, to the same member for ever (CVE-2025-8194 of Python).
                        raise ValueError(f"{printable(entry.name)[:60]} ends before it begins")
                    if not entry.isfile():
                        continue
                    path = entry.name.removeprefix("./")
                    if any(map(ignored.is_hidden, path.split("/"))):
                        continue
                    folder, _, file = path.lstrip("/").rpartition("/")
                    stem, ending = _ending(file)
                    stem = f"{folder}/{stem}".lstrip("/")
                    if f".{ending.lower()}" in SUFFIXES:
                        if entry.offset_data + entry.size > size and not entry.issparse():
                            raise tarfile.ReadError(f"{printable(file)[:60]} is not there to its end")
                        at = Member(shard, entry.offset_data, -1 if entry.issparse() else entry.size)
                        files.append((stem, ending.lower(), at))
                    elif ending.lower() in _LABELS and not entry.issparse() and entry.size <= MOST_TEXT:
                        if captions and ending.lower() == "json" and entry.size <= LARGEST:
                            texts.setdefault(
                                stem, Written(Member(shard, entry.offset_data, entry.size), True)
                            )
                        stream.seek(entry.offset_data)
                        files.append((stem, ending.lower(), _label(stream.read(entry.size), ending, unread)))
                    elif (
                        captions
                        and ending.lower() == "txt"
                        and not entry.issparse()
                        and entry.size <= LARGEST
                    ):
                        texts[stem] = Written(Member(shard, entry.offset_data, entry.size))
                    else:
                        ignored.add("in archives, of a kind that is not read", file)
            except tarfile.ReadError as error:
                if not files:
                    raise
                notes.append(f"{name} is cut or damaged: what lies before that is used ({printable(error)})")
            else:
                if size < 1024 or not _ends(stream, size):
                    notes.append(f"{name} has no end: it may be cut")
    except (tarfile.TarError, OSError, ValueError, RecursionError, OverflowError, MemoryError) as error:
        compressed = _is_compressed(shard)
        why = (
            "it is compressed: unpack it (gunzip), so that its pictures can be read one by one"
            if compressed
            else error
        )
        raise ValueError(f"{printable(shard)} is no readable tar: {printable(why)}") from error
    if unread:
        notes.append(f"{len(unread)} labels in {name} are not readable: {unread[0]}")
    found = _grouped(files, name, ignored, notes)
    for (stem, turn), sample in found.items():
        sample.captions = texts.get(stem) if turn == 0 else None
    return found


def _opened(stream: Plain) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r:", tarinfo=_Entry)


def _grouped(
    files: list[tuple[str, str, Member | str | None]], name: str, ignored: Ignored, notes: list[str]
) -> dict[Key, Sample]:
    """Files of one name but for the ending are a sample; where that has no picture or no label, those of one key.

    webdataset's key ends at the first dot. `a.0001.jpg` and `a.0001.cls` are one of several samples, `1.image.jpg` and
    `1.cls` one of one key.
    """
    turns: dict[str, int] = {}
    stems: dict[Key, Sample] = {}
    again = 0
    for stem, ending, what in files:
        turn = turns.setdefault(stem, 0)
        sample = stems.setdefault((stem, turn), Sample())
        if ending in (sample.pictures if isinstance(what, Member) else sample.labels):
            turns[stem], again = turn + 1, again + 1
            sample = stems.setdefault((stem, turn + 1), Sample())
        if isinstance(what, Member):
            sample.pictures[ending] = what
        else:
            sample.labels[ending] = what
    if again:
        notes.append(f"{again} names in {name} come again: each time is taken for a sample of its own")
    keys: dict[Key, Sample] = {}
    bare = {at: s for at, s in stems.items() if not s.pictures}
    for at, sample in stems.items():
        folder, slash, file = at[0].rpartition("/")
        key = folder + slash + file.partition(".")[0], at[1]
        within = key != at and not sample.labels and key in stems and (stems[key].labels or key in bare)
        if sample.pictures:
            key, more = (key, f"{file.partition('.')[2]}.") if within else (at, "")
            joined = keys.setdefault(key, Sample(labels=stems[key].labels))
            joined.pictures |= {more + ending: member for ending, member in sample.pictures.items()}
    for key in bare:
        if key not in keys:
            for ending in bare[key].labels:
                ignored.add("in archives, without a picture", f"x.{ending}")
    return keys


def _ending(file: str) -> tuple[str, str]:
    """A name before its ending, and this: the last word, or two of a label in a text (`.cls.txt`)."""
    stem, _, ending = file.rpartition(".")
    before, _, kind = stem.rpartition(".")
    both = f"{kind}.{ending}"
    return (before, both) if both.lower() in _LABELS else (stem, ending)


def _label(content: bytes, ending: str, unread: list[str]) -> str | None:
    if ending.lower() != "json":
        label = text_label(content)
    else:
        try:
            label = label_in(json.loads(content))
        except (ValueError, RecursionError) as error:
            unread.append(f"no JSON: {printable(error)[:80]}")
            return None
    if label is None and ending.lower() != "json":
        unread.append(printable(repr(content[:20].decode(errors="replace"))))
    return label


def _ends(stream: object, size: int) -> bool:
    """Whether a tar has the block of zeros that ends it."""
    stream.seek(max(0, size - 512))  # type: ignore[attr-defined]
    return not any(stream.read(512))  # type: ignore[attr-defined]


def _is_compressed(shard: Path) -> bool:
    with open_regular(shard) as stream:
        head = stream.read(6)
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"))


def _zipped(shard: Path, name: str, split: str | None, ignored: Ignored, captions: bool) -> Iterator[Found]:
    """The pictures of a zip: classes of its dataset.json or metadata.jsonl, captions there or beside them."""
    labels: dict[str, str] | None = None
    found = []
    told: dict[str, list[str]] = {}
    texts: dict[str, Written] = {}
    read: set[str] = set()
    try:
        with open_regular(shard) as stream, zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                path = entry.filename.replace("\\", "/")
                if entry.is_dir() or any(map(ignored.is_hidden, path.split("/"))):
                    continue
                deflated = entry.compress_type == zipfile.ZIP_DEFLATED
                plain = (deflated or entry.compress_type == zipfile.ZIP_STORED) and not entry.flag_bits & 1
                member = Member(shard, entry.header_offset, entry.compress_size, entry.file_size, deflated)
                if not path.lower().endswith(SUFFIXES) or not plain:
                    if path.rpartition("/")[2] in FILES and "/" not in path and plain:
                        if entry.file_size > min(LARGEST_JSON, max(MOST_TEXT, DENSE * entry.compress_size)):
                            raise ValueError(f"its {path} must not become {entry.file_size} bytes")
                        if path in read:  # all of them may be the same bytes of the archive
                            raise ValueError(f"it must hold one {path}, got another one")
                        read.add(path)
                        content = archive.read(entry)
                        labels = parse_labels(path, content) or labels
                        if captions and path != FILES[0]:
                            told = parse_told(path, content)
                    elif captions and path.lower().endswith(".txt") and plain and entry.file_size <= LARGEST:
                        texts[path[:-4]] = Written(member)
                    else:
                        ignored.add("in archives, of a kind that is not read", path)
                    continue
                found.append((path, member))
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
    _check_apart(shard, [*(member for _, member in found), *(text.member for text in texts.values())])
    for path, member in found:
        folder = path.rpartition("/")[0] if labels is None else ""
        stem = re.sub(r"\.\w+$", "", path)
        yield Found(
            printable(f"{name}/{stem}"),
            split,
            labels.get(path) if labels is not None else None,
            folder,
            member,
            captions=texts.get(stem) or shown_captions(told.get(path, [])),
        )


def _check_apart(zipped: Path, members: list[Member]) -> None:
    """Raises ValueError for a zip whose members are the same bytes: a bomb would be read as often as it is named."""
    end = 0
    for member in sorted(members, key=lambda member: member.start):
        if member.start < end:
            raise ValueError(f"{printable(zipped)} is no readable zip: its members lie across each other")
        end = member.start + _LOCAL_HEADER + member.size
