"""Files that someone made to do harm, and who reads them: each is refused in one line, or read for what it is.

A maker writes its files into a folder of its own and gives the path that is then read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ditmoe.checkpoint import open_file
from modalities.image import Pictures
from modalities.image import view as picture_view
from modalities.image.data import picture_sets as images
from modalities.image.data.pictures import open_picture
from modalities.image.metrics.features import pixels, read_reference
from modalities.latent import latent_cache
from modalities.pointcloud import Clouds
from modalities.pointcloud.data import formats
from modalities.shared import cache
from modalities.video import Clips
from modalities.video.data import clip_folders
from modalities.video.io.reader import read_clip, read_index
from tests.hostile.archives import (
    PICKLES,
    backwards,
    bomb,
    common_words,
    cut_member,
    dense_labels,
    endless_digits,
    endless_words,
    large_label,
    large_pictures,
    long_pax,
    old,
    overlapping,
    pt,
    repeated_bomb,
    repeated_labels,
    sparse,
    twice,
)
from tests.hostile.meshes import TEXTS, TREES, besides, columns, far_cloud, gltf, hollow_rows, materials, text
from tests.hostile.pictures import (
    JPEG2000,
    WEBP,
    Maker,
    blocks,
    clear_png,
    comments,
    deep_png,
    flat,
    frames,
    postscript,
    repeats,
    scans,
    tags,
    tall,
    tile,
    tiles,
    wide,
    wide_gif,
)
from tests.hostile.places import endless, hollow, loop, named, pipe
from tests.hostile.videos import counted, grown, still, strip, strips


def hostile() -> dict[str, list[tuple[Maker, Callable[[Path], Any]]]]:
    """By kind."""
    pictures, clouds, clips = _pictures, Clouds, Clips
    return {
        "pickles": [(pt(content), read) for content in PICKLES.values() for read in (formats.read_set, open_file)]
        + [(twice, formats.read_set), (overlapping, open_file), (old, open_file)],
        "tars": [(make, pictures) for make in (large_label, sparse, long_pax, cut_member, backwards, common_words,
                                            endless_words, endless_digits)],
        "bombs": [(bomb("points"), formats.read_set), (bomb("arr_0"), images.read_set), (bomb("videos"),
        clip_folders.read_set),
                  (bomb("mu"), read_reference), (bomb("points"), kept), (large_pictures, measured)],
        "pixels": [(make, open_picture) for make in (deep_png, wide_gif, postscript, scans, clear_png,
                                                  tall, blocks, tile, tiles, tags, comments, repeats, wide(WEBP),
                                                  wide(JPEG2000))]
        + [(frames, lambda path: read_clip(path, 0, 20)), (frames, read_index), (flat, images.read_set)],
        "videos": [(grown, lambda path: read_clip(path, 1, 16)), (counted, read_index)]
        + [(make, _clips) for make in (still, strip)] + [(strips, seen)],
        "meshes": [(gltf(tree), lambda path: formats.read_surface(path, 100, 0)) for tree in TREES.values()]
        + [(far_cloud, formats.read_points), (hollow_rows, formats.read_points)]
        + [(materials, lambda path: formats.read_surface(path, 100, 0))]
        + [(besides(hollow), lambda path: formats.read_surface(path, 100, 0)) for hollow in (True, False)]
        + [(text(name, content), lambda path: formats.read_surface(path, 100, 0)) for name, content in TEXTS.items()],
        "labels": [(make, pictures) for make in (columns, dense_labels, repeated_labels, repeated_bomb)],
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


def measured(path: Path) -> Any:
    return pixels(images.read_set(path).data)


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
