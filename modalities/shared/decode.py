"""Picture files of strangers, decoded only where they are plain files, of known kinds, and not larger than memory."""

import io
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import IO, TypeVar

from PIL import Image, TiffImagePlugin, WebPImagePlugin  # the others Pillow knows by itself

from ditmoe.outside import open_regular

T = TypeVar("T")
KINDS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Pillow knows further ones, of which some start other programs (EPS)."""
MAX_PIXELS = 89_478_485
"""Of a picture, where no one says otherwise: a quarter of a gigabyte as RGB, as much as Pillow takes in silence."""
_PLUGINS = TiffImagePlugin, WebPImagePlugin
LARGE = 2**24
"""Pixels from which pictures are decoded one at a time, whatever the number of threads."""
_ONE_AT_A_TIME = Lock()
MOST_SCANS = 100
"""Of a JPEG; honest ones have about ten, and libtiff takes as many."""
_SCAN, _MARKER = b"\xff\xda", re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # not stuffed, filled or restarted


def decoded(
    source: Path | io.BytesIO,
    make: Callable[[Image.Image], T],
    max_pixels: int = MAX_PIXELS,
    kinds: tuple[str, ...] = KINDS,
) -> T:
    """What `make` makes of a picture, whose size is known and whose pixels are not read yet.

    Raises:
        OSError, ValueError: if it is no plain file, no picture, or too large; Pillow throws further ones.
    """
    with _stream(source) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about odd metadata
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is here
        Image.preinit()
        with Image.open(stream, formats=[kind for kind in kinds if kind in Image.OPEN]) as picture:
            pixels = picture.width * picture.height
            if not 1 <= pixels <= max_pixels:
                raise ValueError(
                    f"it must have at most {max_pixels} pixels, got {picture.width} x {picture.height}"
                )
            if picture.format in ("JPEG", "MPO"):
                _check_scans(stream)
            with _ONE_AT_A_TIME if pixels > LARGE else nullcontext():
                return make(picture)


def _check_scans(stream: IO[bytes]) -> None:
    """Raises ValueError for a JPEG that goes over the whole picture again and again, a few bytes each time."""
    before = stream.tell()
    stream.seek(0)
    content = stream.read()
    stream.seek(before)
    if content.count(_SCAN) <= MOST_SCANS:  # thumbnails and what is appended have such bytes, too
        return
    at, scans = 2, 0
    while (marker := _MARKER.search(content, at)) and marker[0] != b"\xff\xd9":
        scans += marker[0] == _SCAN
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    if scans > MOST_SCANS:
        raise ValueError(f"a JPEG must have at most {MOST_SCANS} scans, got {scans}")


def _stream(source: Path | io.BytesIO) -> AbstractContextManager[IO[bytes]]:
    return open_regular(source) if isinstance(source, Path) else nullcontext(source)
