"""Images in IDX files, as MNIST, Fashion-MNIST, KMNIST and EMNIST are published: `train-images-idx3-ubyte.gz` ...

Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, a type code, the number of axes, the length of each as a
big-endian 32-bit number, then the values, the last axis fastest).
"""

import gzip
import re
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from ditmoe.outside import Parts, check_items, check_memory, may_hold, open_regular, printable
from modalities.image.data.listing import InMemory, Listing, Picture, labelled, with_test
from modalities.shared.datasets import SPLITS
from modalities.shared.on_demand import OnDemand
from modalities.shared.understood import Ignored

_NAME = re.compile(
    r"(.*?)(train|t10k|test|val|valid)-(images|labels)[-.]idx([13])-ubyte(\.gz)?", re.IGNORECASE
)
_SPLIT = {"train": "train", "t10k": "test", "test": "test", "val": "val", "valid": "val"}
_UBYTE = 8
_HELD_OUT = 12  # share of val, 1 in 12, without a val file: 5,000 of MNIST's 60,000


def list_idx(
    root: Path, below: list[tuple[Parts, list[str]]], ignored: Ignored, notes: list[str]
) -> Listing | None:
    """Images and labels in IDX files below a folder, read into memory; None if there are none.

    Without a val file, the last twelfth of the training images is val, since they are published in random order.

    Raises:
        ValueError: with one line, if files have no partner, are inconsistent, belong to several sets or are not IDX.
    """
    found: dict[tuple[Parts, str], dict[tuple[str, str], str]] = {}
    for folder, names in below:
        likely = [name for name in names if "ubyte" in name]  # quick filter for a million names
        for name in sorted(likely):  # uncompressed first
            if match := _NAME.fullmatch(name):
                of_set = found.setdefault((folder, match[1]), {})
                part = (_SPLIT[match[2]], match[3])
                if part in of_set:
                    ignored.add("there twice", name)
                else:
                    of_set[part] = name
    if not found:
        return None
    for _, names in below:
        for name in names:
            if not _NAME.fullmatch(name) and name != "classes.txt":
                ignored.add("beside the IDX files", name)
    if len(found) > 1:
        places = ", ".join(sorted("/".join((*folder, f"{start}*")) for folder, start in found))
        raise ValueError(
            f"{printable(root)} must hold IDX files of one data set, got {printable(places)}: give the folder of one"
        )
    (((folder, _), parts),) = found.items()
    stacks = {}
    for split in SPLITS:
        files = [parts.get((split, what)) for what in ("images", "labels")]
        if any(files):
            stacks[split] = _read_split(root.joinpath(*folder), *files)
    origin = "from the names of the files"
    if "val" not in stacks and "train" in stacks:
        images, labels = stacks["train"]
        kept = len(images) - len(images) // _HELD_OUT
        stacks["val"] = images[kept:], labels[kept:]
        stacks["train"] = images[:kept], labels[:kept]
        origin += "; val is the last twelfth of train"
    used = {str(label) for _, labels in stacks.values() for label in np.unique(labels).tolist()}
    classes, label_of, _ = labelled(root.joinpath(*folder), used, notes)
    table = np.array([label_of.get(str(i), 0) for i in range(256)], np.int32)
    pictures: dict[str, Sequence[Picture]] = {split: [] for split in SPLITS}
    for split, (images, labels) in stacks.items():
        pictures[split] = StackedPictures(split, images, table[labels])
    return with_test(classes, pictures, origin, ignored, notes)


class StackedPictures(OnDemand[Picture]):
    """Images in one array, each materialised on access.

    Args:
        split: prefix of their names.
        images: pixels.
        labels: label of each.
    """

    def __init__(
        self, split: str, images: UInt8[np.ndarray, "P H W"], labels: Int32[np.ndarray, " P"]
    ) -> None:
        self.split, self.images, self.labels = split, images, labels

    def __len__(self) -> int:
        return len(self.images)

    def make(self, number: int) -> Picture:
        return Picture(f"{self.split}-{number:05d}", int(self.labels[number]), InMemory(self.images[number]))


def _read_split(
    folder: Path, images: str | None, labels: str | None
) -> tuple[UInt8[np.ndarray, "P H W"], UInt8[np.ndarray, " P"]]:
    """Read the images and labels of a split."""
    if images is None or labels is None:
        there, missing = (labels, "images") if images is None else (images, "labels")
        raise ValueError(f"{printable(folder / str(there))} must have its {missing} beside it, got none")
    stack, numbers = read_idx(folder / images, 3), read_idx(folder / labels, 1)
    if len(stack) != len(numbers):
        raise ValueError(
            f"{printable(folder / labels)} must hold a label of each of {len(stack)} pictures, got {len(numbers)}"
        )
    if not stack.size:
        raise ValueError(f"{printable(folder / images)} must hold pictures, got sizes {list(stack.shape)}")
    return stack, numbers


def read_idx(path: Path, axes: int) -> UInt8[np.ndarray, "..."]:
    """Read a uint8 IDX file with so many axes, compressed or not.

    Raises:
        ValueError: with one line, if it is not IDX, declares more than it or the memory can hold, or is truncated.
    """
    wanted = bytes((0, 0, _UBYTE, axes))
    try:
        with open_regular(path) as file:
            packed = path.name.lower().endswith(".gz")
            size = path.stat().st_size
            stream = gzip.GzipFile(fileobj=file) if packed else file
            head = stream.read(4 + 4 * axes)
            if len(head) < 4 + 4 * axes or head[:4] != wanted:
                raise OSError(f"it must begin with {wanted.hex(' ')}, got {head[:4].hex(' ')}")
            shape = tuple(np.frombuffer(head, ">u4", offset=4).tolist())
            if (promised := prod(shape)) > (most := may_hold(size) if packed else size):
                raise OSError(f"it says that it has {promised} values, and can have {most} at most")
            if axes > 1:  # a label is a byte
                _check_number(shape[0], path)
            check_memory(2 * promised, f"the values of {printable(path)}")
            content = stream.read(promised + 1)
            if len(content) != promised:
                came = "more" if len(content) > promised else len(content)
                raise OSError(f"it says that it has {promised} values, and has {came}")
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{printable(path)} must be a whole IDX file: {printable(error)}") from error
    return np.frombuffer(content, np.uint8).reshape(shape)


def _check_number(count: int, path: Path) -> None:
    try:
        check_items(count, path)
    except ValueError as error:  # told like all else that is wrong with a file
        raise OSError(str(error)) from error
