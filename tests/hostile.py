"""Files that someone made to do harm, and who reads them: each is refused in one line, or read for what it is.

A maker writes its files into a folder of its own and gives the path that is then read.
"""

import base64
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from ditmoe.checkpoint import open_file
from modalities.image import Pictures
from modalities.image import adapter as images
from modalities.image import view as picture_view
from modalities.image.data.pictures import open_picture
from modalities.image.metrics.features import read_reference
from modalities.latent import latent_cache
from modalities.pointcloud import Clouds
from modalities.pointcloud.data import formats
from modalities.shared import cache
from modalities.video import Clips
from modalities.video.data import clip_folders
from modalities.video.io.reader import read_clip, read_index

Maker = Callable[[Path], Path]
NAMES = (b"caf\xe9", b"a\nb", b"\x1b[31mred", "\u202egnp".encode(), b"'; rm -rf ~")


def hostile() -> dict[str, list[tuple[Maker, Callable[[Path], Any]]]]:
    """By kind."""
    pictures, clouds, clips = _pictures, Clouds, Clips
    return {
        "pickles": [(pt(content), read) for content in PICKLES.values() for read in (formats.read_set, open_file)]
        + [(twice, formats.read_set), (overlapping, open_file)],
        "tars": [(make, pictures) for make in (large_label, sparse, long_pax, cut_member, backwards, common_words)],
        "bombs": [(bomb("points"), formats.read_set), (bomb("arr_0"), images.read_set), (bomb("videos"),
        clip_folders.read_set),
                  (bomb("mu"), read_reference), (bomb("points"), kept)],
        "pixels": [(make, open_picture) for make in (deep_png, wide_gif, postscript, scans, clear_png,
                                                  wide(WEBP), wide(JPEG2000))]
        + [(frames, lambda path: read_clip(path, 0, 20)), (frames, read_index), (flat, images.read_set)],
        "videos": [(grown, lambda path: read_clip(path, 1, 16)), (counted, read_index)]
        + [(make, _clips) for make in (still, strip)] + [(strips, seen)],
        "meshes": [(gltf(tree), lambda path: formats.read_surface(path, 100, 0)) for tree in TREES.values()]
        + [(far_cloud, formats.read_points), (hollow_rows, formats.read_points),
           (materials, lambda path: formats.read_surface(path, 100, 0))]
        + [(besides(hollow), lambda path: formats.read_surface(path, 100, 0)) for hollow in (True, False)]
        + [(text(name, content), lambda path: formats.read_surface(path, 100, 0)) for name, content in TEXTS.items()],
        "labels": [(columns, pictures), (dense_labels, pictures)],
        "pipes": [(pipe("z.png"), pictures), (pipe("z.png"), images.read_set), (pipe("z.png"), seen),
                  (pipe("a/train/z.npy"), lambda path: clouds(path, num_points=8).batch(2, 0, 0)),
                  (pipe("z.npy"), formats.read_set), (pipe("train/a/z.mp4"), lambda path: clips(path).batch(1, 0, 0)),
                  (pipe("z.mp4"), clip_folders.read_set), (pipe("classes.txt", tar=True), pictures),
                  (pipe("latents.json"), lambda path: latent_cache.read_record(path))]
        + [(pipe(f"z.{ending}", alone=True), read) for ending, read in ALONE],
        "endless": [(endless(f"z.{ending}"), read) for ending, read in ALONE],
        "holes": [(hollow(f"z.{ending}"), read) for ending, read in ALONE],
        "links": [(loop, pictures), (loop, images.read_set), (loop, formats.read_set), (loop, clip_folders.read_set)],
        "names": [(named, pictures), (named, images.read_set), (named, formats.read_set), (named,
        clip_folders.read_set)],
    }  # fmt: skip


def kept(path: Path) -> Any:
    return cache.load(path, {"points": ("u1", ("S", "N", 3))})


def seen(path: Path) -> str:
    return picture_view.view([path], path / "view.png")


def _pictures(path: Path) -> Any:
    data = Pictures((8, 8), root=path)
    assert sum(len(data.split(split)) for split in ("train",)) <= 50, "pictures were multiplied"
    return data.batch(2, 0, 0)


