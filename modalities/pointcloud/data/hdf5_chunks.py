"""Checks the chunks of an HDF5 array before the library reads them.

The library decompresses a chunk to whatever it becomes, and does not notice one that becomes too little: the rest of
its array is then uninitialised memory.
"""

import itertools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

DEFLATE, SHUFFLE, CHECKSUM, LZF = 1, 2, 3, 32000
"""Codes of HDF5's filters."""
COMPRESSING = (DEFLATE, LZF)
_CHECKSUM_BYTES = 4


def check_filters(data: Any, name: str) -> list[int]:
    """The filters of an array, in the order in which they were applied.

    Raises:
        ValueError: for others than those whose result can be checked, and for several that compress.
    """
    made = data.id.get_create_plist()
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    if any(code not in (*COMPRESSING, SHUFFLE, CHECKSUM) for code in filters):
        raise ValueError(f"an HDF5 must be compressed by gzip or lzf, got its {name} stored otherwise")
    if sum(code in COMPRESSING for code in filters) > 1:  # stacked filters multiply the ratio
        raise ValueError(f"an HDF5 must be compressed once, got its {name} compressed again")
    return filters


def read_rows(data: Any, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows of an array, whose chunks are checked first.

    Raises:
        ValueError: if a chunk is not of the size of a chunk.
    """
    if not data.chunks:
        return np.asarray(data[()] if stop is None else data[start:stop])
    filters, size = check_filters(data, name), math.prod(data.chunks) * data.id.get_type().get_size()
    ends = (data.shape[0] if stop is None else min(stop, data.shape[0]), *data.shape[1:])
    starts = (start - start % data.chunks[0], *(0 for _ in ends[1:]))
    for offset in itertools.product(*map(range, starts, ends, data.chunks)):
        skipped, stored = data.id.read_direct_chunk(offset)
        applied = [code for i, code in enumerate(filters) if not skipped >> i & 1]
        if not _becomes(stored, applied, size):
            raise ValueError(f"an HDF5 must hold whole chunks, got a damaged one in its {name}")
    return np.asarray(data[()] if stop is None else data[start:stop])


def _becomes(stored: bytes, filters: Sequence[int], size: int) -> bool:
    """Whether a stored chunk becomes exactly so many bytes; it is decompressed to one more at most."""
    for number, code in enumerate(filters):
        if code == CHECKSUM:
            size += _CHECKSUM_BYTES
        elif code in COMPRESSING:
            after = _CHECKSUM_BYTES * list(filters[number:]).count(CHECKSUM)
            packed = stored[: len(stored) - after]
            return (_inflated if code == DEFLATE else _length_of_lzf)(packed, size + 1) == size
    return len(stored) == size


def _inflated(packed: bytes, most: int) -> int:
    try:
        return len(zlib.decompressobj().decompress(packed, most))
    except zlib.error as error:
        raise ValueError(f"an HDF5 must hold whole chunks: {error}") from error


def _length_of_lzf(packed: bytes, most: int) -> int:
    """Bytes that LZF data become: runs of up to 32 bytes, and references to up to 264 earlier ones."""
    at = length = 0
    while at < len(packed) and length < most:
        control = packed[at]
        if control < 32:
            length, at = length + control + 1, at + control + 2
        elif control < 224:
            length, at = length + (control >> 5) + 2, at + 2
        else:
            length, at = length + int.from_bytes(packed[at + 1 : at + 2]) + 9, at + 3
    return length if at <= len(packed) else -1
