"""The point-cloud modality: implements the `Modality` interface with the modules of this folder."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ditmoe.conditioning import captions_of
from ditmoe.given import Parts
from ditmoe.modality import (
    Asked,
    Encoding,
    Files,
    GivenParts,
    Metric,
    Modality,
    Preparation,
    Reader,
    Report,
    Samples,
    Shown,
    Surfaces,
    Tokens,
    Turntables,
    check_options,
)
from ditmoe.outside import check_number, printable, tell
from modalities.pointcloud import given as given_parts
from modalities.pointcloud.data import Clouds, formats
from modalities.pointcloud.data.axes import check_up, still_to_turn, turned
from modalities.pointcloud.data.channels import Channels, as_bytes, from_model, to_model
from modalities.pointcloud.data.partial import draw_part, draw_there
from modalities.pointcloud.data.ply import write_ply
from modalities.pointcloud.data.prepare import prepare
from modalities.pointcloud.metrics.completion import evaluate_folder
from modalities.pointcloud.metrics.evaluation import check_set, evaluate_sets
from modalities.pointcloud.strays import STRAY, onto_surface
from modalities.pointcloud.surface.reconstruct import Options
from modalities.pointcloud.surface.run import check_out, mesh_clouds
from modalities.pointcloud.tokens.given_cloud import POINTS, with_there
from modalities.pointcloud.viz.contact_sheet import contact_sheet
from modalities.pointcloud.viz.render import class_color, render
from modalities.pointcloud.viz.turntable import write_turntable
from modalities.pointcloud.viz.view import show_one, view
from modalities.shared import save_png
from modalities.shared.captions import WORDS, Captioned, asked_of, listed_words
from modalities.shared.datasets import Noted


class PointCloud(Modality, Files, Metric, Encoding, Preparation, Surfaces, Turntables, GivenParts, Captioned):
    """Point clouds of `num_points` points.

    Args:
        data: makes the data set (`Clouds`); called on first use of the data.
        tokens: makes the patchifier for a width.
        num_points: points of a training sample and of a generated one.
        up: the up axis of the data (and of what is prepared or evaluated); the model uses y.
        channels: channels of each point: xyz, then rgb or normals or both; metrics use xyz only.
        columns: the channels of unnamed columns, as in .npy and text; None infers them from the values.
        evaluation: options of `evaluate_sets`; and `scans`, a folder of scans that the generated clouds complete.
        preparation: options of `prepare`.
        strays: generated points this many medians from their fourth neighbour are moved onto the surface; None: none.
        surface: options of `mesh`: `modalities.pointcloud.surface.reconstruct.Options`.
        data_facts: class names and normalisation from a checkpoint; None takes them from the data.
        captions: condition on captions as well as classes (`modalities.shared.captions`).
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
        channels: Sequence[str] | str = ("xyz",),
        columns: Sequence[str] | str | None = None,
        evaluation: Mapping[str, Any] | None = None,
        preparation: Mapping[str, Any] | None = None,
        data_facts: Mapping[str, Any] | None = None,
        captions: bool = False,
        surface: Mapping[str, Any] | None = None,
        strays: float | None = STRAY,
    ) -> None:
        if num_points < 1:
            raise ValueError(f"modality.num_points must be at least 1, got {num_points}")
        check_up(up)
        if strays is not None:
            check_number("modality.strays", strays, 1)
        self.strays = strays
        self.num_points, self.up, self.captions = num_points, up, captions
        self.channels = Channels.of(channels, columns)
        self._make_data, self._make_tokens = data, tokens
        self._evaluation, self._preparation = dict(evaluation or {}), dict(preparation or {})
        self._scans = self._evaluation.pop("scans", None)
        check_options("modality.evaluation", evaluate_sets, self._evaluation)
        check_options("modality.preparation", prepare, self._preparation)
        check_options("modality.surface", Options, surface or {})
        self._surface = Options(**(surface or {}))
        self._reads: bool | None = None
        self._facts = _numbers(data_facts) if data_facts else None
        self._known: Mapping[str, Any] | None = None
        if data_facts:
            self.restore_facts(data_facts)

    @cached_property
    def data(self) -> Clouds:
        """The data set; read on first use."""
        options: dict[str, Any] = {} if self.up == "y" else {"up": self.up}
        if self.channels.width > 3:
            options |= {"channels": self.channels.names, "columns": self.channels.columns}
        if self.captions:
            options["captions"] = True
        return self._make_data(num_points=self.num_points, **options)

    def data_facts(self) -> dict[str, Any]:
        if self._facts is None:
            self._facts = {
                "classes": list(self.data.classes),
                "mean": [float(v) for v in self.data.mean],
                "scale": float(self.data.scale),
            }
            if self.channels.width > 3:
                self._facts["channels"] = list(self.channels.names)
            self._facts |= self.words_known(self._known)
        return self._facts

    def restore_facts(self, data_facts: Mapping[str, Any]) -> None:
        """Check that a checkpoint has the configured channels.

        Raises:
            ValueError: if it has others.
        """
        self._known = data_facts
        there = [printable(name) for name in data_facts.get("channels", ["xyz"])]
        if tuple(there) != self.channels.names:
            raise ValueError(
                f"modality.channels must be those of the checkpoint, [{','.join(there)}], "
                f"got [{','.join(self.channels.names)}]"
            )

    @property
    def classes(self) -> Sequence[str]:
        return self.data_facts()["classes"]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (self.num_points, self.channels.width)

    def shape_of(self, points: int | None = None) -> tuple[int, ...]:  # type: ignore[override]
        points = self.num_points if points is None else points
        check_number("points", points, 1, whole=True)
        return (points, self.channels.width)

    def tokens(self, hidden_size: int) -> Tokens:
        wide = {"channels": self.channels.width} if self.channels.width > 3 else {}
        return self._make_tokens(hidden_size=hidden_size, **wide)

    def batch(
        self, size: int, seed: int, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "B M C"], Asked]:
        points, found = self.data.batch(size, seed, step, rank, world)
        return torch.from_numpy(points), asked_of(found)

    def reader(self) -> Reader:
        _ = self.data.scale  # computed once, not by each process
        reading = Noted(self.data.batch, [self.data.unreadable, self.data.noted])

        def tensors(found: Any) -> tuple[Tensor, Asked]:
            points, labels = reading.told(found)
            return torch.from_numpy(points), asked_of(labels)

        return Reader(reading, tensors, files=self.data.root is not None)

    def batch_names(self, size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> list[str]:
        return self.data.batch_names(size, seed, step, rank, world)

    @property
    def reads_given(self) -> bool:
        """Whether the tokens also read a clean cloud beside the noisy one."""
        if self._reads is None:
            with torch.device("meta"):
                self._reads = bool(getattr(self._make_tokens(hidden_size=12), "reads_given", False))
        return self._reads

    def draw_beside(
        self, x0: Float[Tensor, "B M C"], rngs: Sequence[np.random.Generator]
    ) -> Mapping[str, Tensor]:
        if self._reads is None and not self.reads_given:
            tell("these tokens read no given cloud: given= trains nothing, and scans are held by replacement")
        if not self.reads_given:
            return {}
        drawn = [draw_part(points, rng) for points, rng in zip(x0.numpy(), rngs, strict=True)]
        points = torch.from_numpy(np.stack(drawn))
        there = torch.from_numpy(np.stack([draw_there(points.shape[-1], rng) for rng in rngs]))
        return {POINTS: with_there(points, there[:, None].expand(*points.shape[:2], -1))}

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
        return given_parts.parts(given, points, place, hold, strength, told, mean, scale, self.channels)

    def encode(self, data: Float[np.ndarray, "S M C"]) -> Float[Tensor, "S M C"]:
        facts = self.data_facts()
        mean, scale = np.array(facts["mean"]), np.float64(facts["scale"])
        clouds = [to_model(points.astype(np.float64), mean, scale, self.channels) for points in data]
        return torch.from_numpy(np.stack(clouds)).float()

    def decode(self, x: Float[Tensor, "S M C"]) -> Float[np.ndarray, "S M C"]:
        """Positions in data units, colours in [0, 1], normals of unit length."""
        data_facts = self.data_facts()
        mean = torch.tensor(data_facts["mean"], dtype=torch.float64)
        places = x[..., :3].double() * data_facts["scale"] + mean
        if self.channels.width == 3:
            points = places
        else:
            points = torch.cat([places, *from_model(x.double(), self.channels)], dim=-1)
        finite = points.numel() and points.isfinite().all()
        return formats.narrowed(points.numpy()) if finite else points.float().numpy()

    def refined(self, data: Float[np.ndarray, "S M C"]) -> Float[np.ndarray, "S M C"]:
        """Clouds whose stray points were moved onto the surface (`strays`)."""
        if self.strays is None or not len(data):
            return data
        return np.stack([onto_surface(points, self.strays) for points in data])

    def understood(self) -> str:
        """A summary of how the data was interpreted, in a few lines."""
        return "\n".join(filter(None, [str(self.data.understood()), self.captions_understood()]))

    def reference(self, split: str) -> Samples:
        return self.data.reference(split)

    def check_evaluation(self, split: str = "test") -> None:
        check_set(self.data.count(split), self._evaluation)

    def evaluate(self, generated: Samples, reference: Samples, train: Samples | None = None) -> Report:
        places = None if train is None else _places(train)
        if self._scans is not None:
            if not Path(self._scans).is_dir():
                raise ValueError(
                    f"modality.evaluation.scans must be a folder of scans, got {printable(self._scans)}: there is none"
                )
            seed = self._evaluation.get("seed", 0)
            return evaluate_folder(Path(self._scans), _places(generated), _places(reference), places, seed)
        return evaluate_sets(_places(generated), _places(reference), places, **self._evaluation)

    def read(self, path: Path) -> Samples:
        """Read the positions of a set of clouds, rotated by `modality.up` unless `prepare` or `write` made it."""
        samples = formats.read_set(path)
        if (up := still_to_turn(path, self.up)) == "y":
            return samples
        return replace(samples, data=np.stack([turned(cloud, up) for cloud in samples.data]))

    def write(self, samples: Samples, folder: Path) -> list[Path]:
        """Write a PLY and an NPY per shape, and a contact sheet; or one .npz (points, labels) and a sheet beside it."""
        if folder.suffix == ".npz":
            formats.write_npz(folder, samples, self.channels)
            self.save_picture(samples, folder.with_suffix(".png"))
            return [folder.with_suffix(".png"), folder]
        folder.mkdir(parents=True, exist_ok=True)
        sheet, paths = folder / "samples.png", []
        self.save_picture(samples, sheet)
        for points, name in zip(samples.data, samples.file_names(), strict=True):
            write_ply(folder / f"{name}.ply", points[:, :3], **self._beside(points), up="y")
            formats.write_npy(folder / f"{name}.npy", points)
            paths += [folder / f"{name}.ply", folder / f"{name}.npy"]
        return [sheet, *paths]

    def _beside(self, points: Float[np.ndarray, "N C"]) -> dict[str, np.ndarray]:
        """Colours (uint8) and normals of a cloud, if it has them."""
        found = {}
        if "rgb" in self.channels.names:
            found["colors"] = as_bytes(points[:, self.channels.at("rgb")])
        if "normals" in self.channels.names:
            found["normals"] = points[:, self.channels.at("normals")]
        return found

    def save_picture(self, samples: Samples, file: Path) -> None:
        labels = [] if samples.labels is None else samples.labels.tolist()
        told = None if samples.asked is None else captions_of(samples.asked)
        names = [self.class_name(i) for i in labels] if told is None else told
        clouds = list(samples.data[..., :3])
        save_png(file, contact_sheet(clouds, names or None, colors=self._colors(samples)))

    def _colors(self, samples: Samples) -> list[Any] | None:
        """Colours of each cloud: of its points, or of its class; None if it has neither."""
        if "rgb" in self.channels.names:
            return [self._beside(points)["colors"] for points in samples.data]
        return None if samples.labels is None else [class_color(i) for i in samples.labels.tolist()]

    def write_turntables(self, samples: Samples, folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        colors, paths = self._colors(samples) or [class_color(0)] * len(samples), []
        for points, color, name in zip(samples.data, colors, samples.file_names(), strict=True):
            paths += write_turntable(folder / name, partial(render, points[:, :3], color=color))
        return paths

    @classmethod
    def view(cls, paths: Sequence[Path], out: Path | None = None) -> str:
        return view(paths, out)

    def check_out(self, out: Path) -> None:
        check_out(out)

    def mesh(self, source: Path, out: Path, turntable: bool = False, most: int | None = None) -> list[Path]:
        classes = dict(enumerate(self._facts["classes"])) if self._facts else None
        return mesh_clouds(
            source, out, self._surface, turntable, self.channels.columns, self.up, classes, most
        )

    @classmethod
    def show(cls, files: Sequence[Path]) -> Shown:
        return show_one(files)

    def prepare(self, source: Path, out: Path, check: bool = False) -> None:
        if check:
            raise ValueError("check is for videos: leave it out")
        told: dict[str, Any] = {"captions": True} if self.captions else {}
        prepare(source, out, up=self.up, channels=self.channels, **told, **self._preparation)


def _places(samples: Samples) -> Samples:
    """Clouds with xyz only."""
    return replace(samples, data=samples.data[..., :3])


def _numbers(data_facts: Mapping[str, Any]) -> dict[str, Any]:
    """Check the types of the data facts of a checkpoint."""
    mean = data_facts["mean"]
    for value in mean:
        check_number("the mean of the points", value)
    if len(mean) != 3 or not all(map(math.isfinite, mean)):
        raise ValueError(f"the mean of the points must have 3 finite numbers, got {mean}")
    check_number("the scale of the points", data_facts["scale"])
    if not 0 < data_facts["scale"] < math.inf:
        raise ValueError(f"the scale of the points must be positive, got {data_facts['scale']}")
    classes = [printable(name) for name in data_facts["classes"]]
    found = {"classes": classes, "mean": mean, "scale": float(data_facts["scale"])}
    found |= {"channels": list(data_facts["channels"])} if "channels" in data_facts else {}
    return found | ({WORDS: listed_words(data_facts[WORDS])} if WORDS in data_facts else {})
