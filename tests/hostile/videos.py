"""Videos, and pictures that are as long as one row or column."""

import io
import struct
import zlib
from pathlib import Path

import av
from PIL import Image


def gif(width: int, height: int, frames: int = 1) -> bytes:
    """Black frames, each but the first of one new pixel."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\x08\x01\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return head + frame * frames + b";"


def _clip(place: Path, content: bytes) -> Path:
    (place / "train" / "a").mkdir(parents=True)
    (place / "train" / "a" / "a.gif").write_bytes(content)
    return place


def still(place: Path) -> Path:
    """A frame of 8K that is held for the length of a clip."""
    return _clip(place, gif(8192, 4600))


def strip(place: Path) -> Path:
    """A frame of one row: as high as others it would be 16 million pixels wide."""
    return _clip(place, gif(65535, 1))


def strips(place: Path) -> Path:
    """Pictures of one row and of one column."""
    (place / "a").mkdir()
    Image.new("L", (20_000, 1)).save(place / "a" / "a.png")
    Image.new("L", (1, 20_000)).save(place / "a" / "b.png")
    return place


def grown(place: Path) -> Path:
    """A small frame, which tells the size, and large ones."""
    data = io.BytesIO(), io.BytesIO()
    for stream, size in zip(data, ((64, 64), (8192, 4600)), strict=True):
        Image.new("L", size).save(stream, "JPEG", progressive=True, quality=10)
    (place / "a.mjpeg").write_bytes(data[0].getvalue() + 20 * data[1].getvalue())
    return place / "a.mjpeg"


def counted(place: Path) -> Path:
    """An MP4 with a fragment of 67 million samples in 100 bytes."""
    path = place / "a.mp4"
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", 25, width=64, height=64, pix_fmt="yuv420p")
        container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode())
    header, run = _box(b"tfhd", 0x020038, 1, 1, 1, 0x2000000), _box(b"trun", 1, 2**26, 200)
    with open(path, "ab") as file:
        file.write(_box(b"moof", _box(b"mfhd", 0, 9), _box(b"traf", header, _box(b"tfdt", 0, 5000), run)))
        file.write(_box(b"mdat", bytes(100)))
    return path


def numbered(place: Path, tracks: int, samples: int, cuts: int) -> Path:
    """An MP4 of tracks that each count so many samples, of a byte each, none of which is there."""
    turn = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    kind = _box(
        b"jpeg", bytes(7) + b"\1" + bytes(16) + struct.pack(">HH", 64, 64) + bytes(14) + b"\1" + bytes(35)
    )
    table = (
        _box(b"stsd", 0, 1, kind),
        _box(b"stts", 0, 1, samples, 1),
        _box(b"stsc", 0, 1, 1, samples, 1),
        _box(b"stsz", 0, 1, samples),
        _box(b"stco", 0, 1, 48),
    )
    media = (
        _box(b"mdhd", bytes(12), 25, samples, 0x55C40000),
        _box(b"hdlr", bytes(8) + b"vide" + bytes(13)),
        _box(b"minf", _box(b"dinf", _box(b"dref", 0, 1, _box(b"url ", 1))), _box(b"stbl", *table)),
    )
    track = (
        _box(b"tkhd", 7, bytes(8), 1, 0, samples, bytes(16), turn, 64 << 16, 64 << 16),
        _box(b"edts", _box(b"elst", 0, cuts, *[samples & 2**31 - 1, 0, 0x10000] * cuts)),
        _box(b"mdia", *media),
    )
    head = _box(b"mvhd", bytes(12), 25, 1, 0x10000, bytes(12), turn, bytes(24), 2)
    path = place / "numbered.mp4"
    path.write_bytes(
        _box(b"ftyp", b"isom")
        + _box(b"mdat", bytes(64))
        + _box(b"moov", head, *[_box(b"trak", *track)] * tracks)
    )
    return path


def tagged(place: Path, number: int = 20_000) -> Path:
    """An MP4 with so many tags, each of which FFmpeg compares with all those before."""
    path, data = place / "a.mp4", _one_frame()
    keys = [_box(b"mdta", b"%d" % n) for n in range(number)]
    tags = [_box(struct.pack(">I", n + 1), _box(b"data", 1, 0, b"v")) for n in range(number)]
    about = (
        _box(b"hdlr", bytes(8) + b"mdta" + bytes(13)),
        _box(b"keys", 0, number, *keys),
        _box(b"ilst", *tags),
    )
    path.write_bytes(_with_box(data, b"moov", _box(b"meta", *about)))
    return path


def _one_frame() -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", "mp4") as container:
        video = container.add_stream("mpeg4", 25, width=64, height=64, pix_fmt="yuv420p")
        container.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(video.encode())
    return stream.getvalue()


def _with_box(data: bytes, kind: bytes, more: bytes) -> bytes:
    """An MP4's bytes with more in its box of this kind, of which the boxes around it tell nothing."""
    begin = data.index(kind) - 4
    (size,) = struct.unpack_from(">I", data, begin)
    return data[:begin] + _box(kind, data[begin + 8 : begin + size], more) + data[begin + size :]


