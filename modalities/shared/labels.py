"""Labels from files instead of folders: EDM's dataset.json, the Hub's metadata.jsonl, classes.txt; all as names."""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ditmoe.outside import decoded, is_regular, parse_json, printable, read_beside
from ditmoe.outside.paths import LARGEST_JSON

FILES = ("dataset.json", "metadata.jsonl", "metadata.csv")
"""Label files, in the folder of the data or of a split."""
KEYS = (
    "label",
    "labels",
    "cls",
    "class",
    "class_name",
    "class_id",
    "category",
    "label_id",
    "class_label",
    "target",
)
"""Keys under which a record may have its class."""
TOLD = ("text", "caption", "captions", "prompt", "description")
"""Keys under which a record may have captions: a text or a list of texts."""
PATHS = ("file_name", "image", "filename", "file", "path")
"""Keys under which a record may have its file."""
MOST_TEXT = 2**24
"""Most bytes of a list of classes, or of the metadata beside an image in an archive."""
_LONGEST = 200
_END = "the end of the file"  # as a row of its own: within quotation marks that are never closed it is not


def label_name(value: Any) -> str | None:
    """The class name for a value in a file; None if it is not a name, such as -1, "" or a list."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        value = int(value) if math.isfinite(value) and value == int(value) else None
    if isinstance(value, int):
        return str(value) if 0 <= value < 10**18 else None
    if not isinstance(value, str):
        return None
    name = printable(value.strip())[:_LONGEST]
    return None if not name or re.fullmatch(r"-\d+", name) else name


def label_in(record: Any) -> str | None:
    """The class in a JSON record, or in a bare value."""
    if not isinstance(record, Mapping):
        return label_name(record)
    return next((name for key in KEYS if (name := label_name(record.get(key))) is not None), None)


def text_label(content: bytes) -> str | None:
    """The class in a text file that holds nothing else."""
    return label_name(decoded(content))


def ordered(names: Iterable[str]) -> list[str]:
    """Distinct names in label order: numbers by value, others alphabetically."""
    found = set(names)
    if all(re.fullmatch(r"[0-9]+", name) for name in found):
        return sorted(found, key=lambda name: (int(name), name))
    return sorted(found)


def read_labels(folder: Path) -> dict[str, str] | None:
    """Path below a folder -> class, by a label file in that folder; None if there is none.

    Raises:
        OSError, ValueError: one line, for a file that is damaged.
    """
    for name in FILES:
        if not is_regular(folder / name):
            continue
        content = read_beside(folder / name, LARGEST_JSON)
        try:
            found = parse_labels(name, content)
        except (ValueError, RecursionError, csv.Error, KeyError) as error:
            raise ValueError(f"{printable(folder / name)} is damaged: {printable(error)[:160]}") from error
        if found is not None:
            return found
    return None


def parse_labels(name: str, content: bytes) -> dict[str, str] | None:
    """Path -> class from one of `FILES`; None if it has no classes."""
    text = decoded(content)
    if name == "dataset.json":
        tree = parse_json(text)
        pairs = tree.get("labels") if isinstance(tree, Mapping) else None
        if isinstance(pairs, Mapping):
            pairs = list(pairs.items())
        if not isinstance(pairs, list):
            return None
        if not all(
            isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
        ):
            raise ValueError("its labels must be pairs of a path and a class")
        return _apart((path, label_name(_index(value))) for path, value in pairs)
    said: list[tuple[str, str | None]] = []
    says = False
    for path, record in records_of(name, content):
        says = says or any(key in record for key in KEYS)
        said.append((path, label_in(record)))
    found = _apart(said)
    if name.endswith(".csv") and all(re.fullmatch(r"\d+(?:\.0*)?", label) for label in found.values()):
        # Integers stored as floats.
        found = {path: label.partition(".")[0] for path, label in found.items()}
    return found if says else None


def _apart(said: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Path -> class, for those that have one; ValueError for a file with two classes."""
    found: dict[str, str] = {}
    for path, label in said:
        if label is not None and found.setdefault(_path(path), label) != label:
            raise ValueError(f"it says of {printable(path)[:60]} that it is {found[_path(path)]} and {label}")
    return found


def read_told(folder: Path) -> dict[str, list[str]]:
    """Path below a folder -> captions of that file in metadata.jsonl or metadata.csv.

    Raises:
        OSError, ValueError: one line, for a file that is damaged.
    """
    for name in FILES[1:]:
        if not is_regular(folder / name):
            continue
        content = read_beside(folder / name, LARGEST_JSON)
        try:
            return parse_told(name, content)
        except (ValueError, RecursionError, csv.Error, KeyError) as error:
            raise ValueError(f"{printable(folder / name)} is damaged: {printable(error)[:160]}") from error
    return {}


