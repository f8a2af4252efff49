"""Decodes untrusted image files: only regular files of known formats, within limits on size."""

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
from modalities.shared.decoder_limits import LARGE, TooLargeError, bound_tags, check_cost
from modalities.shared.salvage import salvaged

T = TypeVar("T")
KINDS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Image formats that are read; Pillow knows more, some of which start other programs (EPS)."""
BY_SUFFIX = {".tga": "TGA"}
"""Formats that their first bytes do not identify: tried only for files with this suffix."""
STILLS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx", ".tga",
)  # fmt: skip
"""File suffixes of these formats; a .gif or .apng is an image or a clip."""
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".jp2", ".j2k", ".jpx")
"""Suffixes of lossy formats."""
MAX_PIXELS = 89_478_485
"""Default limit of an image: a quarter of a gigabyte as RGB, Pillow's own threshold for a warning."""
HEAVY = {"WEBP": 2, "AVIF": 3, "JPEG2000": 4}
"""Formats whose decoders hold an image several times (up to 40 bytes a pixel): the divisor of their limit."""
_PLUGINS = ("Tiff", "WebP", "Mpo", "Avif", "Jpeg2K", "Tga")  # the others Pillow loads by itself
WIDE = 16
"""Ratio of a side after resizing to its target length beyond which the ends are cut off before resizing."""
_ONE_AT_A_TIME = Lock()
LONGEST_SIDE = 2**20
"""Pixels of a side; decoders also allocate memory per row."""

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
HEIC = re.compile(rb".{4}ftyp(?:hei[cmsx]|mif1)", re.DOTALL)
"""Signature of HEIC, the still image format of phones."""
_UNREAD = {
    "HEIC": HEIC,
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", re.DOTALL),
}
"""Signatures of common image formats that Pillow does not read."""


def decoded(
    source: Path | io.BytesIO,
    make: Callable[[Image.Image], T],
    max_pixels: int = MAX_PIXELS,
    kinds: tuple[str, ...] = KINDS,
    keep: Callable[[str], object] | None = None,
) -> T:
    """Open an image and apply `make` to it, its header read and its pixels not yet.

    Args:
        max_pixels: limit in place of Pillow's global one, which stays as it is.
        keep: if given, the decodable part of a truncated image is used, and this is called with its description.

    Raises:
        OSError, ValueError: if it is not a regular file, not an image, or too large; Pillow raises others.
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
            check_cost(picture, stream)
            with _ONE_AT_A_TIME if pixels > LARGE else nullcontext():
                if keep is None:
                    return make(picture)
                kept, what = salvaged(picture, stream)
                made = make(kept)
                if what:
                    keep(what)
                return made


def _open(stream: io.BufferedIOBase, kinds: tuple[str, ...]) -> Image.Image:
    """Open an image of one of these formats, reading only its header; `Image.open` without its pixel limit.

    Raises:
        UnidentifiedImageError: if it has another format.
    """
    start = stream.tell()
    prefix = stream.read(16)
    for kind in kinds:
        if kind not in Image.OPEN:
            continue
        make, accept = Image.OPEN[kind]
        known = not accept or accept(prefix)
        if not known or isinstance(known, str):  # a string says which library is missing
            continue
        stream.seek(start)
        try:
            return make(stream, "")  # type: ignore[arg-type]  # has all of IO[bytes] that is needed
        # Plugins raise these for another format.
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    raise UnidentifiedImageError("its kind is not known, or its header is damaged")


def unknown(source: Path | io.BytesIO) -> str:
    """Why an image has no supported format, by its first bytes, and what to convert it to."""
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
    """The used part of a side resized by `scale` and cropped to `wanted`: all, or its middle for extreme ratios.

    A strip of one row would otherwise become many times longer when it is enlarged.
    """
    keep = min(length, math.ceil(WIDE * wanted / scale))
    keep += (length - keep) % 2  # the middle stays where it is
    return slice((length - keep) // 2, (length + keep) // 2)


@cache
def _load_plugins() -> None:
    Image.preinit()
    for name in _PLUGINS:
        with suppress(ImportError):  # missing in older versions of Pillow
            importlib.import_module(f"PIL.{name}ImagePlugin")
    bound_tags()


def upright(picture: Image.Image) -> Image.Image:
    """Convert an image by `rgb`, rotated and mirrored by its EXIF orientation.

    `ImageOps.exif_transpose` also rewrites all EXIF tags, and fails if one of them is invalid.
    """
    shown = rgb(picture)
    turn = _TURNS.get(orientation(picture))
    return shown if turn is None else shown.transpose(turn)


def orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 to 8 (EXIF 2.3); 1 if it is missing or unreadable.

    Raises:
        OSError, SyntaxError: if a PNG is truncated, since its EXIF data may follow the pixels.
    """
    if picture.format == "PNG":
        picture.load()
    try:
        told = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data, not needed for the pixels; Pillow raises many kinds
        return 1
    return told if isinstance(told, int) and told in _TURNS else 1


def rgb(image: Image.Image) -> Image.Image:
    """Convert an image or frame of any mode to 8-bit RGB; transparent areas become white.

    Raises:
        ValueError: if the value range is unknown: 32-bit or floating point, unless the values are within 16 or 8 bits.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBa", "RGBA"):
        return _on_white(image)
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy it


def _on_white(image: Image.Image) -> Image.Image:
    """Composite on white, in strips: the whole image would be in memory four times."""
    out, rows = Image.new("RGB", image.size), max(1, 2**20 // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        out.paste(
            Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top)
        )
    return out


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert a grey image of more bits to 8, in strips: as doubles it would take eight times its memory."""
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
    else:  # Pillow may store 16 bits in 32, and a 32-bit TIFF may use only 8
        divisor = 1.0 if (image.mode, image.format) == ("I", "TIFF") and most <= 255 else 257.0
    out = np.empty(whole.shape, np.uint8)
    clear = image.info.get("transparency")  # a 16-bit value
    for top in range(0, len(whole), rows):
        part = whole[top : top + rows]
        out[top : top + rows] = (part.astype(np.float64) / divisor).round().clip(0, 255)
        if isinstance(clear, int):
            out[top : top + rows][part == clear] = 255
    return Image.fromarray(out)


def _stream(source: Path | io.BytesIO) -> AbstractContextManager[io.BufferedIOBase]:
    return open_regular(source) if isinstance(source, Path) else nullcontext(source)
