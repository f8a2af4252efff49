"""Text from any program: encodings, and columns of numbers with or without a header or a count."""

import codecs
import re
import warnings
from collections.abc import Callable, Sequence
from itertools import dropwhile, takewhile

import numpy as np
from jaxtyping import Float64

from ditmoe import outside
from modalities.pointcloud.data.channels import Geometry

_BEFORE, _AFTER = (
    r"(?:p|p_|pos_?|position_?|coord_?|coord\. ?|points?[:_])?",
    r"(?:[_ ]?(?:\[?m\]?|coord(?:inate)?))?",
)
_AXES = tuple(
    re.compile(f"{_BEFORE}(?:{words}){_AFTER}")
    for words in ("x|0|easting", "y|1|northing", "z|2|height|elevation|altitude")
)
_COLOURS = ("r|red|cr", "g|green|cg", "b|blue|cb")
_NORMALS = tuple(f"n_?{axis}|normal_?{axis}|normal\\.{axis}" for axis in "xyz")
_COMMA = re.compile(r"[-+]?\d+(?:,\d+)?(?:[eE][-+]?\d+)?")
_GROUPED = re.compile(
    r"(?<!\d)[-+]?\d{1,3}(?:([. \xa0\u202f])\d{3}(?:\1\d{3})*,|([, \xa0\u202f])\d{3}(?:\2\d{3})*\.)\d+"
)
"""A number with separators of thousands: 1.100,5 or 1,100.5 or 1 100,5."""
_NO_NUMBER = re.compile(r"[-+]?(?:1\.#(?:QNAN|SNAN|IND|INF)\d*|nan\((?:ind|snan)\))", re.IGNORECASE)
"""NaN and infinity as written by Microsoft's C library."""
_BLANKS = r"\s+"
_LINES = 20
"""Lines from which the layout of a file is inferred."""


def decoded(content: bytes) -> str:
    """Decode text as UTF-8, or UTF-16 with or without a byte order mark, or else Latin-1."""
    try:
        return outside.decoded(content, "strict")
    except UnicodeDecodeError:
        return content.removeprefix(codecs.BOM_UTF8).decode("latin-1")


def numbers(text: str | bytes) -> Float64[np.ndarray, " N"]:
    """Parse numbers separated by any whitespace; ValueError for anything else."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return np.fromstring(text, np.float64, sep=" ") if text.strip() else np.empty(0)
        except DeprecationWarning as error:
            raise ValueError("numbers must be written with a point and apart by blanks") from error


def read_columns(content: bytes, note: Callable[[str], object], more: bool = False) -> Geometry:
    """Read points from lines of numbers: the columns named x, y, z in a header, else the first three.

    Columns are separated by blanks, commas or semicolons; # and // begin a comment; a word before the numbers, such as
    an element's name, is skipped. A single number on a line counts the points after it (.pts with one or several scans,
    chemical .xyz with a comment line after it). Decimal commas are read where they are unambiguous. Missing or invalid
    numbers in a row become NaN.

    Args:
        more: also read the columns after the coordinates: colours and normals named in a header, or unnamed columns.

    Raises:
        ValueError: for rows of words, with too few columns or with separators of thousands, and for a wrong count.
    """
    text = decoded(content)
    if "#" in text or "(" in text:
        text = _NO_NUMBER.sub("nan", text)
    lines = text.splitlines()
    columns = _columns(lines, note)
    rows = [line for raw in lines if (line := re.split("#|//", raw, maxsplit=1)[0].strip())]
    rows = list(dropwhile(lambda row: not _has_numbers(row), rows))
    if not rows:
        raise ValueError("the file must have points, got none")
    rows = _counted(rows)
    if row := next(filter(_is_grouped, rows if _may_be_grouped(text) else []), None):
        at = next(i for i, line in enumerate(lines, 1) if row in line)
        raise ValueError(
            f"numbers must be written without separators of thousands, got in line {at}: {row[:60]!r}"
        )
    if _has_decimal_commas(rows[:_LINES]):
        note("commas are read as decimal points")
        rows = [row.replace(",", ".").replace(";", " ") for row in rows]
    elif any(sign in row for row in rows[:_LINES] for sign in ",;"):
        rows = [re.sub(r"[,;](?=\s*(?:[,;]|$))", ",nan", re.sub(r"^\s*(?=[,;])", "nan", row)) for row in rows]
        rows = [re.sub("[,;]", " ", row) for row in rows]
    if _has_row_names(_header(lines), rows[:_LINES]):
        columns = tuple(column + 1 for column in columns)
    if any('"' in row for row in rows[:_LINES]):
        rows = [row.replace('"', "") for row in rows]
    if not more:
        return Geometry(np.loadtxt(rows, usecols=columns, ndmin=2, comments=None))
    named = _named_columns(lines)
    first = columns[0]
    if not named:
        columns = (
            *columns,
            *range(max(columns) + 1, len(list(takewhile(_number, rows[0].split()[first:]))) + first),
        )
    shift = first - _columns(lines, lambda _: None)[0]
    every = (*columns, *(column + shift for of in named.values() for column in of))
    values = np.loadtxt(rows, usecols=every, ndmin=2, comments=None)
    if not named:
        return Geometry(values)
    parts = {name: values[:, 3 + 3 * i : 6 + 3 * i] for i, name in enumerate(named)}
    return Geometry(values[:, :3], rgb=parts.get("rgb"), normals=parts.get("normals"))


def _named_columns(lines: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Column indices of colours and normals, by the header."""
    names = _header(lines)
    found = {}
    for channel, words in (("rgb", _COLOURS), ("normals", _NORMALS)):
        at = [[i for i, name in enumerate(names) if re.fullmatch(word, name)] for word in words]
        if all(len(places) == 1 for places in at):
            found[channel] = tuple(places[0] for places in at)
    return found


