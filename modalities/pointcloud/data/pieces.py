"""The files that `prepare` writes: which exist, and how new ones replace old ones at once.

A file is named after a hash of its inputs, so that old and new files can coexist for a moment; meanwhile
`prepare.json` lists those that readers must ignore ("absent").
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ditmoe.checkpoint import replacing
from ditmoe.checkpoint.atomic import clear, discard
from ditmoe.outside import files_below, parse_json, printable, read_regular, real_path
from modalities.shared import provenance
from modalities.shared.provenance import Origin, Record, Seen

REPORT = "prepare.json"
LARGEST_RECORD, LARGEST_NOTE = 2**28, 2**16
"""Most bytes of prepare.json, and of the notes on a shape."""
SCANS = "scans"
"""Folder of the partial views, which training does not read as shapes."""
_NAME = re.compile(r"[0-9a-f]{32}\.(npy|txt)")
"""Names of files in `.made` and `.notes`: a key, see `provenance.digest_of`."""
OWN = (REPORT, provenance.RECORD, ".notes", ".made", SCANS)
"""Entries that are not class folders."""


class Pieces:
    """The files of a folder that `prepare` wrote, by a key of their inputs.

    Attributes:
        record: record of the last run.
        whole: path below the folder -> output that is still as written; files changed by the user are not listed.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.made, self.notes = out, out / ".made", out / ".notes"
        self.check_inside(".made/shape", ".notes/shape")
        self.record = provenance.read(out / provenance.RECORD)
        self.whole = provenance.whole(out, self.record.outputs)
        self._places = {was.note: path for path, was in self.whole.items()}
        clear(self.made)

    def check_inside(self, *paths: str) -> None:
        """Raise ValueError if a link would redirect files to be written or removed out of the folder."""
        for folder in sorted({(self.out / path).parent for path in paths}):
            if real_path(folder) != folder:
                where = f"{printable(folder)} to {printable(real_path(folder))}"
                raise ValueError(f"out must hold its folders itself, but a link leads {where}")

    def __contains__(self, key: str) -> bool:
        return key in self._places or _is_own(self.staged(key))

    def staged(self, key: str) -> Path:
        """Staging path of a new shape."""
        return self.made / f"{key}.npy"

    def path(self, key: str) -> Path:
        """Path of an existing shape."""
        return self.staged(key) if _is_own(self.staged(key)) else self.out / self._places[key]

    def note(self, key: str) -> str | None:
        """The note on a shape."""
        for folder in (self.made, self.notes):
            if _is_own(file := folder / f"{key}.txt"):
                return printable(read_regular(file, LARGEST_NOTE).decode(errors="replace"))
        return None

    def arrange(
        self,
        wanted: Mapping[str, str],
        contents: Mapping[str, str],
        sources: Mapping[str, Seen],
        before: Mapping[str, Any],
        report: Mapping[str, Any],
    ) -> int:
        """Put the wanted files in place and remove other files of earlier runs; a kill leaves the old or the new state.

        Args:
            wanted: path -> key.
            contents: key -> hash of a new shape, if known.
            sources: sources to record.
            before: the existing report.
            report: the new one.

        Returns:
            Number of files among the shapes that `prepare` did not write; they are left alone.
        """
        new = {
            path: key for path, key in wanted.items() if getattr(self.whole.get(path), "note", None) != key
        }
        old = [path for path in self.whole if path not in wanted]
        outputs = {path: was for path, was in self.whole.items() if path in wanted}
        for path, key in new.items():
            outputs[path] = Seen("", self._content(key, contents), key)
        if new:  # the record of new files is written before they are in place
            provenance.write(
                self.out / provenance.RECORD,
                Record({**self.record.sources, **sources}, {**self.whole, **outputs}),
            )
            write_json(self.out / REPORT, {**before, "absent": sorted({*new, *_absent(before)})})
            for path, key in new.items():
                self._place(self.out / path, key)
        if new or old or report != before:
            write_json(self.out / REPORT, {**report, "absent": sorted(old)} if old else report)
        self._remove(old, {*wanted.values()})
        stamped = {
            path: Seen(_stamp(self.out / path), was.content, was.note) for path, was in outputs.items()
        }
        if (record := Record(dict(sources), stamped)) != self.record:
            provenance.write(self.out / provenance.RECORD, record)
        if old:
            write_json(self.out / REPORT, report)
        _clear(self.made)
        return sum(
            path.suffix == ".npy" and path.relative_to(self.out).as_posix() not in wanted
            for path in files_below(self.out)
        )

    def _content(self, key: str, contents: Mapping[str, str]) -> str:
        if (path := self._places.get(key)) is not None:
            return self.whole[path].content
        return contents.get(key) or provenance.output(self.staged(key)).content

    def _place(self, target: Path, key: str) -> None:
        """Move a new shape to its name; an existing one gets a second link while the first is in use."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_own(self.staged(key)):
            note = self.made / f"{key}.txt"
            if _is_own(note):
                self.notes.mkdir(exist_ok=True)
                os.replace(note, self.notes / note.name)
            os.replace(self.staged(key), target)
            return
        source = self.out / self._places[key]
        try:
            target.unlink(missing_ok=True)
            os.link(source, target)
        except OSError:  # a file system without hard links
            with open(source, "rb") as there, replacing(target) as stream:
                shutil.copyfileobj(there, stream)

    def _remove(self, old: Iterable[str], keys: set[str]) -> None:
        for path in old:
            (self.out / path).unlink(missing_ok=True)
        for folder in {(self.out / path).parent for path in old}:
            with suppress(OSError):  # the folder has other content
                folder.rmdir()
                folder.parent.rmdir()
        _clear(self.notes, keys)


def _is_own(file: Path) -> bool:
    """Whether there is a file of `prepare`, which writes no links: a stranger's could lead to a private file."""
    return file.is_file() and not file.is_symlink()


def _clear(folder: Path, keys: Collection[str] = ()) -> None:
    """Remove the files of other keys, and then the folder unless it holds something else."""
    for file in folder.glob("*"):
        if _NAME.fullmatch(file.name) and file.stem not in keys:
            discard(file)
    with suppress(OSError):
        folder.rmdir()


def absent(root: Path) -> set[str]:
    """Paths below a prepared folder that were being added or removed when a run was stopped.

    Raises:
        OSError, ValueError: if the report is unreadable or invalid.
    """
    try:
        report = parse_json(read_regular(root / REPORT, LARGEST_RECORD))
    except FileNotFoundError:
        return set()
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{printable(root / REPORT)} must be the report of `prepare`, got something else"
        ) from error
    return _absent(report) if isinstance(report, dict) else set()


def _absent(report: Mapping[str, Any]) -> set[str]:
    paths = report.get("absent", [])
    return {path for path in paths if isinstance(path, str)} if isinstance(paths, list) else set()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as stream:
        stream.write(json.dumps(content, indent=1).encode() + b"\n")


def _stamp(file: Path) -> str:
    return Origin((file,)).stamp(lately=0)
