"""Whether guidance can lead one model away from another: what both predict must mean the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditmoe.diffusion import Process
from ditmoe.outside import printable

READ = ("_target_", "encoder", "about")
"""Options of a conditioning that decide what it reads; the others may differ."""


@dataclass(frozen=True)
class Meaning:
    """What a model's predictions are of.

    Attributes:
        modality: its name.
        shape: of a sample.
        data_facts: what samples are made with (`Modality.data_facts`): classes, scales, the codec of latents.
        process: what is predicted.
        conditioning: section of the configuration.
    """

    modality: str
    shape: Sequence[int]
    data_facts: Mapping[str, Any]
    process: Process
    conditioning: Any

    def check_weaker(self, other: "Meaning", name: Any) -> None:
        """Refuse a weaker model that is of other samples, or predicts something else of them.

        Args:
            name: what the person called it.

        Raises:
            ValueError: one line that says what differs first.
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
                f"guidance_model must have been trained on the same {differs} (samples would mean something else), "
                f"got another of {printable(name)}"
            )
        if not _same(_probed(self.process), _probed(other.process)):
            raise ValueError(
                f"guidance_model must predict what the model does, and {printable(name)} does not: process="
            )
        if _read(self.conditioning) != _read(other.conditioning):
            raise ValueError(
                f"guidance_model must be asked for things as the model is, and {printable(name)} is not: conditioning="
            )


def _read(section: Any) -> dict[str, Any]:
    return {name: section.get(name) for name in READ} if isinstance(section, Mapping) else {}


def _probed(process: Process) -> Tensor:
    """What is predicted of a datum and of noise at three times; when a process trains at which does not show."""
    datum, noise = torch.tensor([1.0, 0.0]).expand(3, 2), torch.tensor([0.0, 1.0]).expand(3, 2)
    t = torch.tensor([1.0, 500.0, 998.0])
    return torch.stack([process.corrupt(datum, noise, t), process.target(datum, noise, t)])


def _first_difference(own: Any, other: Any, name: str = "") -> str:
    """The name of the first fact that is not the same, "" for none."""
    if isinstance(own, Mapping) and isinstance(other, Mapping):
        for key in sorted({*own, *other}, key=str):
            if key not in own or key not in other:
                return name or str(key)
            if differs := _first_difference(own[key], other[key], name or str(key)):
                return differs
        return ""
    return "" if _same(own, other) else name


def _same(own: Any, other: Any) -> bool:
    """Equal, but for the last digits of what was fitted."""
    numbers = (Tensor, np.ndarray, float)
    if isinstance(own, numbers) and isinstance(other, numbers):
        a, b = torch.as_tensor(own), torch.as_tensor(other)
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6)
    if isinstance(own, list | tuple) and isinstance(other, list | tuple):
        return len(own) == len(other) and all(map(_same, own, other))
    return bool(own == other)