def is_columns(content: bytes) -> bool:
    """Whether the beginning of a file looks like points rather than prose."""
    lines = [line for line in decoded(content).splitlines() if line.strip()][:_LINES]
    return any(len(_fields(line)) >= 3 and all(map(_number, _fields(line)[:3])) for line in lines) or (
        len(lines) > 1 and lines[0].strip().isdecimal()
    )


def _counted(rows: list[str]) -> list[str]:
    """Remove the rows with point counts, which must be correct."""
    if not rows[0].isdecimal():
        return rows
    points: list[str] = []
    at = 0  # single pass, as there may be as many counts as rows
    while at < len(rows):
        if not rows[at].isdecimal():
            raise ValueError(
                f"the file must hold as many points as it counts, got more after {len(points)}: {rows[at][:60]!r}"
            )
        count, at = int(rows[at]), at + 1
        if at < len(rows) and not rows[at].isdecimal() and not _has_numbers(rows[at]):
            at += 1  # the comment line of a chemical .xyz
        some = rows[at : at + count]
        there = next((i for i, row in enumerate(some) if row.isdecimal()), len(some))
        if there < count:
            raise ValueError(
                f"the file must hold the {count} points that it counts, got {there}: {count - there} are missing"
            )
        points += some
        at += count
    if not points:
        raise ValueError("the file must have points, got none")
    return points


def _columns(lines: Sequence[str], note: Callable[[str], object]) -> tuple[int, ...]:
    """Column indices of x, y and z, by the last line of words before the first of numbers."""
    names = _header(lines)
    found = [[i for i, name in enumerate(names) if axis.fullmatch(name)] for axis in _AXES]
    if all(len(places) == 1 for places in found):
        return tuple(places[0] for places in found)
    if len(names) > 2 and sum(any(axis.fullmatch(name) for axis in _AXES) for name in names):
        note(
            f"the header does not name x, y and z once each: the first columns are read of {' '.join(names)[:60]}"
        )
    return 0, 1, 2


def _header(lines: Sequence[str]) -> list[str]:
    """The column names: the last line of words before the first of numbers."""
    header = ""
    for line in lines[:_LINES]:
        if _has_numbers(line):
            break
        header = line if line.strip(' #/"\t') else header
    names = [name.strip("\"' /#").lower() for name in re.split(_apart(header), header.lstrip("/# "))]
    return names if any(names[1:]) and _apart(header) != _BLANKS else [name for name in names if name]


def _has_row_names(names: Sequence[str], rows: Sequence[str]) -> bool:
    """Whether rows begin with a row name or number without a name in the header, as written by statistics programs."""
    words = [row.replace('"', "").split() for row in rows]
    if not _number(words[0][0]):
        return len(names) < len(words[0])
    first = [row[0] for row in words]
    counts = any(first == [str(i) for i in range(start, start + len(rows))] for start in (0, 1))
    return {"x", "y", "z"} <= {*names} and len(names) == len(words[0]) - 1 and counts


def _fields(line: str) -> list[str]:
    return [word for word in re.split(_apart(line), line) if word.strip()]


def _apart(line: str) -> str:
    """The column separator of a line."""
    return r"[,;\t]" if re.search(r"[,;\t]", line.strip()) else _BLANKS


def _has_numbers(line: str) -> bool:
    """Whether a line may be a row of points or a count rather than words."""
    words = [word for word in re.split(r"[\s,;]+", line.replace('"', "").strip()) if word]
    if not words:
        return False
    if len(words) == 1:
        return words[0].isdecimal()
    return sum(map(_number, words[:4])) >= min(len(words), 3) or (len(words) > 1 and all(map(_number, words)))


def _number(word: str) -> bool:
    try:
        float(word.strip(' "'))
    except ValueError:
        return False
    return True


def _has_decimal_commas(rows: Sequence[str]) -> bool:
    """Whether all rows have three or more numbers, separated by blanks or semicolons, with commas in them."""
    words = [word for row in rows for word in re.split(r"[\s;]+", row.strip()) if word]
    apart = all(len(re.split(r"[\s;]+", row.strip())) >= 3 for row in rows)
    return apart and any("," in word for word in words) and all(map(_COMMA.fullmatch, words))


def _may_be_grouped(text: str) -> bool:
    """Whether fields are quoted, or separated by semicolons, or by blanks beside commas; most files have neither."""
    return '"' in text or ";" in text or ("," in text and re.search(r"[ \t]", text) is not None)


def _is_grouped(row: str) -> bool:
    """Whether a field has separators of thousands, of three or more in quotes or separated by semicolons or blanks."""
    if not _GROUPED.search(row):
        return False
    several = (row.split('"')[1::2], row.split(";"), re.split(r"[\s;]+", row))
    fields = next((fields for fields in several if len(fields) >= 3), [])
    return any(_GROUPED.fullmatch(field.strip()) for field in fields)
