"""What decodes of a picture that breaks off, for whoever asks for it: its upper rows, or its coarse scans."""

import io

import numpy as np
from PIL import Image

KINDS = ("PNG", "JPEG", "MPO", "PPM")
"""Kinds that are stored from the top to the bottom."""
LEAST = 0.25
"""Of the rows: less is not the picture any more."""
_SCAN, _END = b"\xff\xda", b"\xff\xd9"


def salvaged(picture: Image.Image, stream: io.BufferedIOBase) -> tuple[Image.Image, str]:
    """Load an open picture as far as it decodes; and what there is of it, "" for all.

    Args:
        stream: that it was opened from.

    Raises:
        OSError: Pillow's, of a picture of which too little decodes, or of another kind.
    """
    try:
        picture.load()
    except (OSError, SyntaxError) as error:
        if picture.format not in KINDS or picture.info.get("interlace"):
            raise
        if picture.info.get("progressive"):
            return _coarse(stream, error)
        picture.tile = []  # type: ignore[attr-defined]  # what was decoded is all that there will be
        whole = picture.copy()
        # Rows that no one wrote are zero.
        filled = np.any(np.asarray(whole).reshape(whole.height, -1), axis=1)
        rows = whole.height - int(filled[::-1].argmax()) if filled.any() else 0
        if rows < LEAST * whole.height:
            raise
        kept = whole.crop((0, 0, whole.width, rows))
        kept.info = dict(whole.info)
        return kept, f"{rows} of {whole.height} rows"
    return picture, ""


def _coarse(stream: io.BufferedIOBase, error: Exception) -> tuple[Image.Image, str]:
    """A progressive JPEG of its whole scans, of which there must be one."""
    stream.seek(0)
    content = stream.read()
    if content.count(_SCAN) < 2:
        raise error
    picture = Image.open(io.BytesIO(content[: content.rfind(_SCAN)] + _END), formats=["JPEG"])
    picture.load()
    return picture, "its coarse scans"
