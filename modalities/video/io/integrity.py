"""Checks files against their own headers and checksums: FFmpeg reads a truncated file without an error."""

import os
import zlib
from pathlib import Path
from typing import BinaryIO

from ditmoe.outside import open_regular

_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot", b"moof", b"sidx", b"uuid"}
_SEGMENT = 0x18538067
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def is_truncated(path: Path) -> bool:
    """Whether a file is shorter than the sizes in its top-level elements.

    Supports AVI (RIFF), MP4 and MOV (boxes), Matroska and WebM (EBML) and GIF; False for others and for
    elements without a size, such as those of a live recording.
    """
    size = os.path.getsize(path)
    with open_regular(path) as stream:
        head = stream.read(12)
        if head[:4] == b"RIFF":
            return _riff_end(stream, size) > size
        if head[4:8] in _BOXES:
            return _boxes_end(stream, size) > size
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _segment_end(stream) > size
        if head[:4] == b"GIF8":
            stream.seek(max(size - 4, 0))
            return b";" not in stream.read()
    return False


def _riff_end(stream: BinaryIO, size: int) -> int:
    """End of the last of a chain of RIFF chunks; AVI above 1 GiB has several."""
    end = 0
    while end + 8 <= size:
        stream.seek(end)
        head = stream.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            break
        end += 8 + length
    return end


def _boxes_end(stream: BinaryIO, size: int) -> int:
    """End of the last of a chain of boxes; trailing data that is not a known box is ignored."""
    end = 0
    while end + 8 <= size:
        stream.seek(end)
        head = stream.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8 or (head[4:8] not in _BOXES and end + length > size):
            break
        end += length
    return end


def _segment_end(stream: BinaryIO) -> int:
    """End of the segment after the header; 0 if it has no size."""
    stream.seek(4)
    length = _vint(stream)
    stream.seek(length or 0, os.SEEK_CUR)
    if int.from_bytes(stream.read(4), "big") != _SEGMENT:
        return 0
    length = _vint(stream)
    return 0 if length is None else stream.tell() + length


def _vint(stream: BinaryIO) -> int | None:
    """An EBML variable-length integer, whose leading zero bits count its further bytes; None for "unknown"."""
    first = stream.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> extra)]) + stream.read(extra), "big")
    return None if value == (1 << 7 * (extra + 1)) - 1 else value


def sums_fit(packet: bytes) -> bool | None:
    """Whether the checksums of an FFV1 frame are correct (RFC 9043, section 4.9); None if there are none.

    Each slice ends with its length (24 bits), a status and a CRC-32 that makes the CRC of the whole slice 0.
    """
    end, sums = len(packet), []
    while end >= 8:
        start = end - 8 - int.from_bytes(packet[end - 8 : end - 5], "big")
        if start < 0:
            return None
        # zlib's CRC is bit-reversed, with initial and final inversion.
        sums.append(zlib.crc32(packet[start:end].translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF)
        end = start
    return not any(sums) if sums and not end else None
