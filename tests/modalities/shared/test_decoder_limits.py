"""What a few bytes of a picture make its decoder copy, repeat or read again is bounded by them."""

import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modalities.image.data.pictures import open_picture
from modalities.shared.decoder_limits import _Bounded
from tests.hostile import pictures


def test_what_a_jpeg_2000_copies_for_each_tile_is_bounded(tmp_path: Path) -> None:
    for side, transform in ((200, 60_000), (255, 100)):
        with pytest.raises(ValueError, match="tiles of a JPEG 2000 must take at most 256 MiB"):
            open_picture(pictures.tiles(tmp_path, side, transform))
    assert open_picture(pictures.tiles(tmp_path, 16, 60_000)).size == (16, 16)


def test_tiles_of_photographs_are_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    for side in (16, 64, 256):
        Image.fromarray(pixels).save(tmp_path / "a.jp2", tile_size=(side, side))
        assert (np.asarray(open_picture(tmp_path / "a.jp2")) == pixels).all()


def test_tags_of_the_same_bytes_take_no_more_than_the_file(tmp_path: Path) -> None:
    file = pictures.tags(tmp_path, 500, 100_000)
    open_picture(file)  # which loads the decoders
    tracemalloc.start()
    try:
        assert open_picture(file).size == (8, 8)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_tags_read_their_stream_twice_at_most() -> None:
    stream = _Bounded(io.BytesIO(bytes(100)))
    for _ in range(2):
        stream.seek(0)
        assert len(stream.read(100)) == 100
    stream.seek(99)
    with pytest.raises(OSError, match="more than the file"):
        stream.read(1)


def test_comments_of_a_plain_ppm_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 1000 comments"):
        open_picture(pictures.comments(tmp_path))
    (tmp_path / "b.ppm").write_text("P3\n# by hand\n1 1 # one pixel\n255\n#red\n255 0 0\n")
    assert np.asarray(open_picture(tmp_path / "b.ppm")).tolist() == [[[255, 0, 0]]]


def test_strips_cover_a_picture_once_for_each_band(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"strips must have at most 32000000 pixels, got 131072000000"):
        open_picture(pictures.repeats(tmp_path))
    assert open_picture(pictures.repeats(tmp_path, 2)).size == (2000, 2000)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_a_tiff_of_any_strips_is_read(mode: str, tmp_path: Path) -> None:
    pixels = Image.effect_noise((40, 30), 90).convert(mode)
    for rows in (1, 7, 30):
        pixels.save(tmp_path / "a.tif", tiffinfo={278: rows})
        assert open_picture(tmp_path / "a.tif").size == (40, 30)


def test_bands_of_a_tiff_may_lie_apart(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(0, 255, (3, 4, 4), np.uint8)
    tags = {256: (4,), 257: (4,), 258: (8, 8, 8), 259: (1,), 262: (2,), 273: tuple(range(206, 254, 8)), 277: (3,),
            278: (2,), 279: (8,) * 6, 284: (2,)}  # fmt: skip
    entries, values, at = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, of in tags.items():
        packed = struct.pack(f"<{len(of)}H", *of)
        if len(packed) > 4:
            packed, values = struct.pack("<I", at + len(values)), values + packed
        entries += struct.pack("<HHI", tag, 3, len(of)) + packed.ljust(4, b"\0")
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values
    (tmp_path / "a.tif").write_bytes(content.ljust(206, b"\0") + bands.tobytes())
    assert (np.asarray(open_picture(tmp_path / "a.tif")) == bands.transpose(1, 2, 0)).all()
