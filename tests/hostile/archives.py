"""Archives made to do harm: pickles that are programs, tars that claim sizes, small files of much."""

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path

import numpy as np
import torch

from tests.hostile.pictures import Maker, png

# --- pickles


def _program(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def _tensor(shape: tuple[int, ...], length: int) -> bytes:
    sizes = b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in shape) + b"t"
    strides = b"(" + b"K\x00" * len(shape) + b"t"
    storage = (b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
               b"\x8a\x08" + struct.pack("<q", length) + b"tQ")  # fmt: skip
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\x00"
        + sizes
        + strides
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


_TUPLES = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60
"""Tuples of tuples, which take for ever to print, to hash or to compare."""

PICKLES = {
    "bytearray": _program(b"cbuiltins\nbytearray\n\x8a\x08", struct.pack("<q", 2 * 10**9), b"\x85R"),
    "repeat": _program(b"citertools\nrepeat\nK\x01\x8a\x08", struct.pack("<q", 4 * 10**9), b"\x86R"),
    "command": _program(b"cos\nsystem\nX\x0b\0\0\0touch /tmp/x\x85R"),
    "run": _program(b"ctorch.utils.collect_env\nrun\nX\x02\0\0\0ls\x85R"),
    "memo": _program(b"]r\xff\xff\xff\x7f"),
    "expanded": _program(_tensor((10**10, 3), 4)),
    "large storage": _program(_tensor((4,), 10**10)),
    "hash": _program(b"}", b")q\x01", b"h\x01h\x01\x86q\x01" * 60, b"K\x01s"),
    "laughs": _program(b"]q\x01", b"h\x01h\x01h\x01\x87q\x01" * 60),
    "copies": _program(b"ctorch\nSize\nq\x01(", b"K\x01" * 1000, b"tq\x02", b"h\x01h\x02\x85R" * 2000),
    "long": _program(b"\x8b" + struct.pack("<i", 500_000) + b"\x7f" * 500_000),
    "deep": _program(b"(" * 200_000),
    "name": _program(_TUPLES, b"h\x00\x93"),
    "storage": _program(b"(X\x07\0\0\0storagectorch\nFloatStorage\n", _TUPLES, b"X\x03\0\0\0cpuK\x04tQ"),
    "shape": _program(_tensor((1,), 4).replace(b"(\x8a\x08" + struct.pack("<q", 1) + b"t", b"(" + _TUPLES + b"t")),
}  # fmt: skip


def pt(content: bytes) -> Maker:
    def make(place: Path) -> Path:
        with zipfile.ZipFile(place / "a.pt", "w") as archive:
            archive.writestr("a/data.pkl", content)
            archive.writestr("a/data/0", b"\0" * 16)
            archive.writestr("a/version", b"3\n")
        return place / "a.pt"

    return make


def old(place: Path) -> Path:
    """Of before 2020: tuples of tuples are the key of a storage."""
    begin = _program(b"\x8a\x0a", (0x1950A86A20F9469CFC6C).to_bytes(10, "little"))
    rest = [_program(b"M\xe9\x03"), _program(b"}"), _program(b"}"), _program(b"]", _TUPLES, b"a")]
    (place / "a.pt").write_bytes(b"".join([begin, *rest]) + b"\0" * 8)
    return place / "a.pt"


def twice(place: Path) -> Path:
    """A list with one tensor a million times."""
    cloud = torch.zeros(1000, 3)
    torch.save([cloud] * 100_000, place / "a.pt")
    return place / "a.pt"


def overlapping(place: Path) -> Path:
    header = {f"{i}": {"dtype": "U8", "shape": [100_000], "data_offsets": [0, 100_000]} for i in range(5000)}
    text = json.dumps(header).encode()
    (place / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 100_000)
    return place / "a.safetensors"


# --- tars


@contextmanager
def tarred(place: Path) -> Iterator[tarfile.TarFile]:
    with tarfile.open(place / "train-0.tar", "w") as tar:
        for name, content in {"a.png": png(), "a.cls": b"0"}.items():
            add(tar, name, content)
        yield tar


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def large_label(place: Path) -> Path:
    with tarred(place) as tar:
        add(tar, "b.png", png())
        add(tar, "b.cls", b"30000000")
    return place


def sparse(place: Path) -> Path:
    """A member that says it has 12 GB, of which one block is there."""
    with tarred(place) as tar:
        info = tarfile.TarInfo("b.png")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.png",
                            "GNU.sparse.realsize": str(12 * 10**9)}  # fmt: skip
        content = b"1\n0\n512\n".ljust(512, b"\0") + b"\0" * 512
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return place


