"""Lists the images of a data set: the built-in digits, a folder, or archives."""

from pathlib import Path

import numpy as np

from ditmoe.outside import folders_below, is_regular, printable
from modalities.image.data.archives import ARCHIVES, COMPRESSED
from modalities.image.data.described import describe
from modalities.image.data.idx import list_idx
from modalities.image.data.listing import Listing, Picture
from modalities.image.data.picture_archives import list_archives
from modalities.image.data.picture_folders import list_folders
from modalities.image.data.pictures import SUFFIXES
from modalities.shared import digits
from modalities.shared.datasets import SPLITS
from modalities.shared.folder_index import FolderIndex
from modalities.shared.understood import Ignored


def list_pictures(
    root: Path | None, size: tuple[int, int], index: Path | None = None, captions: bool = False
) -> Listing:
    """Class names, and the images of each split.

    `root` is None for the built-in digits; a folder of class folders, with splits or without (see `layout.arrange`);
    a folder of images with a dataset.json or metadata.jsonl that gives their classes; a folder of webdataset .tar
    shards, of .zip files, or of IDX files (`idx`); or one .tar or .zip. An image without a class has the label
    `len(classes)`. Without a test split, val serves as both (ImageNet); without any splits, images are split by a
    hash of their names.

    Raises:
        ValueError: if there are no images.
    """
    if root is None:
        return _digits(size, captions)
    if not root.is_dir() and not (root.name.lower().endswith(ARCHIVES) and is_regular(root)):
        raise ValueError(f"modality.data.root must be a folder, got {printable(root)}")
    ignored, notes = Ignored(), list[str]()
    if root.is_dir():
        known = FolderIndex(index, root)
        below = list(folders_below(root, True, ignored.visible, known.read))
        known.save()
    else:
        root, below = root.parent, [((), [root.name])]
    if (listing := list_archives(root, below, ignored, notes, captions)) is not None:
        return listing
    if (listing := list_idx(root, below, ignored, notes)) is not None:
        return listing
    if (listing := list_folders(root, below, ignored, notes)) is not None:
        return listing
    packed = [name for _, names in below for name in names if name.lower().endswith(COMPRESSED)]
    raise ValueError(
        f"{printable(root)} must hold pictures ({' '.join(SUFFIXES)}) in class folders, or .tar shards, got "
        + (
            f"{len(packed)} compressed ones: unpack them (gunzip), so that their pictures can be read one by one"
            if packed
            else "; ".join(["none", *ignored.lines(), *notes])
        )
    )


def _digits(size: tuple[int, int], captions: bool) -> Listing:
    """Digits three quarters as large as the image, on black; with captions if wanted."""
    side = max(8, min(size) * 3 // 4)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    if min(size) < side:
        raise ValueError(f"modality.size must be at least 8 for the built-in digits, got {list(size)}")
    pictures = {}
    for split in SPLITS:
        ink, labels = digits.digits(split, side)
        canvas = np.zeros((len(ink), *size, 3), np.uint8)
        canvas[:, top : top + side, left : left + side] = ink[..., None]
        said = describe(ink, labels) if captions else [()] * len(labels)
        pictures[split] = [
            Picture(f"{digits.CLASSES[label]}-{split}-{i:04d}", int(label), image, told)
            for i, (image, label, told) in enumerate(zip(canvas, labels, said, strict=True))
        ]
    return Listing(list(digits.CLASSES), pictures, "as they are published")
