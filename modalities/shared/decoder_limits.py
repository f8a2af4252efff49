"""Limits on what a few bytes of an image make its decoder repeat or hold, beside the pixels."""

import io
import math
import re
import warnings
from collections.abc import Callable
from functools import cache

from PIL import Image, TiffImagePlugin

LARGE = 2**24
"""Pixels from which images are decoded one at a time, whatever the number of threads."""
MOST_SCANS = 100
"""Scans of a JPEG; ordinary files have about ten, and libtiff has the same limit."""
MOST_BLOCKS = 2**20
"""Code blocks of a JPEG 2000, by their smallest declared size; each takes 400 bytes, ordinary files have 1 %."""
MOST_OF_TILES = 2**28
"""Bytes that a JPEG 2000 may take for its tiles, before the first of them is decoded."""
MOST_BANDS = 8
"""Times that strips may cover an image; those of a TIFF do so for each of its bands."""
MOST_COMMENTS = 1000
"""Comments of a PPM in plain text, for each of which Pillow moves the text behind it."""
_OF_TILE, _OF_COMPONENT = 2**14, 2**11
"""Bytes that OpenJPEG takes for a tile, beside a copy of the transforms, and for each of its components."""
_TILE = (322, 323)
"""TIFF tags of the width and height of tiles, each of which is decoded whole."""
_SCAN, _MARKER = b"\xff\xda", re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # not stuffed, fill or restart
_BLOCKS = re.compile(
    rb"\xff(?:\x52\0[\x0c-\x2d](?=.[\0-\4]..[\0\1])|\x53\0[\x09-\x2b].)(?P<own>[\0-\7])(?:[\0-\4]..[\0\1])?"
    rb"(?P<levels>[\0-\x20])(?P<width>[\0-\x08])(?P<height>[\0-\x08])[\0-\x3f][\0\1]",
    re.DOTALL,
)
"""Coding style segments of a JPEG 2000 (COD, ISO/IEC 15444-1 A.6.1) or of a component (COC)."""
_SIZES = re.compile(rb"\xff\x51(?P<length>..)..(?P<sides>.{32})(?P<components>..)", re.DOTALL)
"""The segment of a JPEG 2000 that says its size and that of its tiles (SIZ, A.5.1)."""
_FIRST_TILE, _TRANSFORMS = 0x90, (0x74, 0x75, 0x77)
"""Second bytes of the markers that end the header (SOT), and of MCT, MCC and MCO (ISO/IEC 15444-2 A.3)."""
_PLAIN = (b"P1", b"P2", b"P3")


class TooLargeError(ValueError):
    """An image with more pixels than allowed."""


def check_cost(picture: Image.Image, stream: io.BufferedIOBase) -> None:
    """Raise ValueError for an open image whose decoder would repeat or hold far more than its pixels.

    Args:
        stream: what it was opened from.
    """
    _check_pieces(picture)
    if picture.format == "TIFF":
        _check_tiff_tiles(picture, max(picture.width * picture.height, LARGE))
    checks: dict[str, Callable[[Image.Image, bytes], None]] = {
        "JPEG": _check_scans,
        "MPO": _check_scans,
        "JPEG2000": _check_jpeg_2000,
        "PPM": _check_comments,
    }
    if check := checks.get(picture.format or ""):
        before = stream.tell()
        stream.seek(0)
        content = stream.read()
        stream.seek(before)
        check(picture, content)


def _check_pieces(picture: Image.Image) -> None:
    """Refuse an image whose strips cover it more than once for each of its bands, each time from the same bytes."""
    drawn = 0
    for piece in getattr(picture, "tile", ()):
        left, top, right, bottom = piece[1] or (0, 0, *picture.size)
        drawn += (right - left) * (bottom - top)
    if drawn > (most := MOST_BANDS * picture.width * picture.height):
        raise ValueError(f"its strips must have at most {most} pixels, got {drawn}")


def _check_scans(picture: Image.Image, content: bytes) -> None:
    """Refuse a JPEG with too many scans, each a pass over the whole image for a few bytes."""
    if content.count(_SCAN) <= MOST_SCANS:  # an upper bound: thumbnails have scans, too
        return
    at, scans = 2, 0
    while (marker := _MARKER.search(content, at)) and marker[0] != b"\xff\xd9":
        scans += marker[0] == _SCAN
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    if scans > MOST_SCANS:
        raise ValueError(f"a JPEG must have at most {MOST_SCANS} scans, got {scans}")