def _patched(place: Path, name: bytes, size: int, kind: bytes = b"0") -> Path:
    """The size of the last member made another one."""
    info = tarfile.TarInfo(name.decode())
    info.size, info.type = size, kind
    with tarred(place):
        pass
    file = place / "train-0.tar"
    data = file.read_bytes().rstrip(b"\0")
    file.write_bytes(
        data.ljust(-(-len(data) // 512) * 512, b"\0") + info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 512
    )
    return place


def cut_member(place: Path) -> Path:
    return _patched(place, b"b.png", 12 * 10**9)


def long_pax(place: Path) -> Path:
    return _patched(place, b"b", 8 * 10**9, b"x")


def backwards(place: Path) -> Path:
    """A member whose size leads back to itself."""
    return _patched(place, b"b.png", -512)


# --- bombs


def bomb(name: str) -> Maker:
    """A small .npz of 400 MB of zeros."""

    def make(place: Path) -> Path:
        shape = {"mu": (400 * 10**6,), "videos": (2, 66, 1000, 1000, 3)}.get(name, (133, 1000, 1000, 3))
        shape = (100, 1333333, 3) if name == "points" else shape
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        archive = zipfile.ZipFile(place / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        with archive, archive.open(f"{name}.npy", "w") as stream:
            stream.write(head.getvalue())
            for _ in range(400):
                stream.write(bytes(10**6))
        return place / "a.npz"

    return make


def large_pictures(place: Path) -> Path:
    """Two pictures of 21 megapixels of zeros in 130 kB, which as floating-point numbers take gigabytes."""
    np.savez_compressed(place / "a.npz", arr_0=np.zeros((2, 4600, 4600, 3), np.uint8))
    return place / "a.npz"


def common_words(place: Path) -> Path:
    """Words that hold for all members, of which there are many."""
    words = {f"k{number}": "v" for number in range(45_000)}
    with tarfile.open(place / "train-0.tar", "w", format=tarfile.PAX_FORMAT, pax_headers=words) as tar:
        add(tar, "a.png", png())
        for number in range(900):
            tar.addfile(tarfile.TarInfo(f"{number}"))
    return place


def dense_labels(place: Path) -> Path:
    """An archive of 80 kB, whose list of labels has forty million numbers."""
    with zipfile.ZipFile(place / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png())
        archive.writestr("dataset.json", '{"labels":[["a.png",[' + "0," * 40_000_000 + "1]]]}")
    return place


def endless_words(place: Path) -> Path:
    """A member with words of a megabyte, each of which is all that follows."""
    return _with_words(place, b"5 aaa" * 180_000 + b"=")


def endless_digits(place: Path) -> Path:
    """Members whose pieces are looked for among digits, from each of them to the last."""
    return _with_words(place, b"21 GNU.sparse.size=1\n15000 x=" + b"1" * 15_000 + b"\n", 50)


def _with_words(place: Path, words: bytes, times: int = 1) -> Path:
    """Members of a tar, each with such words in front of it."""
    with tarred(place):
        pass
    file = place / "train-0.tar"
    data = file.read_bytes().rstrip(b"\0")
    before, entry = tarfile.TarInfo("b"), tarfile.TarInfo("b.png")
    before.size, before.type = len(words), tarfile.XHDTYPE
    blocks = words.ljust(-(-len(words) // 512) * 512, b"\0")
    member = before.tobuf(tarfile.USTAR_FORMAT) + blocks + entry.tobuf()
    file.write_bytes(data.ljust(-(-len(data) // 512) * 512, b"\0") + times * member + b"\0" * 1024)
    return place


def repeated_labels(place: Path) -> Path:
    """A zip of 400 kB, which names the same list, of 15 MB, five thousand times."""
    with zipfile.ZipFile(place / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png())
        archive.writestr("metadata.jsonl", '{"file_name": "a.png", "label": 1}' + " " * 15_000_000)
        archive.filelist.extend([archive.infolist()[-1]] * 5_000)
    return place


def repeated_bomb(place: Path) -> Path:
    """A zip of a megabyte, which names the same bomb, of 120 MB, ten thousand times."""
    with zipfile.ZipFile(place / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", bytes(120_000_000))
        for number in range(10_000):
            archive.filelist.append(entry := copy(archive.infolist()[0]))
            entry.filename = f"{number}.png"
    return place
