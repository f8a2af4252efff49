"""Picture files of strangers, decoded only where they are plain files, of known kinds, and not larger than memory."""

import importlib
import io
import math
import re
import struct
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from ditmoe.outside import open_regular
from modalities.shared.salvage import salvaged

T = TypeVar("T")
KINDS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Pillow knows further ones, of which some start other programs (EPS)."""
BY_SUFFIX = {".tga": "TGA"}
"""Kinds that cannot be told by their first bytes: only files that say so are tried."""
STILLS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx", ".tga",
)  # fmt: skip
"""File endings of pictures of these kinds; a .gif or .apng is a picture or a clip."""
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".jp2", ".j2k", ".jpx")
"""Of those, whose compression may have changed them."""
MAX_PIXELS = 89_478_485
"""Of a picture, where no one says otherwise: a quarter of a gigabyte as RGB, as much as Pillow takes in silence."""
HEAVY = {"WEBP": 2, "AVIF": 3, "JPEG2000": 4}
"""Kinds whose decoders hold a picture several times over (up to 40 bytes a pixel), and by what their limit is less."""
_PLUGINS = ("Tiff", "WebP", "Mpo", "Avif", "Jpeg2K", "Tga")  # the others Pillow loads by itself
WIDE = 16
"""How many times as long as what is wanted of it a side may become, before its ends are cut off."""
LARGE = 2**24
"""Pixels from which pictures are decoded one at a time, whatever the number of threads."""
_ONE_AT_A_TIME = Lock()
LONGEST_SIDE = 2**20
"""Pixels; each row has memory of its own beside them."""
MOST_BLOCKS = 2**20
"""Of a JPEG 2000, by the smallest that it names; each takes 400 bytes, and ordinary ones are a hundredth as many."""
_TILE = (322, 323)
"""Tags of a TIFF: width and height of the tiles, each of which is in memory whole."""
MOST_SCANS = 100
"""Of a JPEG; honest ones have about ten, and libtiff takes as many."""
_SCAN, _MARKER = b"\xff\xda", re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # not stuffed, filled or restarted

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BLOCKS = re.compile(
    rb"\xff(?:\x52\0[\x0c-\x2d](?=.[\0-\4]..[\0\1])|\x53\0[\x09-\x2b].)(?P<own>[\0-\7])(?:[\0-\4]..[\0\1])?"
    rb"(?P<levels>[\0-\x20])(?P<width>[\0-\x08])(?P<height>[\0-\x08])[\0-\x3f][\0\1]",
    re.DOTALL,
)
"""How a JPEG 2000 is coded (COD, ISO/IEC 15444-1 A.6.1), or a component of it (COC)."""

HEIC = re.compile(rb".{4}ftyp(?:hei[cmsx]|mif1)", re.DOTALL)
"""How still pictures of phones begin."""
_UNREAD = {
    "HEIC": HEIC,
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", re.DOTALL),
}
"""How pictures begin whose kinds people have and Pillow does not read."""


class TooLargeError(ValueError):
    """A picture of more pixels than it may have."""


def decoded(
    source: Path | io.BytesIO,
    make: Callable[[Image.Image], T],
    max_pixels: int = MAX_PIXELS,
    kinds: tuple[str, ...] = KINDS,
    keep: Callable[[str], object] | None = None,
) -> T:
    """What `make` makes of a picture, whose size is known and whose pixels are not read yet.

    Args:
        max_pixels: that it may have, whatever Pillow's own limit is, which stays as it is.
        keep: of a picture that breaks off what decodes is taken, and this is told what that is.

    Raises:
        OSError, ValueError: if it is no plain file, no picture, or too large; Pillow throws further ones.
    """
    with _stream(source) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about odd metadata
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is here
        _load_plugins()
        if isinstance(source, Path) and (kind := BY_SUFFIX.get(source.suffix.lower())):
            kinds = (*kinds, kind)
        with _open(stream, kinds) as picture:
            pixels = picture.width * picture.height
            most = max_pixels // HEAVY.get(picture.format or "", 1)
            if not 1 <= pixels <= most:
                raise TooLargeError(
                    f"it must have at most {most} pixels, got {picture.width} x {picture.height}"
                )
            if max(picture.size) > LONGEST_SIDE:
                raise TooLargeError(
                    f"a side must have at most {LONGEST_SIDE} pixels, got {max(picture.size)}"
                )
            if picture.format in ("JPEG", "MPO"):
                _check_scans(stream)
            elif picture.format == "JPEG2000":
                _check_blocks(stream, pixels * len(picture.getbands()))
            elif picture.format == "TIFF":
                _check_tiles(picture, max(pixels, LARGE))
            with _ONE_AT_A_TIME if pixels > LARGE else nullcontext():
                if keep is None:
                    return make(picture)
                kept, what = salvaged(picture, stream)
                made = make(kept)
                if what:
                    keep(what)
                return made


def _open(stream: io.BufferedIOBase, kinds: tuple[str, ...]) -> Image.Image:
    """A picture of one of these kinds, of which only the header is read; as `Image.open`, without its limit.

    Raises:
        UnidentifiedImageError: if it is of none.
    """
    start = stream.tell()
    prefix = stream.read(16)
    for kind in kinds:
        if kind not in Image.OPEN:
            continue
        make, accept = Image.OPEN[kind]
        known = not accept or accept(prefix)
        if not known or isinstance(known, str):  # which says what is missing to read it
            continue
        stream.seek(start)
        try:
            return make(stream, "")  # type: ignore[arg-type]  # all that it needs of an IO[bytes]
        # By these plugins say that it is not theirs.
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    raise UnidentifiedImageError("its kind is not known, or its header is damaged")


def unknown(source: Path | io.BytesIO) -> str:
    """Why a picture is of no kind that is read, by its first bytes, and which kind it should be."""
    with _stream(source) as stream:
        stream.seek(0)
        head = stream.read(16)
    if not head:
        return "it is empty"
    kind = next((kind for kind, begin in _UNREAD.items() if begin.match(head)), None)
    if kind is None:
        return "its kind is not known"
    return f"{kind} is not read, convert it to PNG or JPEG"


def middle(length: int, scale: float, wanted: int) -> slice:
    """What is used of a side that is resized by `scale` and then cut to `wanted`: all, or its middle if it is absurd.

    A strip of one row, enlarged to many, would else become as many times longer.
    """
    keep = min(length, math.ceil(WIDE * wanted / scale))
    keep += (length - keep) % 2  # the middle stays where it is
    return slice((length - keep) // 2, (length + keep) // 2)


def _check_scans(stream: io.BufferedIOBase) -> None:
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


def _check_blocks(stream: io.BufferedIOBase, samples: int) -> None:
    """Raises ValueError for a JPEG 2000 in more code blocks than memory has room for; a thousand bytes ask for them."""
    before = stream.tell()
    stream.seek(0)
    content = stream.read()
    stream.seek(before)
    for found in _BLOCKS.finditer(content):  # of the picture, of a component or of a tile
        width, height, levels = (found[name][0] for name in ("width", "height", "levels"))  # powers of two
        own = content[found.end() : found.end() + levels + 1] if found["own"][0] & 1 else b"\xff"
        for level, precinct in enumerate(reversed(own)):  # from the finest, each of a quarter of the samples
            sides = ((precinct & 15) - 1, width + 2), ((precinct >> 4) - 1, height + 2)
            area = sum(max(0, min(side)) for side in sides)
            if (blocks := samples >> 2 * level + area) > MOST_BLOCKS:
                raise ValueError(f"a JPEG 2000 must have at most {MOST_BLOCKS} blocks, got {blocks}")


def _check_tiles(picture: Image.Image, most: int) -> None:
    """Raises ValueError for a TIFF with larger tiles than it is itself."""
    sides = [int(picture.tag_v2.get(tag, 0)) for tag in _TILE]  # type: ignore[attr-defined]
    if math.prod(sides) > most:
        raise TooLargeError(f"a tile must have at most {most} pixels, got {sides[0]} x {sides[1]}")


@cache
def _load_plugins() -> None:
    Image.preinit()
    for name in _PLUGINS:
        with suppress(ImportError):  # which older ones lack
            importlib.import_module(f"PIL.{name}ImagePlugin")


def upright(picture: Image.Image) -> Image.Image:
    """A picture as `rgb` has it, turned and mirrored as its EXIF data says.

    `ImageOps.exif_transpose` writes all EXIF tags anew, and fails where one of them cannot be.
    """
    shown = rgb(picture)
    turn = _TURNS.get(orientation(picture))
    return shown if turn is None else shown.transpose(turn)


def orientation(picture: Image.Image) -> int:
    """How it was held, 1 to 8 (EXIF 2.3); 1 where nothing that can be read tells.

    Raises:
        OSError, SyntaxError: if a PNG breaks off, whose EXIF data may follow its pixels.
    """
    if picture.format == "PNG":
        picture.load()
    try:
        told = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # of damaged EXIF data, which the pixels do not need; Pillow throws many kinds
        return 1
    return told if isinstance(told, int) and told in _TURNS else 1


def rgb(image: Image.Image) -> Image.Image:
    """A picture or a frame of any mode as 8-bit RGB; what is transparent lies on white.

    Raises:
        ValueError: for numbers whose range nothing tells: of 32 bits or floating point, unless they are those of 16
            bits, or of 8.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBa", "RGBA"):
        return _on_white(image)
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _on_white(image: Image.Image) -> Image.Image:
    """In strips: the whole of it would be in memory four times."""
    out, rows = Image.new("RGB", image.size), max(1, 2**20 // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        out.paste(
            Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top)
        )
    return out


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of more bits, in strips: as doubles it would take eight times its own memory."""
    whole, rows = np.asarray(image), max(1, 2**20 // image.width)
    least, most = whole.min(initial=0), whole.max(initial=0)
    if image.mode == "F":
        if not (least >= 0 and 1 < most <= 255) and whole.any():
            raise ValueError(
                f"values of a floating-point picture must lie between 0 and 255, got {least:g} to {most:g}: which of "
                "them is white, no one says"
            )
        divisor = 1.0
    elif least < 0 or most > 65535:
        raise ValueError(f"values of a grey picture must be of 8 or 16 bits, got {least} to {most}")
    else:  # Pillow may hold 16 bits in 32, but a TIFF that has 32 may hold 8
        divisor = 1.0 if (image.mode, image.format) == ("I", "TIFF") and most <= 255 else 257.0
    out = np.empty(whole.shape, np.uint8)
    clear = image.info.get("transparency")  # a value of the 16 bits
    for top in range(0, len(whole), rows):
        part = whole[top : top + rows]
        out[top : top + rows] = (part.astype(np.float64) / divisor).round().clip(0, 255)
        if isinstance(clear, int):
            out[top : top + rows][part == clear] = 255
    return Image.fromarray(out)


def _stream(source: Path | io.BytesIO) -> AbstractContextManager[io.BufferedIOBase]:
    return open_regular(source) if isinstance(source, Path) else nullcontext(source)