def _check_jpeg_2000(picture: Image.Image, content: bytes) -> None:
    _check_blocks(content, picture.width * picture.height * len(picture.getbands()))
    _check_tiles(content)


def _check_blocks(content: bytes, samples: int) -> None:
    """Refuse a JPEG 2000 with too many code blocks for memory, which a thousand bytes can declare."""
    for found in _BLOCKS.finditer(content):  # for the image, a component or a tile
        width, height, levels = (found[name][0] for name in ("width", "height", "levels"))  # powers of two
        own = content[found.end() : found.end() + levels + 1] if found["own"][0] & 1 else b"\xff"
        for level, precinct in enumerate(reversed(own)):  # from the finest, a quarter of the samples each
            sides = ((precinct & 15) - 1, width + 2), ((precinct >> 4) - 1, height + 2)
            area = sum(max(0, min(side)) for side in sides)
            if (blocks := samples >> 2 * level + area) > MOST_BLOCKS:
                raise ValueError(f"a JPEG 2000 must have at most {MOST_BLOCKS} blocks, got {blocks}")


def _check_tiles(content: bytes) -> None:
    """Refuse a JPEG 2000 with too many tiles for memory: OpenJPEG copies what its header says for each of them.

    Every segment that looks like one of sizes counts, since what lies before the image is skipped by its decoder.
    """
    for found in _SIZES.finditer(content):
        components = int.from_bytes(found["components"], "big")
        if int.from_bytes(found["length"], "big") != 38 + 3 * components:
            continue
        sides = found["sides"]
        width, height, _, _, *tile = (int.from_bytes(sides[at : at + 4], "big") for at in range(0, 32, 4))
        across, down, left, top = tile
        tiles = -(-max(0, width - left) // max(1, across)) * -(-max(0, height - top) // max(1, down))
        copied = _bytes_of_transforms(content, found.end() + 3 * components)
        if tiles > 1 and tiles * (_OF_TILE + _OF_COMPONENT * components + copied) > MOST_OF_TILES:
            raise ValueError(
                f"the tiles of a JPEG 2000 must take at most {MOST_OF_TILES >> 20} MiB beside their pixels, got "
                f"{tiles}, with {copied} bytes of transforms each"
            )


def _bytes_of_transforms(content: bytes, at: int) -> int:
    """The bytes of transforms of components among the segments that begin at an offset, up to the first tile."""
    found = 0
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != _FIRST_TILE:
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        found += length if content[at + 1] in _TRANSFORMS else 0
        at += 2 + length
    return found


def _check_comments(picture: Image.Image, content: bytes) -> None:
    """Refuse a PPM in plain text with many comments, which take Pillow quadratic time."""
    if content.startswith(_PLAIN) and (comments := content.count(b"#")) > MOST_COMMENTS:
        raise ValueError(f"a PPM in plain text must have at most {MOST_COMMENTS} comments, got {comments}")


def _check_tiff_tiles(picture: Image.Image, most: int) -> None:
    """Refuse a TIFF with tiles larger than the image."""
    sides = [int(picture.tag_v2.get(tag, 0)) for tag in _TILE]  # type: ignore[attr-defined]
    if math.prod(sides) > most:
        raise TooLargeError(f"a tile must have at most {most} pixels, got {sides[0]} x {sides[1]}")


class _Bounded(io.RawIOBase):
    """A stream of which at most twice as much is read as it holds, in whatever order; more is an OSError."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream, here = stream, stream.tell()
        self._left = 2 * stream.seek(0, io.SEEK_END)
        stream.seek(here)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise OSError("its tags hold more than the file")
        return content


@cache
def bound_tags() -> None:
    """Have Pillow read no more tags of TIFF and EXIF than bytes are there, as it does by itself from version 13.

    Before, 40,000 tags of the same 400 kB took 16 GB. The demo's Gradio needs Pillow 12.
    """
    before = TiffImagePlugin.ImageFileDirectory_v2
    if hasattr(before(), "_tag_data_limit"):
        return

    class Tags(before):  # type: ignore[valid-type, misc]
        def load(self, fp: io.BufferedIOBase) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                super().load(_Bounded(fp))

    TiffImagePlugin.ImageFileDirectory_v2 = Tags  # type: ignore[misc]
