"""Reads image files of any format as RGB at a given size."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from ditmoe.outside import files_below, is_regular, may_hold, printable
from modalities.shared.decode import MAX_PIXELS, STILLS, decoded, middle, orientation, unknown, upright
from modalities.shared.understood import KIND, Ignored

SUFFIXES = (*STILLS, ".gif", ".apng")
Size = tuple[int, int]
T = TypeVar("T")


def _itself(image: Image.Image) -> Image.Image:
    return image


def open_picture(
    source: Path | BytesIO,
    name: str | None = None,
    make: Callable[[Image.Image], T] = _itself,  # type: ignore[assignment]
    max_pixels: int = MAX_PIXELS,
    keep: Callable[[str], object] | None = None,
) -> T:
    """Decode an image to 8-bit RGB, with its EXIF orientation applied.

    Grey, palette and 16-bit images are converted; transparent areas become white (`decode.rgb`); of an animation the
    first frame is taken.

    Args:
        source: a file, or its bytes.
        name: name in errors; by default the file's.
        make: applied to the image, for example to shrink it: large images are decoded and processed one at a time.
        max_pixels: limit on its pixels.
        keep: if given, truncated images are used as far as they decode, and it is called with a description of the
            decoded part (`salvage.salvaged`).

    Raises:
        ValueError: one line that names the file, if it is truncated, too large, not an image, or not a regular file.
    """

    try:
        return decoded(source, lambda picture: make(upright(picture)), max_pixels, keep=keep)
    except UnidentifiedImageError as error:
        raise ValueError(f"{printable(name or source)} is no readable picture: {unknown(source)}") from error
    except Exception as error:  # decoders fail in many ways
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(
            f"{printable(name or source)} is no readable picture: {printable(reason[:160])}"
        ) from error


def fitted(image: Image.Image, size: Size) -> UInt8[np.ndarray, "H W 3"]:
    """Resize to cover `size` = (H, W), then centre-crop: ADM's preprocessing, for any shape.

    Box-filtered by halves while at least twice as large, then bicubic (guided-diffusion, arXiv 2105.05233).
    """
    height, width = size
    while min(image.height // height, image.width // width) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    rows, columns = middle(image.height, scale, height), middle(image.width, scale, width)
    if (columns.stop - columns.start, rows.stop - rows.start) != image.size:
        image = image.crop((columns.start, rows.start, columns.stop, rows.stop))
    covering = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if covering != image.size:
        image = image.resize(covering, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def stretched(image: Image.Image, size: Size) -> UInt8[np.ndarray, "H W 3"]:
    """Resize to `size` = (H, W) as `fitted` does, but without cropping."""
    height, width = size
    while min(image.height // height, image.width // width) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def size_of(source: Path | BytesIO, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Size:
    """(H, W) of an image from its header, with its EXIF orientation applied.

    Raises:
        ValueError: with one line, if it has none.
    """
    try:
        return decoded(source, _upright_size, max_pixels)
    except Exception as error:
        raise ValueError(f"{printable(name or source)} is no readable picture") from error


def _upright_size(picture: Image.Image) -> Size:
    turned = orientation(picture) >= 5 and picture.format != "TIFF"  # Pillow has swapped a TIFF's size
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def read_pictures(
    folder: Path, ignored: Ignored | None = None
) -> tuple[UInt8[np.ndarray, "S H W 3"], list[str], list[str]]:
    """Read all images below a folder, which must have one size, in the order of their paths; also their names, and
    what was unreadable. Other files are counted in `ignored`.

    Raises:
        ValueError: if there are none, or their sizes differ.
    """
    ignored = Ignored() if ignored is None else ignored
    files = []
    for file in files_below(folder, hidden=True, special=True, skip=ignored.is_hidden):
        if file.suffix.lower() not in SUFFIXES:
            ignored.add(KIND, file.name)
        elif file.name != "samples.png":
            files.append(file)
    images: list[np.ndarray] = []
    names: list[str] = []
    unreadable: list[str] = []
    left = may_hold(sum(file.stat().st_size for file in files if is_regular(file)))
    for file in files:
        try:
            image = open_picture(file, None, np.asarray)
        except ValueError as error:
            unreadable.append(str(error))
            continue
        if images and image.shape != images[0].shape:
            one, other = ("{1} x {0}".format(*of.shape) for of in (images[0], image))
            raise ValueError(
                f"pictures to be measured must be of one size, got {names[0]} of {one} and "
                f"{printable(file.name)} of {other}"
            )
        if (left := left - image.nbytes) < 0:
            raise ValueError(
                f"pictures to be measured must fit into memory: those of {printable(folder)} are far larger than "
                "their files"
            )
        images.append(image)
        names.append(printable(file.name))
    if not images:
        raise ValueError(f"{printable(folder)} must hold readable pictures, got none in {len(files)} files")
    return np.stack(images), names, unreadable
