"""Images in webdataset tars, with .cls, .json and similar files beside them."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ditmoe.outside import Plain, open_regular, parse_json, printable
from modalities.image.data.archive_members import LONGEST_NAME, TOO_LONG, Found, Member, Written
from modalities.image.data.pictures import SUFFIXES
from modalities.shared.captions import LARGEST
from modalities.shared.labels import MOST_TEXT, label_in, text_label
from modalities.shared.understood import Ignored

_FIELDS = ("jpg", "jpeg", "png", "image", "img", "input")
"""Suffixes of the main image of a sample with several, in order of preference."""
_LABELS = ("cls", "cls.txt", "label", "label.txt", "json", "index")
LARGEST_HEADER = 2**13
"""Most bytes of a tar's extended header, such as a long name; Python parses larger ones in quadratic time."""
_SAID_BEFORE = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
Key = tuple[str, int]


def read_tar(
    shard: Path, name: str, split: str | None, ignored: Ignored, notes: list[str], captions: bool
) -> Iterator[Found]:
    """List the images of a tar, one per sample.

    Raises:
        ValueError: with one line, if it is not a tar.
    """
    for (stem, turn), sample in _samples(shard, name, ignored, notes, captions).items():
        chosen = min(sample.pictures, key=lambda ending: (_rank(ending), ending))
        for other in sample.pictures:
            if other != chosen:
                ignored.add("further pictures of a sample", f"x.{other}")
        said = {kind: label for kind, label in sample.labels.items() if label is not None}
        kind = next((kind for kind in _LABELS if kind in said), "")
        yield Found(
            printable(f"{name}/{stem}{f' ({turn + 1})' if turn else ''}"),
            split,
            said.get(kind),
            stem.rpartition("/")[0],
            sample.pictures[chosen],
            kind,
            sample.captions or (),
        )


@dataclass
class Sample:
    """The files of one key: images by suffix, the class as given, and the location of the captions."""

    pictures: dict[str, Member] = field(default_factory=dict)
    labels: dict[str, str | None] = field(default_factory=dict)
    captions: Written | None = None