def _clips(path: Path) -> Any:
    return Clips(path, (256, 256), frames=33, hold=True).batch(1, 0, 0)


ALONE = [(e, formats.read_points) for e in ("npy", "npz", "ply", "xyz", "pt")] + [
    (e, lambda path: formats.read_surface(path, 9, 0)) for e in ("obj", "glb", "stl")
] + [("png", open_picture), ("npz", images.read_set), ("npz", clip_folders.read_set), ("mp4", read_index),
     ("npz", kept), ("npz", read_reference), ("pt", open_file), ("safetensors", open_file)]  # fmt: skip


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


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
}  # fmt: skip


def pt(content: bytes) -> Maker:
    def make(place: Path) -> Path:
        with zipfile.ZipFile(place / "a.pt", "w") as archive:
            archive.writestr("a/data.pkl", content)
            archive.writestr("a/data/0", b"\0" * 16)
            archive.writestr("a/version", b"3\n")
        return place / "a.pt"

    return make


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
def _tar(place: Path) -> Iterator[tarfile.TarFile]:
    with tarfile.open(place / "train-0.tar", "w") as tar:
        for name, content in {"a.png": png(), "a.cls": b"0"}.items():
            add(tar, name, content)
        yield tar


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def large_label(place: Path) -> Path:
    with _tar(place) as tar:
        add(tar, "b.png", png())
        add(tar, "b.cls", b"30000000")
    return place


def sparse(place: Path) -> Path:
    """A member that says it has 12 GB, of which one block is there."""
    with _tar(place) as tar:
        info = tarfile.TarInfo("b.png")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.png",
                            "GNU.sparse.realsize": str(12 * 10**9)}  # fmt: skip
        content = b"1\n0\n512\n".ljust(512, b"\0") + b"\0" * 512
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return place


def common_words(place: Path) -> Path:
    """Words that hold for all members, of which there are many."""
    words = {f"k{number}": "v" for number in range(45_000)}
    with tarfile.open(place / "train-0.tar", "w", format=tarfile.PAX_FORMAT, pax_headers=words) as tar:
        add(tar, "a.png", png())
        for number in range(900):
            tar.addfile(tarfile.TarInfo(f"{number}"))
    return place


def _patched(place: Path, name: bytes, size: int, kind: bytes = b"0") -> Path:
    """The size of the last member made another one."""
    info = tarfile.TarInfo(name.decode())
    info.size, info.type = size, kind
    with _tar(place):
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


# --- pixels


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(place: Path) -> Path:
    """9400 x 9400 of 16 bits, black: 200 kB."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 2 * 9400)) for _ in range(9400)) + packer.flush()
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 9400, 9400, 16, 0, 0, 0, 0))
    (place / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", rows) + _chunk(b"IEND", b""))
    return place / "a.png"


def clear_png(place: Path) -> Path:
    """9400 x 9400 of nothing, transparent: 340 kB."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 4 * 9400)) for _ in range(9400)) + packer.flush()
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 9400, 9400, 8, 6, 0, 0, 0))
    (place / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", rows) + _chunk(b"IEND", b""))
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
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1001)) for _ in range(8000)) + packer.flush()
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 8000, 8000, 1, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
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


# --- videos


