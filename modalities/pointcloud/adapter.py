"""The point-cloud modality: puts the pieces of this folder behind the contract."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ditmoe.given import Parts
from ditmoe.modality import (
    Files,
    GivenParts,
    Metric,
    Modality,
    Preparation,
    Report,
    Samples,
    Tokens,
    check_options,
)
from ditmoe.outside import check_number, printable, tell
from modalities.pointcloud import given as given_parts
from modalities.pointcloud.data import Clouds, formats
from modalities.pointcloud.data.axes import check_up
from modalities.pointcloud.data.partial import draw_part
from modalities.pointcloud.data.ply import write_ply
from modalities.pointcloud.data.prepare import prepare
from modalities.pointcloud.metrics.completion import evaluate_folder
from modalities.pointcloud.metrics.evaluation import check_set, evaluate_sets
from modalities.pointcloud.tokens.given_cloud import POINTS
from modalities.pointcloud.viz.contact_sheet import contact_sheet
from modalities.pointcloud.viz.render import class_color
from modalities.pointcloud.viz.view import view
from modalities.shared import save_png


class PointCloud(Modality, Files, Metric, Preparation, GivenParts):
    """Clouds of `num_points` points.

    Args:
        data: makes the data set (`Clouds`); called when data are first asked for.
        tokens: makes the patchifier for a width.
        num_points: points of a training sample and of a generated one.
        up: the axis of the data (and of what is prepared) that points up; the model keeps y.
        evaluation: options of `evaluate_sets`; and `scans`, a folder of which the generated are completions.
        preparation: options of `prepare`.
        data_facts: class names and normalisation from a checkpoint; None reads them from the data.
    """

    name: ClassVar[str] = "pointcloud"
    words: ClassVar[Mapping[str, str]] = {"points": "of a cloud"}
    given_words: ClassVar[Mapping[str, str]] = {
        "place": "of a scan: fit, or x, y, z of its middle and how many of its units are one of the data's",
        "hold": "false: its points may change",
    }
    suffixes: ClassVar[tuple[str, ...]] = formats.SET_SUFFIXES
    opens: ClassVar[Sequence[str]] = ("evaluation.cache", "evaluation.scans")

    def __init__(
        self,
        data: Callable[..., Clouds],
        tokens: Callable[..., Tokens],
        num_points: int = 2048,
        up: str = "y",
        evaluation: Mapping[str, Any] | None = None,
        preparation: Mapping[str, Any] | None = None,
        data_facts: Mapping[str, Any] | None = None,
    ) -> None:
        if num_points < 1:
            raise ValueError(f"modality.num_points must be at least 1, got {num_points}")
        check_up(up)
        self.num_points, self.up = num_points, up
        self._make_data, self._make_tokens = data, tokens
        self._evaluation, self._preparation = dict(evaluation or {}), dict(preparation or {})
        self._scans = self._evaluation.pop("scans", None)
        check_options("modality.evaluation", evaluate_sets, self._evaluation)
        check_options("modality.preparation", prepare, self._preparation)
        self._data: Clouds | None = None
        self._reads: bool | None = None
        self._facts = _numbers(data_facts) if data_facts else None

    @property
    def data(self) -> Clouds:
        """The data set; read when first asked for."""
        if self._data is None:
            self._data = self._make_data(
                num_points=self.num_points, **({} if self.up == "y" else {"up": self.up})
            )
        return self._data

    def data_facts(self) -> dict[str, Any]:
        if self._facts is None:
            self._facts = {
                "classes": list(self.data.classes),
                "mean": [float(v) for v in self.data.mean],
                "scale": float(self.data.scale),
            }
        return self._facts

    @property
    def classes(self) -> Sequence[str]:
        return self.data_facts()["classes"]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (self.num_points, 3)

    def shape_of(self, points: int | None = None) -> tuple[int, ...]:  # type: ignore[override]
        points = self.num_points if points is None else points
        check_number("points", points, 1, whole=True)
        return (points, 3)

    def tokens(self, hidden_size: int) -> Tokens:
        return self._make_tokens(hidden_size=hidden_size)

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B M 3"], Int[Tensor, " B"]]:
        points, labels = self.data.batch(size, seed, step, rank, world)
        return torch.from_numpy(points), torch.from_numpy(labels)

    def batch_names(self, size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> list[str]:
        return self.data.batch_names(size, seed, step, rank, world)

    @property
    def reads_given(self) -> bool:
        """Whether the tokens read a cloud beside the noisy one."""
        if self._reads is None:
            with torch.device("meta"):
                self._reads = bool(getattr(self._make_tokens(hidden_size=12), "reads_given", False))
        return self._reads

    def draw_beside(
        self, x0: Float[Tensor, "B M 3"], rngs: Sequence[np.random.Generator]
    ) -> Mapping[str, Tensor]:
        if self._reads is None and not self.reads_given:
            tell("these tokens read no given cloud: given= trains nothing, and scans are held by replacement")
        if not self.reads_given:
            return {}
        drawn = [draw_part(points, rng) for points, rng in zip(x0[..., :3].numpy(), rngs, strict=True)]
        return {POINTS: torch.from_numpy(np.stack(drawn))}

    def parts(  # type: ignore[override]
        self,
        given: Any,
        *,
        shape: Mapping[str, Any],
        told: bool,
        strength: float | None = None,
        place: Any = None,
        hold: bool = True,
    ) -> Parts:
        data_facts = self.data_facts()
        mean, scale = np.array(data_facts["mean"]), data_facts["scale"]
        points = self.shape_of(**shape)[0]
        told = told and self.reads_given
        return given_parts.parts(given, points, place, hold, strength, told, mean, scale)

    def decode(self, x: Float[Tensor, "S M 3"]) -> Float[np.ndarray, "S M 3"]:
        data_facts = self.data_facts()
        points = x.double() * data_facts["scale"] + torch.tensor(data_facts["mean"], dtype=torch.float64)
        finite = points.numel() and points.isfinite().all()
        return formats.narrowed(points.numpy()) if finite else points.float().numpy()

    def understood(self) -> str:
        """What was understood of the data, in a few lines."""
        return str(self.data.understood())

    def reference(self, split: str) -> Samples:
        return self.data.reference(split)

    def check_evaluation(self, split: str = "test") -> None:
        check_set(self.data.count(split), self._evaluation)

    def evaluate(self, generated: Samples, reference: Samples, train: Samples | None = None) -> Report:
        if self._scans is not None:
            seed = self._evaluation.get("seed", 0)
            return evaluate_folder(Path(self._scans), generated, reference, train, seed)
        return evaluate_sets(generated, reference, train, **self._evaluation)

    def read(self, path: Path) -> Samples:
        return formats.read_set(path)

    def write(self, samples: Samples, folder: Path) -> list[Path]:
        """One PLY and one NPY per shape, and the contact sheet; or one .npz (points, labels), the sheet beside it."""
        if folder.suffix == ".npz":
            self.save_picture(samples, folder.with_suffix(".png"))
            formats.write_npz(folder, samples)
            return [folder.with_suffix(".png"), folder]
        folder.mkdir(parents=True, exist_ok=True)
        sheet, paths = folder / "samples.png", []
        self.save_picture(samples, sheet)
        for points, name in zip(samples.data, samples.file_names(), strict=True):
            write_ply(folder / f"{name}.ply", points)
            formats.write_npy(folder / f"{name}.npy", points)
            paths += [folder / f"{name}.ply", folder / f"{name}.npy"]
        return [sheet, *paths]

    def save_picture(self, samples: Samples, file: Path) -> None:
        labels = [] if samples.labels is None else samples.labels.tolist()
        names, colors = [self.class_name(i) for i in labels], [class_color(i) for i in labels]
        save_png(file, contact_sheet(list(samples.data), names or None, colors=colors or None))

    @classmethod
    def view(cls, paths: Sequence[Path], out: Path | None = None) -> str:
        return view(paths, out)

    def prepare(self, source: Path, out: Path, check: bool = False) -> None:
        if check:
            raise ValueError("check is for videos: leave it out")
        prepare(source, out, up=self.up, **self._preparation)


def _numbers(data_facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a checkpoint, whose types nobody has looked at."""
    mean = [float(value) for value in data_facts["mean"]]
    if len(mean) != 3 or not all(map(math.isfinite, mean)):
        raise ValueError(f"the mean of the points must have 3 finite numbers, got {mean}")
    if not 0 < float(data_facts["scale"]) < math.inf:
        raise ValueError(f"the scale of the points must be positive, got {data_facts['scale']}")
    classes = [printable(name) for name in data_facts["classes"]]
    return {"classes": classes, "mean": mean, "scale": float(data_facts["scale"])}