class _Entry(tarfile.TarInfo):
    """A tar member with a limited extended header: tarfile can turn a megabyte into gigabytes of keys."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Entry":
        entry = super().frombuf(buf, encoding, errors)
        if entry.type in _SAID_BEFORE and entry.size > LARGEST_HEADER:
            raise tarfile.ReadError(
                f"{entry.size} bytes of names and the like where {LARGEST_HEADER} are allowed"
            )
        return entry

    def _proc_gnusparse_00(self, entry: tarfile.TarInfo, *_: object) -> None:
        """Only mark it as sparse: tarfile parses the pieces in quadratic time, and they are never read."""
        entry.sparse = []  # type: ignore

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00

    def _apply_pax_info(self, pax_headers: dict[str, str], *how: str) -> None:
        """Drop the sizes of sparse members, which tarfile expects to be numbers, and which are never read."""
        kept = {key: value for key, value in pax_headers.items() if not key.startswith("GNU.sparse.")}
        super()._apply_pax_info(kept, *how)  # type: ignore


@dataclass
class _Contents:
    """The files of a tar read so far: names, suffixes and content; captions; unreadable labels."""

    shard: Path
    size: int
    stream: Plain
    ignored: Ignored
    captions: bool
    files: list[tuple[str, str, Member | str | None]] = field(default_factory=list)
    texts: dict[str, Written] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    def add(self, entry: tarfile.TarInfo) -> None:
        """Record the location of an image, read a label, ignore other files."""
        path = entry.name.removeprefix("./")
        if len(path) > LONGEST_NAME:
            self.ignored.add(TOO_LONG, path[:40], by_name=True)
            return
        if entry.isdir() or any(map(self.ignored.is_hidden, path.split("/"))):
            return
        if not entry.isfile():
            self.ignored.add("in archives, links or devices instead of files", path)
            return
        folder, _, file = path.lstrip("/").rpartition("/")
        stem, ending = _ending(file)
        stem, kind, plain = f"{folder}/{stem}".lstrip("/"), ending.lower(), not entry.issparse()
        member = Member(self.shard, entry.offset_data, entry.size if plain else -1)
        captions = self.captions and plain and entry.size <= LARGEST
        if f".{kind}" in SUFFIXES:
            if plain and entry.offset_data + entry.size > self.size:
                raise tarfile.ReadError(f"{printable(file)[:60]} is not there to its end")
            self.files.append((stem, kind, member))
        elif kind in _LABELS and plain and entry.size <= MOST_TEXT:
            if captions and kind == "json":
                self.texts.setdefault(stem, Written(member, json=True))
            self.stream.seek(entry.offset_data)
            self.files.append((stem, kind, _label(self.stream.read(entry.size), kind, self.unread)))
        elif captions and kind == "txt":
            self.texts[stem] = Written(member)
        else:
            self.ignored.add("in archives, of a kind that is not read", file)


def _samples(shard: Path, name: str, ignored: Ignored, notes: list[str], captions: bool) -> dict[Key, Sample]:
    """Samples with an image, by key; a repeated name begins another sample."""
    try:
        with (
            open_regular(shard) as stream,
            tarfile.open(fileobj=stream, mode="r:", tarinfo=_Entry) as tar,
        ):
            contents = _Contents(shard, shard.stat().st_size, stream, ignored, captions)
            try:
                for entry in _entries(tar):
                    contents.add(entry)
            except tarfile.ReadError as error:
                if not contents.files:
                    raise
                notes.append(f"{name} is cut or damaged: what lies before that is used ({printable(error)})")
            else:
                if contents.size < 1024 or not _ends(stream, contents.size):
                    notes.append(f"{name} has no end: it may be cut")
    except (tarfile.TarError, OSError, ValueError, RecursionError, OverflowError, MemoryError) as error:
        why = (
            "it is compressed: unpack it (gunzip), so that its pictures can be read one by one"
            if _is_compressed(shard)
            else error
        )
        raise ValueError(f"{printable(shard)} is no readable tar: {printable(why)}") from error
    if unread := contents.unread:
        notes.append(f"{len(unread)} labels in {name} are not readable: {unread[0]}")
    found = _grouped(contents.files, name, ignored, notes)
    for (stem, turn), sample in found.items():
        sample.captions = contents.texts.get(stem) if turn == 0 else None
    return found


def _entries(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for entry in tar:
        # Each member has a copy of the global headers.
        tar.members.clear()  # type: ignore[attr-defined]
        if not entry.offset < entry.offset_data <= tar.offset:
            # A negative size would loop over the same member for ever (CVE-2025-8194 of Python).
            raise ValueError(f"{printable(entry.name)[:60]} ends before it begins")
        yield entry


def _grouped(
    files: list[tuple[str, str, Member | str | None]], name: str, ignored: Ignored, notes: list[str]
) -> dict[Key, Sample]:
    """Group files into samples by name without suffix; if that yields no image or no label, by webdataset's key.

    The key ends at the first dot. `a.0001.jpg` and `a.0001.cls` share the name without suffix, and `1.image.jpg` and
    `1.cls` only the key.
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


def _rank(ending: str) -> int:
    return min(
        (i for i, word in enumerate(_FIELDS) if word in ending.lower().split(".")), default=len(_FIELDS)
    )


def _ending(file: str) -> tuple[str, str]:
    """Split a name into stem and suffix: its last part, or two for a label in a text file (`.cls.txt`)."""
    stem, _, ending = file.rpartition(".")
    before, _, kind = stem.rpartition(".")
    both = f"{kind}.{ending}"
    return (before, both) if both.lower() in _LABELS else (stem, ending)


def _label(content: bytes, ending: str, unread: list[str]) -> str | None:
    if ending.lower() != "json":
        label = text_label(content)
    else:
        try:
            label = label_in(parse_json(content))
        except (ValueError, RecursionError) as error:
            unread.append(f"no JSON: {printable(error)[:80]}")
            return None
    if label is None and ending.lower() != "json":
        unread.append(printable(repr(content[:20].decode(errors="replace"))))
    return label


def _ends(stream: object, size: int) -> bool:
    """Whether a tar has its final block of zeros."""
    stream.seek(max(0, size - 512))  # type: ignore[attr-defined]
    return not any(stream.read(512))  # type: ignore[attr-defined]


def _is_compressed(shard: Path) -> bool:
    with open_regular(shard) as stream:
        head = stream.read(6)
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"))
