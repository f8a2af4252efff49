"""Picture files of any kind, as RGB of a wanted size."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
Size = tuple[int, int]


def open_picture(source: Path | BytesIO, name: str | None = None) -> Image.Image:
    """Decode a picture to 8-bit RGB, upright by its EXIF data.

    Greys become equal channels, palettes their colours, 16 bits 8; what is transparent lies on white; of an animation
    the first frame is taken.

    Args:
        source: a file, or its bytes.
        name: for errors; the file's by default.

    Raises:
        ValueError: one line that names the picture, if it is truncated, too large or none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # about odd metadata
            with Image.open(source) as opened:
                opened.load()
                return _rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise ValueError(f"{name or source} is no readable picture: its kind is not known") from error
    except Exception as error:  # decoders fail in many ways
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"{name or source} is no readable picture: {reason[:160]}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        if image.mode != "F":  # 16 bits, which Pillow may hold in 32
            values = values / 257 if values.max(initial=0) <= 65535 else values / (values.max() / 255)
        elif values.min(initial=0) < 0 or values.max(initial=0) > 255:
            raise ValueError("values of a floating-point picture must lie between 0 and 255")
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBa", "RGBA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fitted(image: Image.Image, size: Size) -> UInt8[np.ndarray, "H W 3"]:
    """Shrink or enlarge to cover `size` = (H, W), and cut the middle out: ADM's preparation, for any shape.

    Halved by area as long as it stays twice as large, then bicubic (guided-diffusion, arXiv 2105.05233).
    """
    height, width = size
    while min(image.height // height, image.width // width) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    covering = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if covering != image.size:
        image = image.resize(covering, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def stretched(image: Image.Image, size: Size) -> UInt8[np.ndarray, "H W 3"]:
    """Resize to `size` = (H, W), all of it, as `fitted` does."""
    height, width = size
    while min(image.height // height, image.width // width) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def size_of(source: Path | BytesIO) -> Size:
    """(H, W) of a picture, upright, from its header.

    Raises:
        ValueError: one line, if it has none.
    """
    try:
        with Image.open(source) as opened:
            turned = opened.getexif().get(0x0112, 1) >= 5
            return (opened.width, opened.height) if turned else (opened.height, opened.width)
    except Exception as error:
        raise ValueError(f"{source} is no readable picture") from error


def read_pictures(folder: Path) -> tuple[UInt8[np.ndarray, "S H W 3"], list[str], list[str]]:
    """All pictures below a folder, which must be of one size, in the order of their paths; their names, and what
    was unreadable.

    Raises:
        ValueError: if there are none, or their sizes differ.
    """
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.name != "samples.png")
    images: list[np.ndarray] = []
    names: list[str] = []
    unreadable: list[str] = []
    for file in files:
        try:
            image = np.asarray(open_picture(file))
        except ValueError as error:
            unreadable.append(str(error))
            continue
        if images and image.shape != images[0].shape:
            one, other = ("{1} x {0}".format(*of.shape) for of in (images[0], image))
            raise ValueError(
                f"pictures to be measured must be of one size, got {names[0]} of {one} and {file.name} of {other}"
            )
        images.append(image)
        names.append(file.name)
    if not images:
        raise ValueError(f"{folder} must hold readable pictures, got none in {len(files)} files")
    return np.stack(images), names, unreadable
