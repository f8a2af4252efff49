"""Optionally salvages truncated images: the upper rows, or the coarse scans of a progressive JPEG."""

import io

import numpy as np
from PIL import Image

KINDS = ("PNG", "JPEG", "MPO", "PPM")
"""Formats stored from top to bottom."""
LEAST = 0.25
"""Least fraction of rows; with less, the image counts as unreadable."""
_SCAN, _END = b"\xff\xda", b"\xff\xd9"


def salvaged(picture: Image.Image, stream: io.BufferedIOBase) -> tuple[Image.Image, str]:
    """Load an open image as far as it decodes; also returns which part that is, "" for all.

    Args:
        stream: the stream it was opened from.

    Raises:
        OSError: Pillow's, if too little of the image decodes, or for another format.
    """
    try:
        picture.load()
    except (OSError, SyntaxError) as error:
        if picture.format not in KINDS or picture.info.get("interlace"):
            raise
        if picture.info.get("progressive"):
            return _coarse(stream, error)
        picture.tile = []  # type: ignore[attr-defined]  # no more will be decoded
        whole = picture.copy()
        # Rows that were not decoded are zero.
        filled = np.any(np.asarray(whole).reshape(whole.height, -1), axis=1)
        rows = whole.height - int(filled[::-1].argmax()) if filled.any() else 0
        if rows < LEAST * whole.height:
            raise
        kept = whole.crop((0, 0, whole.width, rows))
        kept.info = dict(whole.info)
        return kept, f"{rows} of {whole.height} rows"
    return picture, ""


def _coarse(stream: io.BufferedIOBase, error: Exception) -> tuple[Image.Image, str]:
    """A progressive JPEG from its complete scans, at least one."""
    stream.seek(0)
    content = stream.read()
    if content.count(_SCAN) < 2:
        raise error
    picture = Image.open(io.BytesIO(content[: content.rfind(_SCAN)] + _END), formats=["JPEG"])
    picture.load()
    return picture, "its coarse scans"