def chaptered(place: Path, chapters: int) -> Path:
    """An MP4 with a track of so many thousand chapters, to which its clip refers twice: FFmpeg compares them all."""
    path, data = place / "chaptered.mp4", _one_frame()
    begin, end = (data.index(name) - 4 for name in (b"moov", b"udta"))
    turn = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    table = (
        _box(b"stsd", 0, 1, _box(b"text", bytes(7) + b"\1" + bytes(43))),
        _box(b"stts", 0, 1, 1000 * chapters, 1),
        _box(b"stsc", 0, 1, 1, 1000, 1),
        _box(b"stsz", 0, 2, 1000 * chapters),
        _box(b"stco", 0, chapters, *[begin + 8] * chapters),
    )
    media = (
        _box(b"mdhd", bytes(12), 25, 1000 * chapters, 0x55C40000),
        _box(b"hdlr", bytes(8) + b"text" + bytes(13)),
        _box(b"minf", _box(b"dinf", _box(b"dref", 0, 1, _box(b"url ", 1))), _box(b"stbl", *table)),
    )
    other = _box(
        b"trak",
        _box(b"tkhd", 7, bytes(8), 2, 0, 1000 * chapters, bytes(16), turn, 0, 0),
        _box(b"mdia", *media),
    )
    clip = _with_box(data[begin + 8 : end], b"trak", _box(b"tref", _box(b"chap", 2, 2)))
    path.write_bytes(data[:begin] + _box(b"free", bytes(2000)) + _box(b"moov", clip, other, data[end:]))
    return path


def fragmented(place: Path, tracks: int, fragments: int, version: int | None = None) -> Path:
    """An MP4 of so many tracks and fragments, all of which are empty.

    Args:
        version: of an index, in which the fragments are; None: they are in the file.
    """
    path = place / "fragmented.mp4"
    movie = _box(b"moov", *tracks * [_box(b"trak")])
    about = struct.pack(">B3x", version or 0), 0, 25, bytes(16 if version else 8)
    pieces = fragments * _box(b"moof")
    if version is not None:
        pieces = _box(b"sidx", *about, fragments, fragments * struct.pack(">3I", 1, 1, 0))
    path.write_bytes(_box(b"ftyp", b"isom") + movie + pieces + _box(b"mdat", bytes(8)))
    return path


