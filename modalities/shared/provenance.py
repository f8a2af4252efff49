"""Which outputs were made from which sources: a record beside `prepare`'s outputs, so that reruns are incremental.

A source is identified by its content, which is read again only if the state of its files (size, times) differs from
the recorded one; so moved or touched files are still recognised.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from ditmoe.checkpoint import replacing
from ditmoe.outside import open_regular, parse_json, printable, real_path
from modalities.shared.isolation import num_cores

RECORD = "sources.jsonl"
SOURCE, OUTPUT = "source", "output"
LARGEST, LONGEST = 2**31, 2**16
"""Most bytes of a record, and of one of its lines."""
LATELY = 2 * 10**9
"""Nanoseconds within which two changes of a file may have the same timestamp, on the coarsest file system."""
_KEY = 32  # hexadecimal digits


@dataclass(frozen=True)
class Origin:
    """Where a source lies.

    Attributes:
        files: files that it is read from, in order; of their names only the suffixes matter, which tell the format.
        part: name of the part of an archive that it is.
        read: reads that part.
    """

    files: tuple[Path, ...]
    part: str = ""
    read: Callable[[], bytes] | None = None

    def stamp(self, lately: int = LATELY) -> str:
        """The state of the files; "" if one changed so recently that another change might not show."""
        digest = hashlib.sha256(self.part.encode())
        now = time.time_ns()
        for file in self.files:
            try:
                about = os.stat(file)
            except OSError:
                digest.update(b"not there")
                continue
            if now - max(about.st_mtime_ns, about.st_ctime_ns) < lately:
                return ""
            state = about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino
            digest.update(os.fsencode(f"{file.name} {state}\n"))
        return digest.hexdigest()[:_KEY]

    def content(self) -> str:
        """A hash of the content; "" if it cannot be read."""
        try:
            if self.read is not None:
                return digest_of(hashlib.sha256(self.read()).hexdigest())
            words = []
            for file in self.files:
                with open_regular(file) as stream:
                    words += [hashlib.file_digest(stream, "sha256").hexdigest(), file.suffix.lower()]
        except (OSError, ValueError):
            return ""
        return digest_of(*words)


@dataclass(frozen=True)
class Seen:
    """A recorded source or output: the state of its files, and a hash of their content.

    Attributes:
        note: further facts: for a source, its number of samples; for an output, what it was made of.
    """

    stamp: str
    content: str
    note: str = ""


@dataclass
class Record:
    """Name -> source, and path below the folder -> output."""

    sources: dict[str, Seen] = field(default_factory=dict)
    outputs: dict[str, Seen] = field(default_factory=dict)


def digest_of(*words: object) -> str:
    """A hash of a sequence of words, unambiguous in their boundaries."""
    text = json.dumps([str(word) for word in words])
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY]


def content_of(content: bytes, suffix: str) -> str:
    """The hash that a file with these bytes would have."""
    return digest_of(hashlib.sha256(content).hexdigest(), suffix)


def seen(origin: Origin, before: Seen | None, lately: int = LATELY) -> Seen:
    """The current state of a source, whose content is read only if it may have changed.

    The state is taken before the content is read, so that a change in between shows the next time.
    """
    stamp = origin.stamp(lately)
    if before is not None and stamp and stamp == before.stamp:
        return before
    content = origin.content()
    return Seen(stamp, content, before.note if before is not None and before.content == content else "")


def see_all(origins: Sequence[Origin], before: Sequence[Seen | None]) -> list[Seen]:
    """`seen` of each source, in threads: hashing releases the GIL."""
    with ThreadPoolExecutor(num_cores()) as threads:
        found = threads.map(seen, origins, before)
        return list(tqdm(found, "looking", len(origins), unit="file", delay=5, leave=False))


def whole(folder: Path, outputs: Mapping[str, Seen]) -> dict[str, Seen]:
    """The outputs that are unchanged since they were written, by their state or else their content.

    Links out of the folder do not count. Raises OSError if a file cannot be read.
    """
    top, inside = real_path(folder), dict[Path, bool]()
    found = {}
    for path, was in outputs.items():
        file = folder / path
        if file.parent not in inside:
            inside[file.parent] = real_path(file.parent).is_relative_to(top)
        if inside[file.parent] and was.content and file.is_file() and not file.is_symlink():
            now = output(file, was)
            if not now.content:
                raise OSError(f"{printable(file)} cannot be read, so that nobody knows whose it is")
            if now.content == was.content:
                found[path] = now
    return found


def output(file: Path, was: Seen | None = None) -> Seen:
    """Record an output just written; its state is trusted at once, since nobody else writes it."""
    return seen(Origin((file,)), was, lately=0)


def gone(before: Mapping[str, Seen], now: Mapping[str, Seen]) -> list[Seen]:
    """Sources that no longer exist, neither by name nor by content under another name."""
    contents = {of.content for of in now.values()}
    return [of for name, of in before.items() if name not in now and of.content not in contents]


def read(file: Path) -> Record:
    """Read a record that `write` wrote; an empty one if there is none.

    Raises:
        ValueError: if it is not a record, or names a file outside its folder.
    """
    record = Record()
    try:
        with open_regular(file, LARGEST) as stream:
            while line := stream.readline(LONGEST):
                kind, name, entry = _entry(parse_json(line))
                (record.sources if kind == SOURCE else record.outputs)[name] = entry
    except FileNotFoundError:
        return record
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{printable(file)} must be the record of an earlier prepare: remove the folder, or take another out"
        ) from error
    return record


def _entry(line: Any) -> tuple[str, str, Seen]:
    if not isinstance(line, dict) or not all(isinstance(word, str) for word in line.values()):
        raise ValueError("a line must be an object of texts")
    kind = SOURCE if SOURCE in line else OUTPUT
    if set(line) != {kind, "stamp", "content", "note"}:
        raise ValueError("a line must be of a source or an output")
    path = PurePosixPath(line[kind])
    if kind == OUTPUT and (path.is_absolute() or not path.parts or ".." in path.parts or "\0" in line[kind]):
        raise ValueError("an output must lie in the folder")
    return kind, line[kind], Seen(line["stamp"], line["content"], line["note"])


def write(file: Path, record: Record) -> None:
    """Write a record atomically, sorted by name."""
    with replacing(file) as stream:
        for kind, entries in ((SOURCE, record.sources), (OUTPUT, record.outputs)):
            for name, of in sorted(entries.items()):
                stream.write(json.dumps({kind: name, **vars(of)}).encode() + b"\n")