def parse_told(name: str, content: bytes) -> dict[str, list[str]]:
    """Path -> captions from metadata.jsonl or metadata.csv; several lines of one file are joined.

    Raises:
        ValueError, RecursionError, csv.Error: if it is damaged.
    """
    found: dict[str, list[str]] = {}
    for path, record in records_of(name, content):
        found.setdefault(_path(path), []).extend(told_in(record))
    return found


def told_in(record: Any) -> list[str]:
    """The captions in a JSON record."""
    if not isinstance(record, Mapping):
        return []
    found: Any = next((record[key] for key in TOLD if record.get(key)), [])
    each = found if isinstance(found, list) else [found]
    return [text for text in each if isinstance(text, str) and text.strip()]


def records_of(name: str, content: bytes) -> Iterator[tuple[str, Any]]:
    """Path and record of each line of metadata.

    Raises:
        ValueError: for a line without a path.
    """
    text = decoded(content)
    # Not `splitlines`: texts may contain other line separators.
    lines = (parse_json(line) for line in text.split("\n") if line.strip())
    for record in _rows(text) if name.endswith(".csv") else lines:
        is_record = isinstance(record, Mapping)
        path = next((record[key] for key in PATHS if key in record), None) if is_record else None
        if not isinstance(path, str):
            raise ValueError("each of its lines must have a file_name")
        yield path, record


def _index(value: Any) -> Any:
    """The index of a one-hot vector."""
    if isinstance(value, list) and value and sorted(map(str, value))[:-1] == ["0"] * (len(value) - 1):
        return value.index(1) if 1 in value else None
    return value


def _rows(text: str) -> Iterator[dict[str, str]]:
    """Records of a CSV, with only the columns in use: a small file can have a million columns and a million rows."""
    first = text.partition("\n")[0]
    apart = max(",;\t", key=first.count)
    rows = csv.reader(chain(io.StringIO(text), [_END]), delimiter=apart)
    header = [name.strip() for name in next(rows, [])]
    wanted = {name: header.index(name) for name in (*PATHS, *KEYS, *TOLD) if name in header}
    if twice := [name for name in wanted if header.count(name) > 1]:
        raise ValueError(f"it has the column {twice[0]} twice")
    row: list[str] = []
    for row in rows:
        if row and row != [_END]:
            yield {name: row[at] for name, at in wanted.items() if at < len(row)}
    if row != [_END]:
        raise ValueError("it has a quotation mark that is never closed")


def _path(path: str) -> str:
    return "/".join(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))


def read_names(folder: Path) -> list[str] | None:
    """The lines of a classes.txt, without trailing empty ones; None if there is none.

    Raises:
        OSError, ValueError: if it is not a regular file, or too large.
    """
    file = folder / "classes.txt"
    if not file.exists():
        return None
    lines = decoded(read_beside(file, MOST_TEXT)).splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    return [printable(line.strip()) for line in lines] or None


def named_by(
    lines: Sequence[str] | None, names: Iterable[str], file: object
) -> tuple[list[str], dict[str, int]]:
    """Classes, and the label of each name: from a classes.txt, in which numbers are line numbers, or the names alone.

    Raises:
        ValueError: if a name is not among the lines.
    """
    used = ordered(names)
    if not lines:
        return used, {name: label for label, name in enumerate(used)}
    first = 0
    if not {*used} <= {*lines} and (numbered := _numbered(lines)):
        lines, first = numbered
    labels = {name: label for label, name in reversed(list(enumerate(lines)))}
    counted = [name for name in used if name not in labels]
    if strange := [name for name in counted if not re.fullmatch(r"[0-9]+", name)]:
        raise ValueError(f"{printable(file)} must name all classes, got none called {strange[0]}")
    places = {name: int(name) - first for name in counted}
    if counted and (most := max(places.values())) >= len(lines):
        raise ValueError(f"{printable(file)} must name {most + 1} classes, got {len(lines)}")
    if counted and min(places.values()) < 0:
        raise ValueError(f"{printable(file)} must name the class 0, got none before {first}")
    return list(lines), {name: labels[name] if name in labels else places[name] for name in used}


def _numbered(lines: Sequence[str]) -> tuple[list[str], int] | None:
    """Names from lines that each begin with their own number (`0 cat`), in that order, and the first number, 0 or 1."""
    found = {
        int(match[1]): match[2] for line in lines if (match := re.fullmatch(r"(\d{1,9})[\s,:;]+(.+)", line))
    }
    first = min(found, default=-1)
    if first not in (0, 1) or sorted(found) != list(range(first, first + len(lines))):
        return None
    return [found[i] for i in sorted(found)], first
