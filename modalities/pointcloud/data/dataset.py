"""Point-cloud data sets: the built-in furniture, ShapeNet PC15k, and folders from `prepare`."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from ditmoe.modality import Samples
from ditmoe.outside import at_home
from modalities.pointcloud.data.catalogue import Shape
from modalities.pointcloud.data.channels import Channels, to_model
from modalities.pointcloud.data.cloud_files import CloudFiles
from modalities.pointcloud.data.described import describe
from modalities.pointcloud.data.drawn_points import augmented, choose, reference_part, training_part
from modalities.shared.captions import Captioner, Described, Labels, WrittenCaptions
from modalities.shared.datasets import LeftOut, check_split, first_readable, item_of, numbers
from modalities.shared.understood import Understood

_SAMPLE = 2  # address of a random stream


class Clouds:
    """A labelled set of point clouds, split into train, val and test.

    `root` is a folder in the layout of PC15k, `<class>/{train,val,test}/*.npy`, each file (N, 3); None is the
    built-in furniture (4,096 points per shape, bounding-box diagonal 1, y up). Files are read lazily. An
    unreadable file is named on stderr and replaced by the next one of its class; an invalid layout or number of points
    is a ValueError.

    Args:
        root: the folder, or None.
        classes: names or synset ids, in the order of their labels; None for all, sorted by name.
        num_points: points of a training sample, subsampled anew each time without replacement.
        mirror: flip x in half of the training samples.
        scale_jitter: s in [0, 1); each axis is scaled by 1-s to 1+s, keeping the bounding-box diagonal.
        up: the up axis of the files, rotated to y; if `prepare` has rotated it, it is not rotated again.
        few: treatment of clouds with fewer points than `num_points`, reported before training: repeat points (repeat),
            or leave out the shape (leave_out).
        index: a folder to cache the names of many files, their numbers of points and the normalisation for the next
            start (see `FolderIndex`, `Kept`).
        balance: classes are sampled in proportion to count^(1 - balance): 0 as in the data, 1 uniformly.
        channels, columns: channels of each point, and the columns of the files (`Channels`). A file that lacks a
            channel counts as unreadable; the built-in set has xyz only.
        captions: return a caption for each sample, for files from the .txt beside them, in addition to the class.
        cc0: of the built-in set, only the shapes in the public domain.
    """

    opens: ClassVar[Sequence[str]] = ("root", "index")

    def __init__(
        self,
        root: str | PathLike | None = None,
        classes: Sequence[str | int] | str | None = None,
        num_points: int = 2048,
        mirror: bool = False,
        scale_jitter: float = 0.0,
        balance: float = 0.0,
        up: str = "y",
        few: str = "repeat",
        channels: Sequence[str] | str = ("xyz",),
        columns: Sequence[str] | str | None = None,
        index: str | PathLike | None = None,
        captions: bool = False,
        cc0: bool = False,
    ) -> None:
        self.channels = Channels.of(channels, columns)
        if not 0 <= scale_jitter < 1:
            raise ValueError(f"scale_jitter must be in [0, 1), got {scale_jitter}")
        self.root = None if root is None else at_home(root)
        folder = None if index is None else at_home(index)
        self.files = CloudFiles(self.root, classes, num_points, up, few, self.channels, folder, cc0)
        self.num_points, self.mirror = num_points, mirror
        self.scale_jitter, self.balance, self.captions = scale_jitter, balance, captions
        self._described: dict[str, list[str]] = {}

    @property
    def unreadable(self) -> LeftOut[Path]:
        """Unreadable files found so far, with reasons."""
        return self.files.unreadable

    @property
    def noted(self) -> LeftOut[Path]:
        """Files that were read only in part, with explanations."""
        return self.files.noted

    def understood(self) -> Understood:
        """How the folder was interpreted."""
        found = self.files.understood()
        return found.with_captions if self.captions else found

    @property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return self.files.listing[0]

    @property
    def mean(self) -> Float32[np.ndarray, "3"]:
        """Mean of all training points."""
        return self.files.moments[0].astype(np.float32)

    def _center(self, points: np.ndarray) -> np.ndarray:
        """The mean, in double precision for points far from the origin."""
        return self.files.moments[0] if points.dtype == np.float64 else self.mean

    @property
    def scale(self) -> float:
        """Standard deviation of all training points around `mean`, one number for the three axes."""
        return self.files.moments[1]

    def count(self, split: str) -> int:
        """Number of shapes in a split."""
        check_split(split)
        return len(self.files.listing[1][split])

    def split(self, name: str) -> Sequence[Shape]:
        """The shapes of a split, sorted by class and name."""
        return self.files.split(name)

    def labels(self, split: str) -> Int64[np.ndarray, " S"]:
        """Class index of each shape of a split."""
        return np.array([shape.label for shape in self.split(split)], np.int64)

    def draw(
        self, index: int, rng: np.random.Generator, split: str = "train", augment: bool = False
    ) -> Float[np.ndarray, "N C"]:
        """Sample `num_points` of the training points of a shape, in data units."""
        return self._drawn(self._readable(index, split)[1], rng, augment)

    def _drawn(self, points: np.ndarray, rng: np.random.Generator, augment: bool) -> np.ndarray:
        points = points[choose(len(points), self.num_points, rng)]
        if not augment:
            return points
        how = rng, self.mirror, self.scale_jitter, self.channels
        if points.dtype != np.float64:  # float32 points are near the origin, see `narrowed`
            return augmented(points, *how)
        about = np.zeros(points.shape[1])
        about[:3] = self._center(points)
        return augmented(points - about, *how) + about

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float32[np.ndarray, "B N C"], Labels]:
        """Normalised, augmented training samples and labels: deterministic in the arguments.

        Sample i has index (step * world + rank) * size + i in a stream with a new permutation of the shapes each epoch,
        or, if `balance` is set, of weighted random shapes.
        """
        points = np.empty((size, self.num_points, self.channels.width), np.float32)
        labels, told, turns = np.empty(size, np.int64), [], numbers(size, step, rank, world)
        for i, (index, rng) in enumerate(self._turns(seed, turns)):
            shape, read = self._readable(index, "train")
            drawn, labels[i] = self._drawn(read, rng, augment=True), shape.label
            points[i] = to_model(drawn, self._center(drawn), np.float32(self.scale), self.channels)
            told += [self.captioner.drawn(shape, seed, turns[i])] if self.captions else []
        return points, Described(labels, told) if self.captions else labels

    def batch_names(self, size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> list[str]:
        """Names of the shapes in that batch."""
        shapes = self.split("train")
        turns = self._turns(seed, numbers(size, step, rank, world))
        return [shapes[index].name for index, _ in turns]

    def _turns(self, seed: int, batch: range) -> Iterator[tuple[int, np.random.Generator]]:
        """Indices of the shapes in a batch, each with its random generator."""
        length = len(self.split("train"))
        for number in batch:
            rng = np.random.default_rng([seed, _SAMPLE, number])
            if self.balance:
                yield int(np.searchsorted(self._cumulative, rng.random(), side="right")), rng
            else:
                yield item_of(length, seed, number), rng

    def reference(self, split: str, num_points: int | None = None) -> Samples:
        """The first reference points of each shape of a split, in data units; deterministic."""
        count = self.num_points if num_points is None else num_points
        shapes, clouds = [], []
        for shape in self.split(split):
            if (points := self.files.read(shape)) is None:
                continue
            points = reference_part(points)
            shapes.append(shape)
            few = len(points) < count
            clouds.append(
                points[choose(len(points), count, np.random.default_rng(0))] if few else points[:count]
            )
        if not clouds:
            raise self.files.nothing_readable(split)
        labels = np.array([shape.label for shape in shapes], np.int64)
        asked = None
        if self.captions:
            asked = Described(labels, [self.captioner.first(shape) for shape in shapes]).asked
        return Samples(np.stack(clouds), labels, [shape.name for shape in shapes], asked)

    @cached_property
    def captioner(self) -> Captioner[Shape]:
        """Gives the captions of shapes."""
        return Captioner(self._written, self._class_of)

    def captions_of_split(self, split: str) -> Iterator[str]:
        """The distinct captions of a split."""
        check_split(split)
        return self.captioner.distinct(self.files.listing[1][split])

    def _class_of(self, shape: Shape) -> str:
        return self.classes[shape.label]

    @cached_property
    def _captions_of(self) -> WrittenCaptions:
        return WrittenCaptions(self.root or Path())

    def _written(self, shape: Shape) -> list[str]:
        """The captions of a shape: for a file those beside it, for a built-in shape its description."""
        if isinstance(shape.source, Path):
            return self._captions_of(shape.source)
        if shape.name not in self._described:
            category, name = shape.name.split("/", 1)
            self._described[shape.name] = describe(shape.source, name.split("-", 1)[1], category)
        return self._described[shape.name]

    def _readable(self, index: int, split: str) -> tuple[Shape, np.ndarray]:
        """A shape and its training points, or the next readable one of its class."""
        shapes = self.split(split)
        found = first_readable(shapes, index, self.files.read, attrgetter("label"))
        if found is None:
            raise self.files.nothing_readable(f"{self.classes[shapes[index].label]}/{split}")
        return found[0], training_part(found[1])

    @cached_property
    def _cumulative(self) -> Float64[np.ndarray, " S"]:
        labels = self.labels("train")
        ends = np.cumsum(np.bincount(labels)[labels] ** -float(self.balance))
        return ends / ends[-1]
