"""Reads untrusted .npy and .npz files; an array is allocated only if the file can contain it."""

import functools
import io
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ditmoe.outside.paths import Plain, may_hold, open_regular, printable

LEAST_BYTES, FEW = 16, 1000
"""Least bytes of a file per sample, and the number of samples that may have fewer. Otherwise a few kilobytes of zeros
would be millions of pictures of one pixel, or clouds of one point, each of which is processed."""
_HEADER = 128
"""Bytes of NumPy's header for an array with few axes."""
LONGEST_HEADER = 10_000
"""Most bytes of a header that are read: NumPy rejects longer ones, but only after reading them into memory."""


def check_items(count: int, path: Path) -> None:
    """Raises ValueError for a set of too many samples for the size of its file."""
    if count > max(FEW, (size := path.stat().st_size) // LEAST_BYTES):
        raise ValueError(
            f"a set must have {LEAST_BYTES} bytes of its file for each sample, got {count} in {size} bytes"
        )


def load_array(path: Path, rows: int | Sequence[int] | None = None) -> np.ndarray:
    """The array of a .npy file, or only the items at `rows` along its first axis.

    The file is read and not mapped: truncating a mapped file would kill the process by SIGBUS.

    Raises:
        OSError, ValueError: if it is not a regular file, or does not hold a complete array of numbers.
        IndexError: if `rows` is out of range.
    """
    with open_regular(path) as stream:
        shape, dtype, begin = _opened(stream, path)
        if rows is None or begin is None or not shape:
            stream.seek(0)
            whole = np.lib.format.read_array(stream, allow_pickle=False)
            return whole if rows is None else whole[rows]
        size = math.prod(shape[1:]) * dtype.itemsize
        found = []
        for row in [rows] if isinstance(rows, int) else rows:
            if not -shape[0] <= row < shape[0]:
                raise IndexError(f"{printable(path)} has {shape[0]} items, got the index {row}")
            stream.seek(begin + int(row) % shape[0] * size)
            if len(data := stream.read(size)) < size:
                raise ValueError(f"{printable(path)} is damaged: it ends too early")
            found.append(np.frombuffer(data, dtype).reshape(shape[1:]))
        return found[0] if isinstance(rows, int) else np.stack(found)


def about_array(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array of a .npy file, from its header. Errors as in `load_array`."""
    with open_regular(path) as stream:
        return _opened(stream, path)[:2]


def _opened(stream: Plain, path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int | None]:
    """Shape, type and byte offset of an array; the offset is None in Fortran order, where items are not contiguous."""
    if not stream.peek(1):
        raise ValueError(f"{printable(path)} must hold an array, got an empty file")
    shape, across, dtype = _read_header(stream)
    if dtype.hasobject:
        raise ValueError("an array must be of plain numbers, got objects")
    if not dtype.itemsize:  # a hundred bytes could hold any number of them
        raise ValueError(f"{printable(path)} must hold values of at least a byte, got {shape} of none")
    begin = stream.tell()
    promised, there = begin + math.prod(shape) * dtype.itemsize, os.fstat(stream.fileno()).st_size
    if there < promised:
        raise ValueError(f"{printable(path)} must have {promised} bytes by its header, got {there}")
    return shape, dtype, None if across else begin


def array_shape(path: Path) -> tuple[int, ...]:
    """The shape of the array of a .npy file, from its header, which is checked against the file's size.

    Raises:
        OSError, ValueError: if it is not a regular file, or does not hold a complete array of numbers.
    """
    with open_regular(path) as stream:
        try:
            shape, promised = _promised(stream.read(_HEADER))
        except ValueError:  # the header is longer, or invalid
            return about_array(path)[0]
        if (there := os.fstat(stream.fileno()).st_size) < promised:
            raise ValueError(f"{printable(path)} must have {promised} bytes by its header, got {there}")
        return shape


@functools.lru_cache(maxsize=64)  # most files of a set have the same header
def _promised(head: bytes) -> tuple[tuple[int, ...], int]:
    """The shape that a header declares, and the size of a file with such an array in bytes."""
    stream = io.BytesIO(head)
    shape, _, dtype = _read_header(stream)
    if dtype.hasobject:
        raise ValueError("an array must be of plain numbers, got objects")
    return shape, stream.tell() + math.prod(shape) * dtype.itemsize


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of a .npz file by name, each read on access; close it, or use it in a `with` statement.

    All arrays read together are limited to `outside.may_hold` of the file's size. Members that are not arrays are
    omitted.

    Raises:
        OSError, ValueError: if it is not a regular file, or not a complete zip archive; on access, if an array is
            damaged, holds objects, or exceeds the limit.
    """

    def __init__(self, path: Path) -> None:
        self._stream = open_regular(path)
        self._left = may_hold(path.stat().st_size)
        try:
            self._zip = zipfile.ZipFile(self._stream)
            members = {info.filename: info for info in self._zip.infolist()}
        except Exception as error:  # zipfile fails in many ways
            self._stream.close()
            raise ValueError(
                "an npz must be a whole zip archive, got something else or a truncated one"
            ) from error
        self._members = {
            name.removesuffix(".npy"): of for name, of in members.items() if name.endswith(".npy")
        }

    def __enter__(self) -> "Arrays":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._zip.close()
        self._stream.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members  # Mapping's default would read the array

    def about(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of an array, from its header.

        Raises:
            ValueError: if it is damaged, holds objects, or its header declares more bytes than its member has.
        """
        info = self._members[name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"an npz must be stored or deflated, got {printable(name)} otherwise")
        try:
            with self._zip.open(info) as stream:
                shape, dtype = _header(stream)
            size = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or not dtype.itemsize or size > info.file_size:
                raise ValueError(f"its header promises {dtype} of {shape}")
        except Exception as error:  # as above, and NumPy too
            raise _damaged(name, error) from error
        return shape, dtype

    def __getitem__(self, name: str) -> np.ndarray:
        shape, dtype = self.about(name)
        size = math.prod(shape) * dtype.itemsize
        try:
            if size > self._left:
                raise MemoryError
            with self._zip.open(self._members[name]) as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False)
        except MemoryError:
            raise ValueError(
                f"an npz must not be a bomb: {printable(name)} would take {size} bytes of memory, more than "
                f"{self._left} (ditmoe.outside.paths.GROWTH)"
            ) from None
        except Exception as error:
            raise _damaged(name, error) from error
        self._left -= size
        return array


def _damaged(name: str, error: Exception) -> ValueError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
    return ValueError(f"the array {printable(name)} is damaged: {printable(reason)}")


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    shape, _, dtype = _read_header(stream)
    return shape, dtype


_BY_VERSION: dict[tuple[int, int], tuple[int, Any]] = {
    (1, 0): (2, np.lib.format.read_array_header_1_0),
    (2, 0): (4, np.lib.format.read_array_header_2_0),
}
"""By version: the bytes that hold a header's length, and the function that reads length and header."""


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape of an array, whether it is in Fortran order, and its type."""
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _BY_VERSION:
            raise ValueError(f"its version is {version}")
        width, read = _BY_VERSION[version]
        counted = stream.read(width)
        length = int.from_bytes(counted, "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"its header must have at most {LONGEST_HEADER} bytes, got {length}")
        shape, across, dtype = read(io.BytesIO(counted + stream.read(length)))
        if not all(type(size) is int and 0 <= size < 2**63 for size in shape):
            raise ValueError("each size in its header must be a whole number from 0 to 2**63 - 1")
        return shape, across, dtype
    except OSError:
        raise
    except Exception as error:  # a header is a Python literal, whose parse errors may have several paragraphs
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(printable(reason[:200])) from error
