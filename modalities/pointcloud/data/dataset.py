"""Data sets of clouds: the built-in furniture, PC15k of ShapeNet, and what `prepare` makes."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from tqdm import tqdm

from ditmoe.modality import Samples
from ditmoe.outside import TooFewError, array_shape, printable, read_json, tell
from modalities.pointcloud.data.axes import check_up, turned
from modalities.pointcloud.data.catalogue import Shape, list_shapes
from modalities.pointcloud.data.channels import Channels, stretched, to_model
from modalities.pointcloud.data.described import describe
from modalities.pointcloud.data.formats import SET_SUFFIXES, narrowed, read_points
from modalities.pointcloud.data.kept import Kept
from modalities.pointcloud.data.up_guess import MOST, guess_up
from modalities.shared.captions import Captioner, Described, Labels, WrittenCaptions
from modalities.shared.datasets import LeftOut, check_split, first_readable, item_of, numbers
from modalities.shared.understood import KIND, Ignored, Understood

FAR = 10
"""Moments of a set that lies so many of its extents from the origin are taken about its first cloud."""
_SAMPLE = 2  # address of a random stream


class Clouds:
    """A labelled set of point clouds, split into train, val and test.

    `root` is a folder laid out as PC15k, `<class>/{train,val,test}/*.npy`, each file (N, 3); None is the
    built-in furniture (CC0, 4,096 points a shape, bounding-box diagonal 1, y up). Nothing is read before it
    is asked for. An unreadable file is named on stderr and gives way to the next one of its class; a layout
    or a number of points that cannot serve is a ValueError.

    Args:
        root: the folder, or None.
        classes: names or synset ids, in the order of their labels; None for all, sorted by name.
        num_points: points of a training sample, drawn anew each time and without replacement.
        mirror: flip x in half of the training samples.
        scale_jitter: s in [0, 1); each axis is scaled by 1-s to 1+s, the bounding-box diagonal kept.
        up: the axis of the files that points up, turned to y; where `prepare` turned it, it is not turned again.
        few: what becomes of clouds with less points than `num_points`, told before training: points are drawn more
            than once (repeat), or the shape is left out (leave_out).
        index: a folder in which the names of many files, their numbers of points and the normalisation are kept for the
            next start (see `FolderIndex`, `Kept`).
        balance: classes are drawn in proportion to count^(1 - balance): 0 as they come, 1 all alike.
        channels, columns: what each point has, and what the columns of the files are (`Channels`). A file that lacks
            a channel counts as unreadable; the built-in set has xyz alone.
        captions: a sentence about each sample beside its class: of a file those in the .txt beside it.
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
    ) -> None:
        check_up(up)
        self.channels = Channels.of(channels, columns)
        if few not in ("repeat", "leave_out"):
            raise ValueError(f"few must be repeat or leave_out, got {few!r}")
        if num_points < 1:
            raise ValueError(f"num_points must be at least 1, got {num_points}")
        if not 0 <= scale_jitter < 1:
            raise ValueError(f"scale_jitter must be in [0, 1), got {scale_jitter}")
        self.root = None if root is None else Path(root).expanduser()
        self._index = None if index is None else Path(index).expanduser()
        self._kept = Kept(self._index, self.root)
        self.wanted = [classes] if isinstance(classes, str) else classes
        self.num_points, self.mirror = num_points, mirror
        self.scale_jitter, self.balance = scale_jitter, balance
        self.up, self.few, self.captions = up, few, captions
        self._ignored, self._described = Ignored(), dict[str, list[str]]()
        self.unreadable: LeftOut[Path] = LeftOut("skipped unreadable file")
        """Files found unreadable so far, and why."""
        self.noted: LeftOut[Path] = LeftOut("read in part")

    @property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return self._listing[0]

    @property
    def mean(self) -> Float32[np.ndarray, "3"]:
        """Mean of all training points."""
        return self._moments[0].astype(np.float32)

    def _center(self, points: np.ndarray) -> np.ndarray:
        """The mean, in the precision of points that lie far away."""
        return self._moments[0] if points.dtype == np.float64 else self.mean

    @property
    def scale(self) -> float:
        """Standard deviation of all training points around `mean`, one number for the three axes."""
        return self._moments[1]

    def understood(self) -> Understood:
        """What was understood of the folder."""
        classes, shapes = self._listing
        labels = {split: [shape.label for shape in of] for split, of in shapes.items()}
        origin = "as they are published" if self.root is None else "from the folders of each class"
        notes = [] if self.root is None else self._notes()
        found = Understood(self._place, "cloud", classes, labels, origin, self._ignored, notes)
        return found.with_captions if self.captions else found

    def _notes(self) -> list[str]:
        """What a person may want to do otherwise."""
        return self._unprepared() + self._guess()

    def _unprepared(self) -> list[str]:
        """Of files that `prepare` reads and training does not."""
        others = self._ignored.counts.get(KIND, Counter())
        found = {suffix: count for suffix, count in others.items() if suffix in SET_SUFFIXES}
        if not found or self.root is None:
            return []
        source = shlex.quote(f"source={self._place}")
        return [
            f"{sum(found.values())} meshes or clouds ({' '.join(found)}) are trained on once points are made of them: "
            f"python -m ditmoe.prepare {source} out=data/"
        ]

    def _guess(self) -> list[str]:
        """Which way looks up, where that is not what it should be."""
        if not (shapes := self._listing[1]["train"]):
            return []
        some = [self._read(shape) for shape in shapes[:: -(-len(shapes) // MOST)]]
        up = guess_up([points for points in some if points is not None])
        if up in (None, "y"):
            return []
        how = (
            "prepare them again with another modality.up" if self._record else f"modality.up={up} turns them"
        )
        return [f"these shapes look as if their axis {up} were up, where y should be: {how}, if that is so"]

    def count(self, split: str) -> int:
        """Shapes of a split."""
        check_split(split)
        return len(self._listing[1][split])

    def split(self, name: str) -> Sequence[Shape]:
        """The shapes of a split, by class and name."""
        check_split(name)
        shapes = self._listing[1][name]
        if not shapes:
            hint = "".join(f"; {line}" for line in self._unprepared())
            raise TooFewError(f"{self._place} must hold shapes in <class>/{name}/*.npy, got none{hint}")
        return shapes

    def labels(self, split: str) -> Int64[np.ndarray, " S"]:
        """Class index of each shape of a split."""
        return np.array([shape.label for shape in self.split(split)], np.int64)

    def draw(
        self, index: int, rng: np.random.Generator, split: str = "train", augment: bool = False
    ) -> Float[np.ndarray, "N C"]:
        """Draw `num_points` of the training points of a shape, in data units."""
        return self._drawn(self._readable(index, split)[1], rng, augment)

    def _drawn(self, points: np.ndarray, rng: np.random.Generator, augment: bool) -> np.ndarray:
        points = points[_chosen(len(points), self.num_points, rng)]
        if not augment:
            return points
        how = rng, self.mirror, self.scale_jitter, self.channels
        if points.dtype != np.float64:  # they lie around the origin, see `narrowed`
            return _augmented(points, *how)
        about = np.zeros(points.shape[1])
        about[:3] = self._center(points)
        return _augmented(points - about, *how) + about

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float32[np.ndarray, "B N C"], Labels]:
        """Normalised, augmented training samples and labels: a function of its arguments alone.

        Sample i of this call is number (step * world + rank) * size + i of a stream that goes through a new
        permutation of the shapes each epoch, or, where `balance` is set, draws shapes by weight.
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
        """Which shapes are in a batch, each with what is drawn at random for it."""
        length = len(self.split("train"))
        for number in batch:
            rng = np.random.default_rng([seed, _SAMPLE, number])
            if self.balance:
                yield int(np.searchsorted(self._cumulative, rng.random(), side="right")), rng
            else:
                yield item_of(length, seed, number), rng

    def reference(self, split: str, num_points: int | None = None) -> Samples:
        """The first reference points of each shape of a split, in data units; no randomness."""
        count = self.num_points if num_points is None else num_points
        shapes, clouds = [], []
        for shape in self.split(split):
            if (points := self._read(shape)) is None:
                continue
            points = _reference_part(points)
            shapes.append(shape)
            few = len(points) < count
            clouds.append(
                points[_chosen(len(points), count, np.random.default_rng(0))] if few else points[:count]
            )
        if not clouds:
            raise self._nothing_readable(split)
        labels = np.array([shape.label for shape in shapes], np.int64)
        asked = None
        if self.captions:
            asked = Described(labels, [self.captioner.first(shape) for shape in shapes]).asked
        return Samples(np.stack(clouds), labels, [shape.name for shape in shapes], asked)

    @cached_property
    def captioner(self) -> Captioner[Shape]:
        """The captions of shapes."""
        return Captioner(self._written, self._class_of)

    def captions_of_split(self, split: str) -> Iterator[str]:
        """Each caption of a split once."""
        check_split(split)
        return self.captioner.distinct(self._listing[1][split])

    def _class_of(self, shape: Shape) -> str:
        return self.classes[shape.label]

    @cached_property
    def _captions_of(self) -> WrittenCaptions:
        return WrittenCaptions(self.root or Path())

    def _written(self, shape: Shape) -> list[str]:
        """The captions of a shape: of a file those beside it, of a built-in one what it is."""
        if isinstance(shape.source, Path):
            return self._captions_of(shape.source)
        if shape.name not in self._described:
            category, name = shape.name.split("/", 1)
            self._described[shape.name] = describe(shape.source, name.split("-", 1)[1], category)
        return self._described[shape.name]

    def _readable(self, index: int, split: str) -> tuple[Shape, np.ndarray]:
        """A shape and its training points, or the next readable one of its class."""
        shapes = self.split(split)
        found = first_readable(shapes, index, self._read, attrgetter("label"))
        if found is None:
            raise self._nothing_readable(f"{self.classes[shapes[index].label]}/{split}")
        return found[0], _training_part(found[1])

    def _read(self, shape: Shape) -> np.ndarray | None:
        """All points of a shape, or None where its file is unreadable, which is told once."""
        if isinstance(shape.source, np.ndarray):
            if self.channels.width > 3:
                raise ValueError(
                    f"the built-in set has channels=[xyz] alone, got channels=[{','.join(self.channels.names)}]"
                )
            return shape.source
        file, channels = shape.source, self._in_files
        try:
            points = read_points(file, lambda note: self.noted.add(file, note), channels)
            return narrowed(turned(points, self._up, self.channels))
        except (ValueError, OSError) as error:
            self.unreadable.add(shape.source, str(error))
            return None

    def _nothing_readable(self, place: str) -> ValueError:
        first = next(iter(self.unreadable.values()), "none was there")
        return ValueError(f"{self._place} must hold readable files of points in {place}, got none: {first}")

    @property
    def _place(self) -> str:
        return "the built-in set" if self.root is None else printable(self.root)

    @cached_property
    def _listing(self) -> tuple[list[str], dict[str, list[Shape]]]:
        classes, shapes = list_shapes(self.root, self.wanted, self._ignored, self._index)
        files = [s.source for listed in shapes.values() for s in listed if isinstance(s.source, Path)]
        there = iter(self._kept.counts(files, _points_in))
        for split, listed in shapes.items():
            counts = [next(there) if isinstance(s.source, Path) else len(s.source) for s in listed]
            shapes[split] = self._with_enough(split, listed, counts)
        return classes, shapes

    def _with_enough(self, split: str, shapes: list[Shape], there: Sequence[int]) -> list[Shape]:
        """The shapes that are used, by their numbers of points; those of less than `num_points` are told."""
        counts = [_count(count, split, self.num_points) for count in there]
        few = [
            (count, shape.name)
            for count, shape in zip(counts, shapes, strict=True)
            if count < self.num_points
        ]
        if not few:
            return shapes
        what = (
            "are left out"
            if self.few == "leave_out"
            else "give some points more than once (few=leave_out leaves them out)"
        )
        tell(
            f"{self._place}: {len(few)} of {len(shapes)} shapes in {split} have less than num_points = "
            f"{self.num_points} points, the fewest {min(few)[0]} of {min(few)[1]}; they {what}"
        )
        if self.few == "repeat":
            return shapes
        return [shape for shape, count in zip(shapes, counts, strict=True) if count >= self.num_points]

    @cached_property
    def _record(self) -> dict[str, Any]:
        """What `prepare` wrote down of the folder; nothing of one that it did not make."""
        record = None if self.root is None else self.root / "prepare.json"
        return dict(read_json(record)) if record is not None and record.is_file() else {}

    @cached_property
    def _in_files(self) -> Channels:
        """The channels, as they lie in the columns of the files."""
        if self.channels.width == 3:
            return self.channels
        if not self._record:
            return self.channels
        there = tuple(self._record.get("channels", ("xyz",)))
        if lacking := [name for name in self.channels.names if name not in there]:
            raise ValueError(
                f"{self._place} was prepared with channels=[{printable(','.join(map(str, there)))}], without "
                f"{' and '.join(lacking)}: prepare it again with modality.channels=[{','.join(self.channels.names)}]"
            )
        return replace(self.channels, columns=there)

    @cached_property
    def _up(self) -> str:
        """The axis that is still to be turned up."""
        if self.up == "y" or self.root is None:
            return "y"
        if (there := self._record.get("up", "y")) != "y":
            tell(
                f"{self._place}: its axis {there} was turned up when it was prepared, and is not turned again"
            )
            return "y"
        return self.up

    @cached_property
    def _moments(self) -> tuple[np.ndarray, float]:
        files = [shape.source for shape in self.split("train") if isinstance(shape.source, Path)]
        return self._kept.moments(files, f"up={self._up}", self._computed_moments)

    def _computed_moments(self) -> tuple[np.ndarray, float]:
        count, total, squares, origin = 0, np.zeros(3), np.zeros(3), np.zeros(3)
        for shape in tqdm(self.split("train"), "normalisation", delay=2, leave=False):
            if (points := self._read(shape)) is None:
                continue
            points = _training_part(points)[:, :3].astype(np.float64)
            if not count and np.abs(points.mean(0)).max() > FAR * np.ptp(points, axis=0).max():
                origin = points.mean(0)  # squares of survey coordinates would have no digits left
            points = points - origin
            count, total, squares = count + len(points), total + points.sum(0), squares + (points**2).sum(0)
        if not count:
            raise self._nothing_readable("train")
        scale = float(np.sqrt(np.mean(squares / count - (total / count) ** 2)))
        if not scale > np.finfo(np.float32).tiny:  # below, a float32 has lost its digits
            raise ValueError(f"{self._place} must hold points that differ, got standard deviation {scale}")
        return origin + total / count, scale

    @cached_property
    def _cumulative(self) -> Float64[np.ndarray, " S"]:
        labels = self.labels("train")
        ends = np.cumsum(np.bincount(labels)[labels] ** -float(self.balance))
        return ends / ends[-1]


def _training_part(points: np.ndarray) -> np.ndarray:
    """PointFlow (arXiv 1906.12320) parts 15,000 points in 10,000 and 5,000; others serve for both."""
    return points[:10_000] if len(points) == 15_000 else points


def _reference_part(points: np.ndarray) -> np.ndarray:
    return points[10_000:] if len(points) == 15_000 else points


def _chosen(there: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Which points are drawn: each once, or all, and some again, where there are too few."""
    if there >= wanted:
        return rng.choice(there, wanted, replace=False)
    return np.concatenate([np.arange(there), rng.choice(there, wanted - there)])


def _points_in(file: Path) -> int:
    """Points of a cloud by the header of its file; -1 where that does not tell, which its reader will."""
    try:
        shape = array_shape(file)
    except (ValueError, OSError):
        return -1
    return shape[0] if len(shape) == 2 else -1


def _count(count: int, split: str, enough: int) -> int:
    """Points that a shape of so many has for a split; `enough` where that is not known."""
    if count < 0:
        return enough
    return (10_000 if split == "train" else 5_000) if count == 15_000 else count


def _augmented(
    points: np.ndarray, rng: np.random.Generator, mirror: bool, scale_jitter: float, channels: Channels
) -> np.ndarray:
    factor = np.ones(3, np.float32)
    if scale_jitter:
        factor = rng.uniform(1 - scale_jitter, 1 + scale_jitter, 3).astype(np.float32)
        extent = np.array([np.ptp(axis) for axis in points.T[:3]])  # three columns go faster than axis=0
        diagonal = np.linalg.norm(extent * factor)
        factor *= np.linalg.norm(extent) / diagonal if diagonal > 0 else 1
    if mirror and rng.random() < 0.5:
        factor[0] = -factor[0]
    return stretched(points, factor, channels)
