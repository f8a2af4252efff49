"""Checks that a weaker model can guide another one (autoguidance): their predictions must have the same meaning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditmoe.diffusion import Process
from ditmoe.outside import printable

READ = ("_target_", "encoder", "about")
"""Options of a conditioning that define its inputs; others may differ."""


@dataclass(frozen=True)
class Meaning:
    """What a model predicts.

    Attributes:
        modality: its name.
        shape: of a sample.
        data_facts: facts of the training data (`Modality.data_facts`): classes, scales, the codec of latents.
        process: defines the prediction.
        conditioning: section of the configuration.
    """

    modality: str
    shape: Sequence[int]
    data_facts: Mapping[str, Any]
    process: Process
    conditioning: Any

    def check_weaker(self, other: "Meaning", name: Any) -> None:
        """Check that a weaker model generates the same kind of samples, and predicts the same quantity.

        Args:
            name: of the weaker model, for the error.

        Raises:
            ValueError: one line with the first difference.
        """
        pairs = {
            "be of the modality": (self.modality, other.modality),
            "have samples of the shape": (list(self.shape), list(other.shape)),
        }
        for what, (own, its) in pairs.items():
            if own != its:
                raise ValueError(f"guidance_model must {what} {own}, got {its} of {printable(name)}")
        if differs := _first_difference(self.data_facts, other.data_facts):
            raise ValueError(
                f"guidance_model must have been trained with the same {differs}, or its samples mean something else, "
                f"got another in {printable(name)}"
            )
        if not _same(_probed(self.process), _probed(other.process)):
            raise ValueError(
                f"guidance_model must predict the same quantity as the model, got another process in {printable(name)}"
            )
        if _read(self.conditioning) != _read(other.conditioning):
            raise ValueError(
                "guidance_model must have the same conditioning as the model, got another encoder or class in "
                f"{printable(name)}"
            )


def _read(section: Any) -> dict[str, Any]:
    return {name: section.get(name) for name in READ} if isinstance(section, Mapping) else {}


def _probed(process: Process) -> Tensor:
    """Corrupted samples and targets of a fixed datum and noise at three times, independent of training's times."""
    datum, noise = torch.tensor([1.0, 0.0]).expand(3, 2), torch.tensor([0.0, 1.0]).expand(3, 2)
    t = torch.tensor([1.0, 500.0, 998.0])
    return torch.stack([process.corrupt(datum, noise, t), process.target(datum, noise, t)])


def _first_difference(own: Any, other: Any, name: str = "") -> str:
    """The top-level name of the first fact that differs, "" for none."""
    if isinstance(own, Mapping) and isinstance(other, Mapping):
        for key in sorted({*own, *other}, key=str):
            if key not in own or key not in other:
                return name or str(key)
            if differs := _first_difference(own[key], other[key], name or str(key)):
                return differs
        return ""
    return "" if _same(own, other) else name


def _same(own: Any, other: Any) -> bool:
    """Equality, with a tolerance for fitted numbers."""
    numbers = (Tensor, np.ndarray, float)
    if isinstance(own, numbers) and isinstance(other, numbers):
        a, b = torch.as_tensor(own), torch.as_tensor(other)
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6)
    if isinstance(own, list | tuple) and isinstance(other, list | tuple):
        return len(own) == len(other) and all(map(_same, own, other))
    return bool(own == other)
