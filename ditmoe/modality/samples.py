"""Sets of samples in data units, the view of one on a page, and evaluation reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ditmoe.conditioning import Condition
from ditmoe.outside import file_names


@dataclass(frozen=True)
class Samples:
    """A set of samples in data units, as used by sampling, files and metrics.

    Attributes:
        data: (S, *sample), in the units of the data set.
        labels: (S,) class indices, or None if the set has no classes.
        names: one per sample, used for files (`file_names`).
        asked: the conditions of the samples, if more than labels.
    """

    data: np.ndarray
    labels: np.ndarray | None = None
    names: Sequence[str] | None = None
    asked: Condition | None = None

    def __len__(self) -> int:
        return len(self.data)

    def file_names(self) -> list[str]:
        """A distinct and safe name for the file of each sample."""
        names = list(self.names or ())[: len(self)]
        return file_names([*names, *range(len(names), len(self))], taken=("samples", "view"))


@dataclass(frozen=True)
class Shown:
    """One sample as a page shows it: a picture, the frames of a clip, or the points of a cloud.

    Attributes:
        picture: (H, W, 3) of bytes.
        frames: (T, H, W, 3) of bytes.
        rate: frames per second.
        points: (N, 3), y up, at any scale: scaled to fit.
        colors: (N, 3) of bytes; None: the colour of its class.
    """

    picture: np.ndarray | None = None
    frames: np.ndarray | None = None
    rate: float = 8.0
    points: np.ndarray | None = None
    colors: np.ndarray | None = None


@dataclass(frozen=True)
class Report:
    """The result of an evaluation, with its protocol.

    Attributes:
        values: metric name -> value for the generated set.
        intervals: metric name -> (low, high), 95 %.
        rows: the same metrics of reference sets, for comparison ("oracle": real training shapes).
        protocol: what was compared and how (counts, points, normalisation, variants).
        notes: warnings about numbers that could be misread.
    """

    values: Mapping[str, float]
    protocol: Mapping[str, Any]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def joined(self, other: "Report") -> "Report":
        """With the metrics of another report of the same samples; rows of one name are joined, its notes come last."""
        rows = {name: {**self.rows.get(name, {}), **row} for name, row in other.rows.items()}
        return Report(
            {**self.values, **other.values},
            {**self.protocol, **other.protocol},
            {**self.intervals, **other.intervals},
            {**self.rows, **rows},
            [*self.notes, *other.notes],
        )