def gif(width: int, height: int) -> bytes:
    """One black frame."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0;"


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


def _box(kind: bytes, *parts: int | bytes) -> bytes:
    content = b"".join(p if isinstance(p, bytes) else struct.pack(">I", p) for p in parts)
    return struct.pack(">I", 8 + len(content)) + kind + content


# --- meshes

_BOX = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}]}  # fmt: skip
_ZEROS = {"componentType": 5126, "type": "VEC3", "count": 10**8}
_POINTS = {"buffers": [{"byteLength": 36, "uri": "data:;base64," + "A" * 48}],
           "bufferViews": [{"buffer": 0, "byteLength": 36}],
           "accessors": [{"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": 3}]}  # fmt: skip
TREES = {
    "escaped": json.dumps({**_BOX, "accessors": [_ZEROS]}).replace('"count"', '"\\u0063ount"'),
    "many zeros": json.dumps({**_BOX, "accessors": [{**_ZEROS, "count": 400}] * 400_0}),
    "shared parts": json.dumps({**_BOX, **_POINTS, "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}] * 5000}],
                                "accessors": [{**_ZEROS, "count": 200_000}]}).ljust(400_000),
    "elsewhere": json.dumps({**_BOX, **_POINTS, "buffers": [{"byteLength": 36, "uri": "../../../../etc/passwd"}]}),
    "endless": json.dumps({**_BOX, **_POINTS, "buffers": [{"byteLength": 36, "uri": "/dev/zero"}]}),
    "chain": json.dumps({**_BOX, **_POINTS, "nodes": [{"children": [i + 1]} for i in range(20_000)] + [{"mesh": 0}]}),
    "circle": json.dumps({**_BOX, **_POINTS, "nodes": [{"children": [1]}, {"children": [0], "mesh": 0}]}),
    "deep": "[" * 100_000,
    "twice below": json.dumps({**_BOX, "nodes": [{"children": [1] * 30_000}, {"children": [2] * 30_000},
                               {"children": list(range(3, 60_003))}] + [{}] * 60_000}, separators=(",", ":")),
    "child from the end": json.dumps({**_BOX, "nodes": [{"children": [-1]}] + [{}] * 150_000
                                      + [{"children": [-1] * 150_000}]}, separators=(",", ":")),
    "instances of nothing": json.dumps({**_BOX, "accessors": [{**_ZEROS, "count": 0}, {**_ZEROS, "count": 900_000}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}] * 100}], "nodes": [{"mesh": 0, "extensions":
        {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": 1}}}}]}).ljust(900_000),
    "morphs": json.dumps({**_BOX, "accessors": [{**_ZEROS, "count": 400_000}], "meshes": [{"weights": [1] * 20_000,
        "primitives": [{"attributes": {"POSITION": 0}, "targets": [{"POSITION": 0}] * 20_000}]}]}),
    "joints": json.dumps({**_BOX, "accessors": [{**_ZEROS, "count": 0}], "scenes": [{"nodes": list(range(1000))}],
        "nodes": [{"mesh": 0, "skin": 0}] * 1000, "skins": [{"joints": [0] * 100_000}]}),
    "indices again": json.dumps({**_BOX, "accessors": [{**_ZEROS, "count": 3}, {"componentType": 5125, "type": "SCALAR",
        "count": 900_000}], "scenes": [{"nodes": list(range(1000))}], "nodes": [{"mesh": 0}] * 1000, "meshes": [
        {"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "mode": 0}]}]}).ljust(900_000),
    "lines again": json.dumps({**_BOX, "scenes": [{"nodes": list(range(20_000))}], "nodes": [{"mesh": 0}] * 20_000,
                               "meshes": [{"primitives": [{"mode": 1}] * 20_000}]}),
}  # fmt: skip


def gltf(tree: str) -> Maker:
    def make(place: Path) -> Path:
        (place / "a.gltf").write_text(tree)
        return place / "a.gltf"

    return make


def besides(hollow: bool) -> Maker:
    """A tree that counts as many zeros as the files beside it have bytes: one of holes, or one by many names."""

    def make(place: Path) -> Path:
        with open(place / "x.bin", "wb") as stream:
            stream.truncate(10**12) if hollow else stream.write(bytes(400_000))
        names = [f"../{place.name}/" * number + "x.bin" for number in range(100)]
        tree = {**_BOX, "accessors": [{**_ZEROS, "count": 30_000_000}],
                "buffers": [{"byteLength": 1, "uri": name} for name in names]}  # fmt: skip
        return gltf(json.dumps(tree))(place)

    return make


_XYZ = "element vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
_LIST = "property list uchar uchar "
TEXTS = {
    "a.xyz": "a\n" * 400_000,
    "b.xyz": "0\n" * 400_000,
    "c.xyz": "1\n0 0 0\n" * 100_000,
    "a.stl": "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
             "endsolid\n" * 8000,
    "a.ply": f"ply\nformat binary_little_endian 1.0\n{_XYZ}element face 60\n"
             + "".join(f"{_LIST}l{i}\n" for i in range(10_000)) + "end_header\n" + "\0" * 12
             + ("\1\0" + "\0" * 9999 + "\0" * 10_000) * 30,
    "b.ply": f"ply\nformat binary_little_endian 1.0\nelement none {10**10}\n{_XYZ}end_header\n" + "\0" * 12,
}  # fmt: skip
"""Of clouds and meshes: lines that are taken off one by one, counts of nothing, solids and columns without number."""


def text(name: str, content: str) -> Maker:
    def make(place: Path) -> Path:
        (place / name).write_bytes(content.encode("latin-1"))
        return place / name

    return make


def columns(place: Path) -> Path:
    """A list of labels of as many columns as rows."""
    (place / "a.png").write_bytes(png())
    (place / "metadata.csv").write_text("a," * 200_000 + "file_name,label\n" + "a\n" * 200_000)
    return place


def dense_labels(place: Path) -> Path:
    """An archive of 80 kB, whose list of labels has forty million numbers."""
    with zipfile.ZipFile(place / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png())
        archive.writestr("dataset.json", '{"labels":[["a.png",[' + "0," * 40_000_000 + "1]]]}")
    return place


def materials(place: Path) -> Path:
    """A mesh with a material for each face."""
    points = "".join(f"v {i} 0 {i % 7}\n" for i in range(20_000)) + "vt 0 0\nvn 0 0 1\n"
    faces = "".join(f"usemtl m{i}\nf 1/1/1 2/1/1 {i + 3}/1/1\n" for i in range(15_000))
    (place / "a.obj").write_text(points + faces)
    return place / "a.obj"


def far_cloud(place: Path) -> Path:
    np.save(place / "a.npy", np.full((9, 3), 1e38, np.float32))
    return place / "a.npy"


def hollow_rows(place: Path) -> Path:
    """A trillion rows of nothing."""
    with open(place / "a.npy", "wb") as stream:
        fields = [(axis, "|V0") for axis in "xyz"]
        header = {"descr": fields, "fortran_order": False, "shape": (10**12,)}
        np.lib.format.write_array_header_1_0(stream, header)
    return place / "a.npy"


# --- names, links and pipes


def pipe(name: str, alone: bool = False, tar: bool = False) -> Maker:
    """A FIFO; with something readable beside it, unless it is read itself."""

    def make(place: Path) -> Path:
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(file)
        if tar:
            with _tar(place):
                pass
        elif file.suffix == ".png":
            (place / "a.png").write_bytes(png())
        elif file.suffix == ".npy":
            np.save(file.with_name("a.npy"), np.random.default_rng(0).random((9, 3), np.float32))
        return file if alone else place

    return make


def endless(name: str) -> Maker:
    """A link to a plain file of the system that says it is empty, and whose reader waits for what comes."""

    def make(place: Path) -> Path:
        path = place / name
        path.symlink_to("/proc/kmsg")
        return path

    return make


def hollow(name: str) -> Maker:
    """A terabyte of holes behind a few bytes, which an archive holds in less than a kilobyte."""

    def make(place: Path) -> Path:
        path = place / name
        with open(path, "wb") as stream:
            if name.endswith("npy"):
                header = {"descr": "|u1", "fortran_order": False, "shape": (2**40 // 3, 3)}
                np.lib.format.write_array_header_2_0(stream, header)
            stream.truncate(2**40 + 128)
        return path

    return make


def loop(place: Path) -> Path:
    """Class folders with a link to the folder above, to themselves and to each other."""
    root = place / "root"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(12):
            (root / name / f"{i}.png").write_bytes(png())
            np.save(root / name / f"{i}.npy", np.eye(3, dtype=np.float32))
        for number, target in enumerate((root, root / name, root / "b", place)):
            (root / name / f"link{number}").symlink_to(target)
        (root / name / "nowhere.png").symlink_to(root / name / "nowhere.png")
    return root


def named(place: Path) -> Path:
    """Files and folders with names of bytes that are no letters, and that a terminal obeys."""
    top = os.fsencode(place) + b"/root/"
    for number, name in enumerate(NAMES):
        os.makedirs(top + name)
        for i in range(9):
            stem = top + name + b"/" + name + str(i).encode()
            for ending, content in ((b".png", png()), (b".npy", _npy(9 * number + i))):
                with open(stem + ending, "wb") as stream:
                    stream.write(content)
    return place / "root"


def _npy(number: int) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.eye(3, dtype=np.float32) * (1 + number))
    return stream.getvalue()
