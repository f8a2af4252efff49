"""An image data set: training batches, and the reference images of each split."""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ditmoe.modality import Samples, check_number
from ditmoe.outside import TooFewError, at_home, printable
from modalities.image.data.archive_members import Member, Written, member_bytes
from modalities.image.data.catalogue import list_pictures
from modalities.image.data.listing import InMemory, Listing, Picture, labels_of
from modalities.image.data.pictures import fitted, open_picture, size_of, stretched
from modalities.shared.captions import Captioner, Described, Labels, WrittenCaptions, mirrored, with_mirrored
from modalities.shared.datasets import LeftOut, check_split, first_readable, item_of, numbers
from modalities.shared.understood import Understood

S = TypeVar("S")
T = TypeVar("T")
_SAMPLE = 2  # address of a random stream


class Pictures:
    """Labelled images of one size, split into train, val and test (see `catalogue.list_pictures`).

    Files are read lazily. An unreadable image is named on stderr and replaced by the next one of its class.

    Args:
        root: a folder of class folders, of images with a dataset.json or metadata.jsonl, of .tar shards or zips, or of
            IDX files (MNIST); or one .tar or .zip; None is the built-in digits.
        size: (H, W) that images are resized and cropped to.
        mirror: flip half of the training samples horizontally.
        limit: most images of a split used for evaluation.
        max_megapixels: limit per image; larger ones count as unreadable.
        damaged: treatment of truncated images: "refuse" counts them as unreadable, "keep" takes what decodes: the upper
            rows of a PNG, JPEG or PPM, the coarse scans of a progressive JPEG.
        index: a folder to cache the names of many files for the next start (see `FolderIndex`).
        captions: return a caption for each sample, for files from the .txt beside them, in addition to the class. For
            mirrored samples, left and right are exchanged in it.
    """

    opens: ClassVar[Sequence[str]] = ("root", "index")

    def __init__(
        self,
        size: Sequence[int],
        root: str | PathLike | None = None,
        mirror: bool = False,
        limit: int = 10_000,
        max_megapixels: float = 89,
        damaged: str = "refuse",
        index: str | PathLike | None = None,
        captions: bool = False,
    ) -> None:
        check_number("max_megapixels", max_megapixels, above=0)
        if damaged not in ("refuse", "keep"):
            raise ValueError(f"damaged must be refuse or keep, got {printable(damaged)}")
        self._index = None if index is None else at_home(index)
        self.root = None if root is None else at_home(root)
        self.size = (int(size[0]), int(size[1]))
        self.mirror, self.limit, self.max_pixels = mirror, limit, int(max_megapixels * 1_000_000)
        self.unreadable: LeftOut[str] = LeftOut("skipped unreadable picture")
        """Pictures found unreadable so far, and why."""
        self.damaged, self.captions = damaged, captions
        self.kept: LeftOut[str] = LeftOut("kept part of picture")
        """Name -> what of those of which only a part decodes."""
        self._is_copy = False

    @property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return self._listing.classes

    def understood(self) -> Understood:
        """How the folder was interpreted."""
        found = self._listing.understood(self.root)
        return found.with_captions if self.captions else found

    def count(self, split: str) -> int:
        """Number of images of a split used for evaluation."""
        check_split(split)
        return min(len(self._listing.pictures[split]), self.limit)

    def split(self, name: str) -> Sequence[Picture]:
        """The images of a split.

        Raises:
            ValueError: if it is not train, val or test, or is empty.
        """
        check_split(name)
        if not len(pictures := self._listing.pictures[name]):
            raise TooFewError(f"{printable(self.root)} must hold pictures of the split {name}, got none")
        return pictures

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[UInt8[np.ndarray, "B H W 3"], Labels]:
        """Training images and their labels: deterministic in the arguments.

        Sample i has index (step * world + rank) * size + i in a stream with a new permutation of the images each epoch.
        """
        pictures, turns = self.split("train"), numbers(size, step, rank, world)
        turned = [turn(len(pictures), seed, n, self.mirror) for n in turns]
        read = list(self._each(lambda entry: self._nearest_readable(entry[0]), turned))
        chosen = [
            image[:, ::-1] if flip else image for (_, image), (_, flip) in zip(read, turned, strict=True)
        ]
        return np.stack(chosen), self.said([picture for picture, _ in read], seed, turns)

    def said(self, pictures: Sequence[Picture], seed: int, turns: Sequence[int]) -> Labels:
        """The labels of images, with captions if used, for indices of a seed's stream."""
        labels = np.array(labels_of(pictures), np.int64)
        if not self.captions:
            return labels
        told = [self.captioner.drawn(p, seed, n) for p, n in zip(pictures, turns, strict=True)]
        flips = [self.mirror and _flipped(seed, n) for n in turns]
        return Described(
            labels, [mirrored(one) if flip else one for one, flip in zip(told, flips, strict=True)]
        )

    @cached_property
    def captioner(self) -> Captioner[Picture]:
        """Gives the captions of images."""
        return Captioner(self._written, self._class_of)

    def captions_of_split(self, split: str) -> Iterator[str]:
        """The distinct captions of a split; for training, also those of mirrored images if mirroring is on."""
        check_split(split)
        found = self.captioner.distinct(self._listing.pictures[split])
        return with_mirrored(found) if self.mirror and split == "train" else found

    def _class_of(self, picture: Picture) -> str:
        return self.classes[picture.label] if picture.label < len(self.classes) else ""

    @cached_property
    def _captions_of(self) -> WrittenCaptions:
        return WrittenCaptions(self.root or Path())

    def _written(self, picture: Picture) -> Sequence[str]:
        if isinstance(picture.source, Path):
            return self._captions_of(picture.source)
        told = picture.captions
        return told.read() if isinstance(told, Written) else told

    def batch_names(self, size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> list[str]:
        """Names of the images in that batch."""
        pictures = self.split("train")
        return [pictures[item_of(len(pictures), seed, n)].name for n in numbers(size, step, rank, world)]

    def reference(self, split: str) -> Samples:
        """The readable images of a split, at most `limit`, in a fixed random choice."""
        pictures = self.split(split)
        order = np.random.default_rng(0).permutation(len(pictures))[: self.limit]
        pictures = [pictures[i] for i in np.sort(order)]
        images = list(self._each(self.read, pictures))
        kept = [(p, image) for p, image in zip(pictures, images, strict=True) if image is not None]
        if not kept:
            raise self.nothing_readable()
        labels, asked = np.array([picture.label for picture, _ in kept], np.int64), None
        if self.captions:
            asked = Described(labels, [self.captioner.first(picture) for picture, _ in kept]).asked
        names = [picture.name for picture, _ in kept]
        return Samples(np.stack([image for _, image in kept]), labels, names, asked)

    def views(self, pictures: Sequence[Picture]) -> list[UInt8[np.ndarray, "V H W 3"] | None]:
        """Each image, with its mirror image if mirroring is on; None for an unreadable one."""
        images = self._each(self.read, pictures)
        if not self.mirror:
            return [None if image is None else image[None] for image in images]
        return [None if image is None else np.stack([image, image[:, ::-1]]) for image in images]

    def read(self, picture: Picture) -> UInt8[np.ndarray, "H W 3"] | None:
        """Read an image at the configured size; None if it is unreadable, which is reported once."""
        if isinstance(picture.source, np.ndarray):
            return picture.source
        try:
            return self._open(picture, lambda image: fitted(image, self.size))
        except (ValueError, OSError) as error:
            self.unreadable.add(picture.name, str(error))
            return None

    def own_sizes(self) -> list[tuple[Picture, tuple[int, int]]]:
        """The readable training images, each with its native size."""
        pictures = self.split("train")
        sizes = self._each(self.own_size, pictures)
        return [(p, size) for p, size in zip(pictures, sizes, strict=True) if size is not None]

    def own_size(self, picture: Picture) -> tuple[int, int] | None:
        """Native (H, W) of an image, for a built-in digit of its ink; None if it is unreadable."""
        if isinstance(picture.source, np.ndarray):
            return inked(picture.source).shape[:2]
        try:
            if isinstance(picture.source, InMemory):
                return picture.source.pixels.shape  # type: ignore[return-value]
            if self.damaged == "keep":  # the number of rows is only known after decoding
                return self._open(picture, lambda image: (image.height, image.width))
            return size_of(_stream(picture.source), picture.name, self.max_pixels)
        except (ValueError, OSError) as error:
            self.unreadable.add(picture.name, str(error))
            return None

    def read_wholes(
        self, wanted: Sequence[tuple[Picture, tuple[int, int], int, int]]
    ) -> list[UInt8[np.ndarray, "H W 3"] | None]:
        """Read uncropped images at sizes, for indices of a seed's stream; None for unreadable ones, reported once."""
        return list(self._each(lambda each: self.read_whole(*each), wanted))

    def read_whole(
        self, picture: Picture, size: tuple[int, int], seed: int, number: int
    ) -> UInt8[np.ndarray, "H W 3"] | None:
        """One of `read_wholes`."""
        try:
            if isinstance(picture.source, np.ndarray):
                whole = stretched(Image.fromarray(inked(picture.source)), size)
            else:
                whole = self._open(picture, lambda image: stretched(image, size))
        except (ValueError, OSError) as error:
            self.unreadable.add(picture.name, str(error))
            return None
        return whole[:, ::-1] if self.mirror and _flipped(seed, number) else whole

    def _open(self, picture: Picture, make: Callable[[Image.Image], T]) -> T:
        if isinstance(picture.source, InMemory):
            return make(picture.source.image())
        source = _stream(picture.source)  # type: ignore[arg-type]
        name = picture.name if isinstance(source, io.BytesIO) else None

        def keep(what: str) -> None:
            self.kept.add(picture.name, what, f"{picture.name}: {what}")

        return open_picture(source, name, make, self.max_pixels, keep if self.damaged == "keep" else None)

    def _nearest_readable(self, index: int) -> tuple[Picture, np.ndarray]:
        """A training image and its pixels, or the next readable one of its class."""
        found = first_readable(self.split("train"), index, self.read, attrgetter("label"))
        if found is None:
            raise self.nothing_readable()
        return found

    def nothing_readable(self) -> ValueError:
        """The error if no image can be read."""
        first = next(iter(self.unreadable.values()), "there was none")
        return ValueError(
            f"{printable(self.root)} must hold readable pictures, got {len(self.unreadable)} others: {first}"
        )

    @cached_property
    def _listing(self) -> Listing:
        return list_pictures(self.root, self.size, self._index, self.captions)

    def _each(self, function: Callable[[S], T], items: Iterable[S]) -> Iterable[T]:
        """Results in order, from several threads: image decoders release the GIL."""
        return map(function, items) if self._is_copy else self._threads.map(function, items)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(os.cpu_count())

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling: a copy in a worker process uses no threads of its own."""
        return {**{k: v for k, v in vars(self).items() if k != "_threads"}, "_is_copy": True}


def _stream(source: Path | Member) -> Path | io.BytesIO:
    return source if isinstance(source, Path) else io.BytesIO(member_bytes(source))


def inked(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Crop a digit to its ink."""
    rows, columns = (np.flatnonzero((image > 64).any(axis=(axis, 2))) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def turn(length: int, seed: int, number: int, mirror: bool) -> tuple[int, bool]:
    """The item at index `number` of the training stream, and whether it is mirrored."""
    return item_of(length, seed, number), mirror and _flipped(seed, number)


def _flipped(seed: int, number: int) -> bool:
    """Whether the sample at index `number` of the training stream is among the half that is mirrored."""
    return bool(np.random.default_rng([seed, _SAMPLE, number]).random() < 0.5)
