"""Which container a file is, by its first bytes, and which FFmpeg may take it for: that one, and no other.

Left to itself FFmpeg looks for the best match anywhere in a file: a transport stream behind eight bytes of an MP4 is
one to it, and was looked at here as an MP4.
"""

from pathlib import Path

from ditmoe.outside import open_regular

MATROSKA, MP4, GIF, AVI = "matroska,webm", "mov", "gif", "avi"
OTHERS = (
    "avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,dv,rm,ivf,yuv4mpegpipe,h264,hevc,m4v,av1,obu,apng,mjpeg"
)
"""FFmpeg's names of containers that are none of these; some AVI begin in other ways."""
_HEAD = 64
_EBML = b"\x1a\x45\xdf\xa3"
_BOXES = frozenset(
    b"ftyp styp moov moof mdat wide free skip pnot udta uuid junk PICT pict prfl sidx ediw emsg".split()
)
"""With one of which a QuickTime film or an MP4 begins."""


def container_of(path: Path) -> str:
    """FFmpeg's names of the container that a file can be.

    Raises:
        OSError, ValueError: if it cannot be read, or is no plain file.
    """
    with open_regular(path) as stream:
        head = stream.read(_HEAD)
    if head.startswith(_EBML):
        return MATROSKA
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return AVI
    return MP4 if head[4:8] in _BOXES else OTHERS