def overread(place: Path, tracks: int, spare: int = 2**19) -> Path:
    """An MP4 of so many tracks, whose tables go on behind their boxes, all in the same bytes."""
    path = place / "overread.mp4"
    tables = [_box(kind, 0, spare // size - 9) for kind, size in ((b"stss", 4), (b"stps", 4), (b"ctts", 8))]
    tables += [_box(b"sbgp", 0, b"rap ", spare // 8 - 9), _box(b"sgpd", 1 << 24, b"sync", 1, spare - 99)]
    track = _box(b"trak", _box(b"stco", 0, 1, 0), *tables)
    path.write_bytes(
        _with_box(_one_frame(), b"moov", tracks * track) + _box(b"free", b"\0\0\0\1" * (spare // 4))
    )
    return path


def packed(path: Path) -> Path:
    """An MP4 with its header compressed, in place of it."""
    data = path.read_bytes()
    begin = data.index(b"moov") - 4
    (size,) = struct.unpack_from(">I", data, begin)
    movie = data[begin : begin + size]
    content = _box(b"cmvd", size, zlib.compress(movie, 9))
    head = _box(b"moov", _box(b"cmov", _box(b"dcom", b"zlib"), content))
    path.write_bytes(data[:begin] + head + data[begin + size :])
    return path


def endless(place: Path, kind: str, number: int, behind: bool = False) -> Path:
    """A Matroska with so many tags, chapters or cues from the last to the first, each of which FFmpeg compares.

    Args:
        behind: after the frames, where its own index leads, or a search behind damage.
    """
    made: dict[str, tuple[str, str, list[bytes]]] = {
        "tags": ("1254c367", "7373", [_ebml("67c8", _ebml("45a3", b"%d" % n)) for n in range(number)]),
        "chapters": (
            "1043a770",
            "45b9",
            [
                _ebml(
                    "b6", _ebml("73c4", (number + 1 - n).to_bytes(3, "big")), _ebml("91", bytes([0, n % 256]))
                )
                for n in range(number)
            ],
        ),
        "cues": ("1c53bb6b", "", [_cue(number - n) for n in range(number)]),
    }
    outer, inner, entries = made[kind]
    table = _ebml(outer, _ebml(inner, *entries) if inner else b"".join(entries))
    path, stream = place / f"{kind}-{behind}.mkv", io.BytesIO()
    with av.open(stream, "w", "matroska") as container:
        video = container.add_stream("mpeg4", 25, width=64, height=64, pix_fmt="yuv420p")
        container.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(video.encode())
    data = stream.getvalue()
    segment, cluster = data.index(b"\x18\x53\x80\x67"), data.index(b"\x1f\x43\xb6\x75")
    begin = data[:segment] + b"\x18\x53\x80\x67\x01" + b"\xff" * 7 + data[segment + 12 : cluster]
    frames = data[cluster:]
    path.write_bytes(begin + frames + table if behind else begin + table + frames)
    return path


def wordy(place: Path, kind: str, number: int) -> Path:
    """An FLV, AVI or MPEG-TS with so many properties, words or programs, each of which FFmpeg compares."""
    path, stream = place / f"a.{kind}", io.BytesIO()
    with av.open(stream, "w", {"ts": "mpegts"}.get(kind, kind)) as container:
        video = container.add_stream(
            "flv" if kind == "flv" else "mpeg4", 25, width=64, height=64, pix_fmt="yuv420p"
        )
        container.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(video.encode())
    data = stream.getvalue()
    if kind == "flv":
        words = b"".join(b"\0\6%06d\1\1" % n for n in range(number))
        tag = b"\2\0\12onMetaData\10\0\0\0\1" + words + b"\0\0\11"
        size = struct.pack(">I", len(tag))
        head = b"\x12" + size[1:] + bytes(7)
        path.write_bytes(data[:13] + head + tag + struct.pack(">I", len(tag) + 11) + data[13:])
    elif kind == "avi":
        words = b"".join(
            struct.pack(">III", 0x41414141 + n, 0x02000000, 0x61000000)[:10] for n in range(number)
        )
        at = data.index(b"movi") - 8
        path.write_bytes(
            data[:at] + b"LIST" + struct.pack("<I", len(words) + 4) + b"INFO" + words + data[at:]
        )
    else:
        path.write_bytes(data[:376] + b"".join(_programs(n) for n in range(number)) + data[376:])
    return path


def _programs(number: int) -> bytes:
    """A packet of MPEG-TS that announces forty further programs."""
    body = struct.pack(">HHBBB", 0xB000 | 169, 1, 0xC1 | number % 32 << 1, 0, 255)
    body += b"".join(
        struct.pack(">HH", (number * 40 + n) % 65535 + 1, 0xE020 + (number * 40 + n) % 8000)
        for n in range(40)
    )
    section = b"\0" + body
    total = 0xFFFFFFFF
    for byte in section:
        total ^= byte << 24
        for _ in range(8):
            total = (total << 1 ^ (0x04C11DB7 if total >> 31 else 0)) & 0xFFFFFFFF
    packet = b"\x47\x40\0" + bytes([0x10 | number & 15]) + b"\0" + section + struct.pack(">I", total)
    return packet.ljust(188, b"\xff")


def _cue(time: int) -> bytes:
    place = _ebml("b7", _ebml("f7", b"\1"), _ebml("f1", b"\1"))
    return _ebml("bb", _ebml("b3", time.to_bytes(3, "big")), place)


def _ebml(kind: str, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    return (
        bytes.fromhex(kind)
        + (bytes([0x80 | size]) if size < 127 else (size | 1 << 56).to_bytes(8, "big"))
        + content
    )


def _box(kind: bytes, *parts: int | bytes) -> bytes:
    content = b"".join(p if isinstance(p, bytes) else struct.pack(">I", p) for p in parts)
    return struct.pack(">I", 8 + len(content)) + kind + content
