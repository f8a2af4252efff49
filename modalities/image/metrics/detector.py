"""A Mask2Former of the library transformers (arXiv 2112.01527) from a folder: the objects in a picture."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ditmoe.checkpoint.transformers_folder import (
    TRUSTED,
    check_folder,
    fingerprint,
    folder_at,
    library_for,
    load_model,
    one_line,
)
from ditmoe.outside import check_number, printable, shown
from ditmoe.outside import device as own_device
from modalities.image.metrics.geneval import Box, Found
from modalities.shared.clip_model import LARGEST, Preprocessing, side_pair

DETECTOR = "a Mask2Former"
MOST_FOUND = 100
"""Pairs of a query and a class that are looked at, as for COCO's average precision."""


@dataclass(frozen=True)
class Resizing(Preprocessing):
    """How a Mask2Former wants pictures: never cropped or padded, but stretched to multiples of a number.

    Attributes:
        longest: with `size` the length of the shorter side, the most pixels of the longer one.
        divisor: of both sides; 1 does not stretch.
    """

    FILTER: ClassVar[int] = 2
    longest: int = LARGEST
    divisor: int = 1

    @classmethod
    def sizes(cls, told: Mapping[str, Any]) -> dict[str, Any]:
        check_number("size_divisor", divisor := told.get("size_divisor", 32), 0, 256, whole=True)
        out: dict[str, Any] = {"crop": None, "divisor": max(1, divisor)}
        if told.get("pad_size") is not None:
            raise ValueError(f"pad_size must be null, got {shown(told['pad_size'])}")
        if isinstance(size := told["size"], Mapping) and "shortest_edge" in size:
            for side in ("shortest_edge", "longest_edge"):
                check_number(side, size[side], 1, LARGEST, whole=True)
            return out | {"size": size["shortest_edge"], "longest": size["longest_edge"]}
        return out | {"size": side_pair("size", size)}

    def shape(self, height: int, width: int) -> tuple[int, int]:
        sides = self._proportional(height, width) if isinstance(self.size, int) else self.size
        tall, wide = (max(1, math.ceil(side / self.divisor)) * self.divisor for side in sides)
        return tall, wide

    def _proportional(self, height: int, width: int) -> tuple[int, int]:
        """By the shorter side, in transformers' rounding."""
        short, long = sorted((height, width))
        exact = float(self.size)  # type: ignore[arg-type]
        if long / short * exact > self.longest:
            exact = self.longest * short / long
        if (side := round(exact)) == short:
            return height, width
        other = int(exact * long / short)
        return (side, other) if height <= width else (other, side)


class Detector:
    """A Mask2Former with its weights and preprocessing, on the device at hand; it executes nothing of the folder.

    Args:
        path: a folder as `save_pretrained` writes it; or a name on the hub, from which it is fetched.

    Attributes:
        name: for reports.
        fingerprint: SHA-256 of weights and settings.
        classes: what it can find, by number.

    Raises:
        OSError, ValueError: one line, if that is no Mask2Former, or transformers is not installed.
    """

    def __init__(self, path: str | PathLike) -> None:
        library = library_for(DETECTOR)
        self.folder, self.name = folder_at(path), printable(Path(os.fspath(path)).name)
        self._check(check_folder(self.folder))
        self.fingerprint = fingerprint(self.folder)
        self.prepared = cast(Resizing, Resizing.read(self.folder))
        config = self._tried(lambda: library.Mask2FormerConfig.from_pretrained(self.folder, **TRUSTED))
        kind = library.Mask2FormerForUniversalSegmentation
        # the criterion is of training alone
        model, _ = load_model(kind, lambda: kind(config), self.folder, DETECTOR, spared="criterion.")
        self._model = model.to(own_device())
        self.classes = [str(config.id2label.get(number)) for number in range(config.num_labels)]

    def _check(self, config: Mapping[str, Any]) -> None:
        """Refuse another model, and backbones that are fetched or that take gigabytes."""
        file, within = printable(self.folder / "config.json"), config.get("backbone_config")
        if (kind := config.get("model_type")) != "mask2former":
            raise ValueError(f"{file} must have the model_type mask2former, got {shown(kind)}")
        if config.get("backbone") is not None or not isinstance(within, dict):
            raise ValueError(f"{file} must have its backbone as backbone_config, and none by name")
        if (kind := within.get("model_type")) != "swin":
            raise ValueError(f"{file} must have a swin as its backbone, got {shown(kind)}")
        for name, least, most in (("patch_size", 4, 32), ("window_size", 1, 24)):
            check_number(f"{name} of {file}", within.get(name, least), least, most, whole=True)

    @property
    def told(self) -> str:
        """What it is and how it wants pictures, for protocols."""
        prepared, sides = self.prepared, str(self.prepared.size)
        if isinstance(prepared.size, int):
            sides = f"shorter side {prepared.size}, at most {prepared.longest}"
        return (
            f"{self.name}, SHA-256 {self.fingerprint[:32]}; {sides}, multiples of {prepared.divisor}, "
            f"PIL's filter {prepared.resample}"
        )

    @torch.no_grad()
    def __call__(self, picture: UInt8[np.ndarray, "h w 3"], above: float) -> list[Found]:
        """The objects in a picture with scores above one: p(class) times the mean of the mask where it is above 1/2.

        Masks overlap, and a query may be of several classes, as in the evaluation of COCO.
        """
        x = self.prepared(picture)[None].to(self._model.device)
        with torch.autocast(x.device.type, enabled=False):
            out = self._tried(lambda: self._model(pixel_values=x))
        chances = out.class_queries_logits[0].float().softmax(-1)[:, :-1]
        if not chances.isfinite().all():
            raise ValueError(f"{printable(self.folder)} gives numbers that are not finite")
        best, places = chances.flatten().topk(min(MOST_FOUND, chances.numel()))
        found = []
        for chance, place in zip(best.tolist(), places.tolist(), strict=True):
            if chance <= above:  # the mask takes something off
                break
            query, number = divmod(place, chances.shape[1])
            mask = _enlarged(out.masks_queries_logits[0, query], x.shape[-2:], picture.shape[:2])
            if (inside := mask > 0).any():
                score = chance * float(mask[inside].sigmoid().mean())
                there = inside.cpu().numpy()
                found.append(Found(self.classes[number], score, _box(there), there))
        return [each for each in found if each.score > above]

    def _tried(self, make: Any) -> Any:
        return one_line(make, self.folder, DETECTOR)


def _enlarged(mask: Float[Tensor, "h w"], *sizes: tuple[int, ...]) -> Float[Tensor, "H W"]:
    """To one size after the other: that of what the model saw, and of the picture."""
    x = mask[None, None].float()
    for size in sizes:
        x = F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
    return x[0, 0]


def _box(mask: Bool[np.ndarray, "H W"]) -> Box:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
