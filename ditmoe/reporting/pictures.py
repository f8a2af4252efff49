"""Samples and images encoded for a page, as data URLs and packed numbers of bounded size."""

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ditmoe.modality import Shown
from ditmoe.outside import printable, read_regular

LARGEST_SIDE, LARGEST_FRAME = 512, 192
"""Largest side of an image and of a video frame, in pixels."""
MOST_FRAMES, MOST_POINTS = 64, 4096
SMALL = 64_000
"""Bytes of a PNG above which a JPEG is used if it is smaller."""
LARGEST_FILE, MOST_PIXELS = 2**24, 2**24


def packed(shown: Shown) -> dict[str, Any]:
    """Encode a sample.

    Raises:
        ValueError: if it has no picture, frames or points.
    """
    if shown.picture is not None:
        return {"kind": "picture", **picture(shown.picture, LARGEST_SIDE)}
    if shown.frames is not None:
        return clip(shown.frames, shown.rate)
    if shown.points is not None:
        return cloud(shown.points, shown.colors)
    raise ValueError("a sample must be a picture, frames or points")


def picture(image: UInt8[np.ndarray, "H W 3"], side: int) -> dict[str, Any]:
    """Encode an image, scaled down if a side is longer than `side` pixels."""
    drawn = Image.fromarray(image)
    drawn.thumbnail((side, side))
    return {"src": _address(drawn), "width": drawn.width, "height": drawn.height}


def clip(frames: UInt8[np.ndarray, "T H W 3"], rate: float) -> dict[str, Any]:
    """Encode a video as one image of its frames side by side, which a canvas plays; at most `MOST_FRAMES` frames."""
    if not frames.size:
        raise ValueError("a clip must have frames")
    if len(frames) > MOST_FRAMES:
        taken = np.linspace(0, len(frames) - 1, MOST_FRAMES).round().astype(int)
        frames, rate = frames[taken], rate * MOST_FRAMES / len(frames)
    drawn = [Image.fromarray(frame) for frame in frames]
    for frame in drawn:
        frame.thumbnail((LARGEST_FRAME, LARGEST_FRAME))
    width, height = drawn[0].size
    columns = math.ceil(math.sqrt(len(drawn)))
    sheet = Image.new("RGB", (columns * width, -(-len(drawn) // columns) * height))
    for number, frame in enumerate(drawn):
        sheet.paste(frame, (number % columns * width, number // columns * height))
    size = {"width": width, "height": height, "frames": len(drawn), "columns": columns}
    return {"kind": "clip", "src": _address(sheet), **size, "rate": round(min(60.0, max(0.5, rate)), 3)}


def cloud(points: Float[np.ndarray, "N 3"], colors: UInt8[np.ndarray, "N 3"] | None = None) -> dict[str, Any]:
    """Encode a point cloud as 16-bit integers: coordinate = low + number * step, with one step for all axes."""
    kept = np.flatnonzero(np.isfinite(points).all(1))
    if not len(kept):
        raise ValueError("a cloud must have finite points")
    if len(kept) > MOST_POINTS:
        kept = kept[np.linspace(0, len(kept) - 1, MOST_POINTS).round().astype(int)]
    places = points[kept].astype(np.float64)
    low = places.min(0)
    step = float((places.max(0) - low).max()) / 65535 or 1.0
    if not math.isfinite(step):
        raise ValueError("a cloud must have coordinates whose range is finite in float64")
    numbers = np.round((places - low) / step).clip(0, 65535).astype("<u2")
    form = {"kind": "cloud", "count": len(kept), "of": len(points), "points": _base64(numbers.tobytes())}
    form |= {"low": [float(v) for v in low], "step": step}
    return form if colors is None else form | {"colors": _base64(colors[kept].tobytes())}


def held(shown: Shown, given: Shown | None) -> int:
    """How many of the points that `packed` keeps were given; given points are the first points of a sample."""
    if given is None or given.points is None or shown.points is None:
        return 0
    num = len(given.points)
    if num > len(shown.points) or not np.array_equal(given.points, shown.points[:num]):
        return 0
    total = len(shown.points)
    if total <= MOST_POINTS:
        return num
    return int((np.linspace(0, total - 1, MOST_POINTS).round() < num).sum())


def of_file(file: Path, side: int) -> dict[str, Any]:
    """Encode a PNG file written by a command.

    Raises:
        OSError, ValueError: if it cannot be read, or is too large.
    """
    data = read_regular(file, LARGEST_FILE)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"it has more than {MOST_PIXELS} pixels")
            return picture(np.asarray(opened.convert("RGB")), side)
    except Exception as error:  # decoders raise many kinds of errors
        raise ValueError(f"{printable(file)} is no readable picture: {error}") from error


def _address(image: Image.Image) -> str:
    exact = _file(image, "png", optimize=True)
    if len(exact) > SMALL and len(lossy := _file(image, "jpeg", quality=90, subsampling=0)) < len(exact):
        return f"data:image/jpeg;base64,{_base64(lossy)}"
    return f"data:image/png;base64,{_base64(exact)}"


def _file(image: Image.Image, form: str, **options: Any) -> bytes:
    drawn = io.BytesIO()
    image.save(drawn, form, **options)
    return drawn.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
