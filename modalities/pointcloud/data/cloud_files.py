"""The files of a point-cloud data set: listing, reading, and hints about oddities."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ditmoe.outside import TooFewError, array_shape, printable, read_object, tell
from modalities.pointcloud.data.axes import check_up, turned
from modalities.pointcloud.data.catalogue import Shape, list_shapes
from modalities.pointcloud.data.channels import Channels
from modalities.pointcloud.data.drawn_points import training_part
from modalities.pointcloud.data.formats import SET_SUFFIXES, narrowed, read_points
from modalities.pointcloud.data.kept import Kept
from modalities.pointcloud.data.up_guess import MOST, guess_up
from modalities.shared.datasets import LeftOut, check_split
from modalities.shared.understood import KIND, Ignored, Understood

FAR = 10
"""Distance from the origin, in extents of a set, from which moments are computed about its first cloud."""


class CloudFiles:
    """The shapes of a folder in the layout of PC15k, or of the built-in set; arguments as in `Clouds`."""

    def __init__(
        self,
        root: Path | None,
        classes: Sequence[str | int] | str | None,
        num_points: int,
        up: str,
        few: str,
        channels: Channels,
        index: Path | None,
        cc0: bool = False,
    ) -> None:
        if cc0 and root is not None:
            raise ValueError("cc0 is for the built-in set, got data.root as well")
        check_up(up)
        if few not in ("repeat", "leave_out"):
            raise ValueError(f"few must be repeat or leave_out, got {few!r}")
        if num_points < 1:
            raise ValueError(f"num_points must be at least 1, got {num_points}")
        self.root, self.num_points, self.up, self.few, self.channels = root, num_points, up, few, channels
        self._cc0 = cc0
        self.wanted = [classes] if isinstance(classes, str) else classes
        self._index, self._kept, self._ignored = index, Kept(index, root), Ignored()
        self.unreadable: LeftOut[Path] = LeftOut("skipped unreadable file")
        """Files found unreadable so far, and why."""
        self.noted: LeftOut[Path] = LeftOut("read in part")

    def understood(self) -> Understood:
        """How the folder was interpreted."""
        classes, shapes = self.listing
        labels = {split: [shape.label for shape in of] for split, of in shapes.items()}
        origin = "as they are published" if self.root is None else "from the folders of each class"
        notes = [] if self.root is None else self._notes()
        return Understood(self.place, "cloud", classes, labels, origin, self._ignored, notes)

    def split(self, name: str) -> Sequence[Shape]:
        """The shapes of a split, sorted by class and name."""
        check_split(name)
        shapes = self.listing[1][name]
        if not shapes:
            hint = "".join(f"; {line}" for line in self._unprepared())
            raise TooFewError(f"{self.place} must hold shapes in <class>/{name}/*.npy, got none{hint}")
        return shapes

    def _notes(self) -> list[str]:
        """Hints for the user."""
        return self._unprepared() + self._up_guess()

    def _unprepared(self) -> list[str]:
        """A hint about files that only `prepare` reads."""
        others = self._ignored.counts.get(KIND, Counter())
        found = {suffix: count for suffix, count in others.items() if suffix in SET_SUFFIXES}
        if not found or self.root is None:
            return []
        source = shlex.quote(f"source={self.place}")
        return [
            f"{sum(found.values())} meshes or clouds ({' '.join(found)}) are trained on once points are made of them: "
            f"python -m ditmoe.prepare {source} out=data/"
        ]

    def _up_guess(self) -> list[str]:
        """A hint if another axis than the configured one looks upright."""
        if not (shapes := self.listing[1]["train"]):
            return []
        some = [self.read(shape) for shape in shapes[:: -(-len(shapes) // MOST)]]
        up = guess_up([points for points in some if points is not None])
        if up in (None, "y"):
            return []
        how = (
            "prepare them again with another modality.up" if self._record else f"modality.up={up} turns them"
        )
        return [f"these shapes look as if their axis {up} were up, where y should be: {how}, if that is so"]

    def read(self, shape: Shape) -> np.ndarray | None:
        """All points of a shape, or None if its file is unreadable, which is reported once."""
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

    def nothing_readable(self, place: str) -> ValueError:
        """The error if no file can be read."""
        first = next(iter(self.unreadable.values()), "none was there")
        return ValueError(f"{self.place} must hold readable files of points in {place}, got none: {first}")

    @property
    def place(self) -> str:
        """The folder's name for messages."""
        return "the built-in set" if self.root is None else printable(self.root)

    @cached_property
    def listing(self) -> tuple[list[str], dict[str, list[Shape]]]:
        """Class names, and the shapes of each split."""
        classes, shapes = list_shapes(self.root, self.wanted, self._ignored, self._index, self._cc0)
        files = [s.source for listed in shapes.values() for s in listed if isinstance(s.source, Path)]
        there = iter(self._kept.counts(files, _points_in))
        for split, listed in shapes.items():
            counts = [next(there) if isinstance(s.source, Path) else len(s.source) for s in listed]
            shapes[split] = self._with_enough(split, listed, counts)
        return classes, shapes

    def _with_enough(self, split: str, shapes: list[Shape], there: Sequence[int]) -> list[Shape]:
        """The shapes to use, by their numbers of points; those with fewer than `num_points` are reported."""
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
            f"{self.place}: {len(few)} of {len(shapes)} shapes in {split} have less than num_points = "
            f"{self.num_points} points, the fewest {min(few)[0]} of {min(few)[1]}; they {what}"
        )
        if self.few == "repeat":
            return shapes
        return [shape for shape, count in zip(shapes, counts, strict=True) if count >= self.num_points]

    @cached_property
    def _record(self) -> dict[str, Any]:
        """The report of `prepare` about the folder; empty if it did not make it."""
        record = None if self.root is None else self.root / "prepare.json"
        return read_object(record) if record is not None and record.is_file() else {}

    @cached_property
    def _in_files(self) -> Channels:
        """The channels, with the column layout of the files."""
        if self.channels.width == 3:
            return self.channels
        if not self._record:
            return self.channels
        there = self._record.get("channels", ["xyz"])
        if not isinstance(there, list) or not all(isinstance(name, str) for name in there):
            raise ValueError(
                f"channels in prepare.json of {self.place} must be a list of names: prepare it again"
            )
        if lacking := [name for name in self.channels.names if name not in there]:
            raise ValueError(
                f"{self.place} was prepared with channels=[{printable(','.join(there))}], without "
                f"{' and '.join(lacking)}: prepare it again with modality.channels=[{','.join(self.channels.names)}]"
            )
        return replace(self.channels, columns=tuple(there))

    @cached_property
    def _up(self) -> str:
        """The up axis still to be applied."""
        if self.up == "y" or self.root is None:
            return "y"
        if (there := self._record.get("up", "y")) != "y":
            tell(
                f"{self.place}: its axis {there} was turned up when it was prepared, and is not turned again"
            )
            return "y"
        return self.up

    @cached_property
    def moments(self) -> tuple[np.ndarray, float]:
        """Mean (3,) of all training points, and their standard deviation, one number for the three axes."""
        files = [shape.source for shape in self.split("train") if isinstance(shape.source, Path)]
        return self._kept.moments(files, f"up={self._up}", self._computed_moments)

    def _computed_moments(self) -> tuple[np.ndarray, float]:
        count, total, squares, origin = 0, np.zeros(3), np.zeros(3), np.zeros(3)
        for shape in tqdm(self.split("train"), "normalisation", delay=2, leave=False):
            if (points := self.read(shape)) is None:
                continue
            points = training_part(points)[:, :3].astype(np.float64)
            if not count and np.abs(points.mean(0)).max() > FAR * np.ptp(points, axis=0).max():
                origin = points.mean(0)  # squares of survey coordinates would lose all precision
            points = points - origin
            count, total, squares = count + len(points), total + points.sum(0), squares + (points**2).sum(0)
        if not count:
            raise self.nothing_readable("train")
        scale = float(np.sqrt(np.mean(squares / count - (total / count) ** 2)))
        if not scale > np.finfo(np.float32).tiny:  # below, float32 is denormal
            raise ValueError(f"{self.place} must hold points that differ, got standard deviation {scale}")
        return origin + total / count, scale


def _points_in(file: Path) -> int:
    """Number of points of a cloud from the header of its file; -1 if unknown, which its reader reports."""
    try:
        shape = array_shape(file)
    except (ValueError, OSError):
        return -1
    return shape[0] if len(shape) == 2 else -1


def _count(count: int, split: str, enough: int) -> int:
    """Number of points usable for a split of a shape with so many; `enough` if unknown."""
    if count < 0:
        return enough
    return (10_000 if split == "train" else 5_000) if count == 15_000 else count
