"""Pictures made to do harm: of more pixels than a machine holds, of programs, without end."""

import base64
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Maker = Callable[[Path], Path]


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _zeros(width: int, height: int, row: int, depth: int, colours: int = 0, level: int = 9) -> bytes:
    """A PNG of zeros alone: `row` bytes for each row, of a bit depth and a colour type of the format."""
    packer, left, pieces = zlib.compressobj(level), row * height, []
    while left:
        pieces.append(packer.compress(bytes(min(left, 2**20))))
        left -= min(left, 2**20)
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    rows = _chunk(b"IDAT", b"".join(pieces) + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + head + rows + _chunk(b"IEND", b"")


def deep_png(place: Path) -> Path:
    """9400 x 9400 of 16 bits, black: 770 kB."""
    (place / "a.png").write_bytes(_zeros(9400, 9400, 1 + 2 * 9400, depth=16, level=1))
    return place / "a.png"


def clear_png(place: Path) -> Path:
    """9400 x 9400 of nothing, transparent: 340 kB."""
    (place / "a.png").write_bytes(_zeros(9400, 9400, 1 + 4 * 9400, depth=8, colours=6))
    return place / "a.png"


def wide(content: str) -> Maker:
    """88 megapixels of one colour, which their decoder holds several times over."""

    def make(place: Path) -> Path:
        (place / "a.png").write_bytes(zlib.decompress(base64.b85decode(content)))
        return place / "a.png"

    return make


WEBP = "c-jl{baRtpU|<M$bqWXzu<+pnvh}w=(dA?p5d6#U;_{yv0D`^<W&"
JPEG2000 = (
    "c-muNVBpCLP*C9IYUg5LU=T?wsVvAUFj4@r8KAT-kj?<oVwo8!MGOooJHVKkogJixfj>Dvr-%{E6kuRr@c}AM{_p=kkU<|L1XT<NXnbaNMn("
    "wwAH=`|6kudvWnp1p{2#+0?BL+x5rB;Tr!c58Fgh2dCYGe8C?r)X_!p$+c?Gz-E0m=c6=&w>DH!RQ>Y4nXz`zAI`zX+y$-n<G#vjlI6aO8wf3"
    "VgwtbZW-hiQL9I2!SR3#<sJ0?Yyvf0!5q147pSuYcK@P)`gi>hb^jL9C<h?0TYDHS5-ohTCYk(KFl{P{IG305Sg}!~"
)


def wide_gif(place: Path) -> Path:
    data = io.BytesIO()
    Image.new("P", (4, 4)).save(data, "GIF")
    content = bytearray(data.getvalue())
    content[6:10] = b"\xff" * 4
    (place / "a.gif").write_bytes(content)
    return place / "a.gif"


def postscript(place: Path) -> Path:
    (place / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    return place / "a.png"


def scans(place: Path) -> Path:
    """The last scan of a progressive JPEG, a hundred bytes that go over 88 megapixels, thousands of times."""
    data = io.BytesIO()
    Image.new("L", (9400, 9400)).save(data, "JPEG", progressive=True, quality=10)
    content = data.getvalue()[:-2]
    last = content[content.rindex(b"\xff\xc4") :]
    (place / "a.jpg").write_bytes(content + last * 4000 + b"\xff\xd9")
    return place / "a.jpg"


def flat(place: Path) -> Path:
    """Twenty pictures of 64 megapixels in black and white, 8 kB each."""
    content = _zeros(8000, 8000, 1001, depth=1)
    for number in range(20):
        (place / f"{number}.png").write_bytes(content)
    return place


def frames(place: Path) -> Path:
    folder = place / "clip"
    folder.mkdir()
    (folder / "00.png").write_bytes(png((5000, 6000)))
    for number in range(1, 20):
        os.link(folder / "00.png", folder / f"{number:02d}.png")
    return folder


def tall(place: Path) -> Path:
    """88 million rows of one pixel, each of which has memory of its own."""
    (place / "a.png").write_bytes(_zeros(1, 88 * 10**6, 2, depth=1))
    return place / "a.png"


def blocks(place: Path) -> Path:
    """A JPEG 2000 of 500 bytes, that says it has four million blocks."""
    data = io.BytesIO()
    Image.new("RGB", (64, 64)).save(data, "JPEG2000", codeblock_size=(4, 4))
    content = data.getvalue()
    size = struct.pack(">II", 4600, 4600)
    at = content.index(b"\xff\x51") + 6
    content = content[:at] + size + content[at + 8 : at + 16] + size + content[at + 24 :]
    at = content.index(b"ihdr") + 4
    (place / "a.jp2").write_bytes(content[:at] + size + content[at + 8 :])
    return place / "a.jp2"


def tile(place: Path) -> Path:
    """A TIFF of 64 pixels in a tile of two thousand million."""
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 46_000, 323: 46_000, 324: 400, 325: 1000}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries
    (place / "a.tif").write_bytes(content.ljust(400, b"\0") + zlib.compress(bytes(10**6)))
    return place / "a.tif"


def tiles(place: Path, side: int = 200, transform: int = 60_000) -> Path:
    """A JPEG 2000 of a tile for each pixel, for each of which its decoder copies a transform of 60 kB."""
    data = io.BytesIO()
    Image.new("RGB", (side, side)).save(data, "JPEG2000")
    content = data.getvalue()
    at = content.index(b"\xff\x51")
    end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    sizes = content[at : at + 22] + struct.pack(">II", 1, 1) + content[at + 30 : end]
    matrix = b"\xff\x74" + struct.pack(">4H", transform + 8, 0, 0, 0) + bytes(transform)
    begin = content.index(b"jp2c") - 4
    (place / "a.jp2").write_bytes(
        content[:begin] + bytes(4) + content[begin + 4 : at] + sizes + matrix + content[end:]
    )
    return place / "a.jp2"


def tags(place: Path, number: int = 40_000, size: int = 400_000) -> Path:
    """A PNG whose EXIF has so many tags, all of the same bytes."""
    at = 8 + 2 + 12 * number + 4
    entries = b"".join(struct.pack("<HHII", 1000 + n, 1, size, at) for n in range(number))
    exif = b"II*\0" + struct.pack("<IH", 8, number) + entries + bytes(4 + size)
    content = png()
    (place / "a.png").write_bytes(content[:33] + _chunk(b"eXIf", exif) + content[33:])
    return place / "a.png"


def comments(place: Path, number: int = 300_000) -> Path:
    """A PPM in plain text that consists of comments, each of which takes as long as all behind it."""
    (place / "a.ppm").write_bytes(b"P3\n9000 9000\n255\n" + b"1#\n" * number)
    return place / "a.ppm"


def repeats(place: Path, number: int = 2**16) -> Path:
    """A TIFF of so many strips, each half of the same image of 4 megapixels in black and white."""
    side = 2000
    half = side // 8 * side // 2
    tags = {256: side, 257: side, 258: 1, 259: 1, 262: 1, 273: 122 + half, 277: 1, 278: side // 2, 279: half}
    entries = b"".join(
        struct.pack("<HHII", tag, 4, number if tag == 273 else 1, value) for tag, value in tags.items()
    )
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4 + half)
    (place / "a.tif").write_bytes(content + struct.pack("<I", 122) * number)
    return place / "a.tif"
