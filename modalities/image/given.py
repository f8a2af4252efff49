"""Editing of given images: inpainting, outpainting, and changing all of an image at a strength."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image as Pillow

from ditmoe.given import Given, Parts
from modalities.image.data.pictures import fitted, stretched
from modalities.latent.given import hole_of, known_cells, marks_of, read_picture, shown
from modalities.latent.packing import native_size

if TYPE_CHECKING:
    from modalities.image.adapter import Image

WORDS: Mapping[str, str] = {"mask": "a picture, white where the given one is to be drawn anew"}

MIXED = 16
"""Grey level of a resized mask from which a pixel overlaps enough with the masked area to be generated."""

GREY = 128
"""Grey level that shows the area to be generated in previews of the input."""


def parts(
    modality: "Image", given: Any, shape: Mapping[str, Any], strength: float | None, mask: Any
) -> Parts:
    """Implements `Image.parts`."""
    picture, name = read_picture(given), shown(given)
    unit, told = modality.unit, list[str]()
    size = tuple(shape.get("size") or (modality.size if not modality.rows else picture.shape[:2]))
    own = picture.shape[:2]
    modality.check_whole_tokens(shape.get("size") or modality.size)
    bring = resized
    if modality.rows and "size" not in shape:
        size, bring = native_size(own, unit, modality.size[0] * modality.size[1]), squeezed
    outside = "size" in shape and own != size and own[0] <= size[0] and own[1] <= size[1]
    if own != size and not outside:
        picture = bring(picture, size)
        told.append(f"{name} is {own[0]} x {own[1]}: brought to {size[0]} x {size[1]}")
    known = np.zeros(size, bool)
    top, left = (
        (whole - part) // 2 // u * u for whole, part, u in zip(size, picture.shape[:2], unit, strict=True)
    )
    inside = np.s_[top : top + picture.shape[0], left : left + picture.shape[1]]
    if mask is not None:
        known[inside] = ~hole_in(mask, own, picture.shape[:2], bring, strength)
    elif outside or strength is None:
        known[inside] = True
    if known.all():
        raise ValueError(
            f"{name} leaves nothing to draw: say mask=hole.png, a larger size=[height,width], or strength=0.6"
        )
    canvas = np.broadcast_to(picture.mean((0, 1)).round().astype(np.uint8), (*size, 3)).copy()
    canvas[inside] = picture
    if strength is None:
        canvas[~known] = canvas[known].mean(0).round() if known.any() else 128
    x = modality.encode(canvas[None]).cpu()
    marks = marks_of(modality.tokens(8), x, known_cells(known, x.shape[2:]))
    if known.any() and marks.weakness:
        told.append(f"no token of {unit[0]} x {unit[1]} pixels is given whole: {marks.weakness}")

    def finish(samples: UInt8[np.ndarray, "S H W 3"]) -> UInt8[np.ndarray, "S H W 3"]:
        samples = samples.copy()
        samples[:, known] = canvas[known]
        return samples

    start = 1.0 if strength is None else strength
    seen = canvas.copy()
    if strength is None:
        seen[~known] = GREY
    return Parts(Given(x, *marks, strength=start), finish, told, shown=seen[None])


def hole_in(
    mask: Any,
    own: tuple[int, int],
    size: tuple[int, int],
    bring: Callable[[np.ndarray, tuple[int, int]], np.ndarray],
    strength: float | None,
) -> Bool[np.ndarray, "H W"]:
    """The area to generate in a resized image, from a mask of the original or of the resized size."""
    picture = read_picture(mask)
    if own == size or picture.shape[:2] != own:
        return hole_of(picture, size, mask, strength)
    whole = np.repeat(hole_of(picture, own, mask, strength)[..., None], 3, -1) * np.uint8(255)
    return bring(whole, size)[..., 0] > MIXED


def resized(picture: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Resize and centre-crop, as in training at one size."""
    return fitted(Pillow.fromarray(picture), size)


def squeezed(picture: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Resize without cropping, as in training at native sizes."""
    return stretched(Pillow.fromarray(picture), size)
