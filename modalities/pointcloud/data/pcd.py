"""PCD files of the Point Cloud Library: text, binary, and LZF-compressed binary."""

import math
import re

import numpy as np

from ditmoe.outside import may_hold
from modalities.pointcloud.data.channels import Geometry
from modalities.pointcloud.data.text import numbers

_KINDS = frozenset({"I1", "I2", "I4", "I8", "U1", "U2", "U4", "U8", "F4", "F8"})
_NORMALS, _COLOURS, _PACKED = ("normal_x", "normal_y", "normal_z"), ("r", "g", "b"), ("rgb", "rgba")


def read_pcd(content: bytes, note: object = None) -> Geometry:
    """Read points with colours and normals; NaN where a depth camera has no value.

    Raises:
        ValueError: if the file has less than its header declares, or no x, y, z.
    """
    end = re.search(rb"(?m)^DATA[ \t]+(\w+)[ \t]*(?:\r\n|\n|\r)", content[: 2**16])
    if not end:
        raise ValueError("the header of a PCD must end with its line DATA")
    lines = [line.split() for line in content[: end.start()].decode("latin-1").splitlines()]
    head = {words[0]: words[1:] for words in lines if words}
    names = head.get("FIELDS", head.get("COLUMNS", []))
    counts = [int(word) for word in head.get("COUNT", ["1"] * len(names))]
    if strange := [
        f"{k} of {s}" for k, s in zip(head["TYPE"], head["SIZE"], strict=True) if k.upper() + s not in _KINDS
    ]:
        raise ValueError(f"fields of a PCD must be I, U or F of 1, 2, 4 or 8 bytes, got {strange[0][:40]}")
    kinds = [f"<{kind.lower()}{size}" for kind, size in zip(head["TYPE"], head["SIZE"], strict=True)]
    counted = [int(head[name][0]) for name in (["POINTS"] if "POINTS" in head else ["WIDTH", "HEIGHT"])]
    if min(counted) < 0:
        raise ValueError(f"a PCD must count its points, got {min(counted)}")
    num_points = math.prod(counted)
    if not {"x", "y", "z"} <= set(names) or not len(names) == len(kinds) == len(counts) or min(counts) < 0:
        raise ValueError(f"a PCD must have fields x, y and z with their types, got {' '.join(names)[:60]}")
    # The padding name _ may occur any number of times.
    dtypes = [np.dtype((kind, (count,))) for kind, count in zip(kinds, counts, strict=True)]
    body, form = content[end.end() :], end[1].decode("latin-1")
    wanted = {
        name: names.index(name) for name in ("x", "y", "z", *_NORMALS, *_PACKED, *_COLOURS) if name in names
    }
    if form == "ascii":
        columns = _of_text(body, num_points, counts, wanted)
    elif form == "binary":
        row = np.dtype([(f"{i}", kind) for i, kind in enumerate(dtypes)])
        _check_there(num_points, len(body) // row.itemsize)
        rows = np.frombuffer(body, row, num_points)
        columns = {name: rows[f"{i}"][:, 0] for name, i in wanted.items() if counts[i]}
    elif form == "binary_compressed":
        columns = _of_packed(content, body, num_points, dtypes, wanted)
    else:
        raise ValueError(f"a PCD must be ascii, binary or binary_compressed, got {form[:40]}")
    return Geometry(
        _stacked([columns[axis] for axis in "xyz"]),
        rgb=_colours(columns),
        normals=_stacked([columns[name] for name in _NORMALS]) if {*_NORMALS} <= columns.keys() else None,
    )


def _of_text(
    body: bytes, num_points: int, counts: list[int], wanted: dict[str, int]
) -> dict[str, np.ndarray]:
    values, starts = numbers(body), np.cumsum([0, *counts[:-1]])
    _check_there(num_points, len(values) // sum(counts))
    rows = values[: num_points * sum(counts)].reshape(num_points, -1)
    return {name: rows[:, starts[i]] for name, i in wanted.items() if counts[i]}


def _of_packed(
    content: bytes, body: bytes, num_points: int, dtypes: list[np.dtype], wanted: dict[str, int]
) -> dict[str, np.ndarray]:
    """Fields stored one after another, each for all points."""
    packed, size = int.from_bytes(body[:4], "little"), int.from_bytes(body[4:8], "little")
    needed = num_points * sum(kind.itemsize for kind in dtypes)
    grown = max(size, 24 * num_points)  # three coordinates in double precision
    if packed > len(body) - 8 or grown > may_hold(len(content)) or size < needed:
        raise ValueError(
            f"a compressed PCD must hold its {num_points} points, got {len(body)} bytes for {grown}"
        )
    plain = _expanded(body[8 : 8 + packed], size)
    starts = np.cumsum([0, *(kind.itemsize * num_points for kind in dtypes)])
    return {
        name: np.frombuffer(plain, dtypes[i], num_points, int(starts[i]))[:, 0]
        for name, i in wanted.items()
        if dtypes[i].shape[0]
    }


def _colours(columns: dict[str, np.ndarray]) -> np.ndarray | None:
    """Colours from one number of any type with packed blue, green and red bytes; or from three fields."""
    if {*_COLOURS} <= columns.keys():
        return np.stack([columns[name] for name in _COLOURS], axis=1)
    found = next((columns[name] for name in _PACKED if name in columns), None)
    if found is None:
        return None
    if found.dtype == np.float64:  # from text: the number itself, or a float with the same bits
        whole = bool((found == np.floor(found)).all() and (found >= 0).all() and (found < 2**32).all())
        found = found.astype(np.uint32 if whole else np.float32)
    if found.dtype.itemsize != 4:
        return None
    bits = np.ascontiguousarray(found).view(np.uint32)
    return np.stack([bits >> shift & 255 for shift in (16, 8, 0)], axis=1).astype(np.uint8)


def _stacked(columns: list[np.ndarray]) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # NaN of a depth camera
        return np.stack([column.astype(np.float64) for column in columns], axis=1)


def _check_there(counted: int, there: int) -> None:
    if counted > there:
        raise ValueError(f"a PCD must hold the {counted} points of its header, got {there} (truncated?)")


def _expanded(packed: bytes, size: int) -> bytes:
    """Decompress LZF: literal runs (a byte below 32 gives their length), or copies from up to 8 KiB before."""
    out = bytearray()
    at = 0
    try:
        while at < len(packed):
            control = packed[at]
            at += 1
            if control < 32:
                out += packed[at : at + control + 1]
                at += control + 1
            else:
                length = control >> 5
                if length == 7:
                    length += packed[at]
                    at += 1
                back = len(out) - ((control & 31) << 8) - packed[at] - 1
                at += 1
                piece = out[back : back + length + 2] if back >= 0 else b""
                if not piece:
                    raise IndexError
                out += (piece * (length + 2))[: length + 2] if len(piece) < length + 2 else piece
            if len(out) > size:
                raise IndexError
    except IndexError:
        raise ValueError("the compressed part of a PCD is damaged") from None
    if len(out) != size:
        raise ValueError(f"the compressed part of a PCD must become {size} bytes, got {len(out)}")
    return bytes(out)
