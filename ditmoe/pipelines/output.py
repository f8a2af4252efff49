"""The output of a pipeline: samples in the requested format, under diffusers' names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from jaxtyping import Float
from torch import Tensor

from ditmoe.modality import Modality

OUTPUTS = ("pil", "np", "pt", "latent")


@dataclass
class Output(BaseOutput):
    """The output of a pipeline.

    Attributes:
        samples: PIL images, arrays (S, *sample) or tensors, by `output_type`.
        labels: (S,) class indices; None without classes.
    """

    samples: Any
    labels: Tensor | None = None

    @property
    def images(self) -> Any:
        """The samples, as image pipelines name them."""
        return self.samples

    @property
    def frames(self) -> Any:
        """The samples, as video pipelines name them: `frames[0]` is the first video."""
        return self.samples


def finished(
    x: Float[Tensor, "S *sample"],
    modality: Modality | None,
    output_type: str,
    finish: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Any:
    """Convert samples from the model's space to one of the formats `OUTPUTS`.

    Args:
        modality: decodes and refines them; None: they are returned as latents.
        finish: inserts given parts into decoded samples.
    """
    if output_type == "latent" or modality is None:
        return x
    data = modality.refined(modality.decode(x))
    data = data if finish is None else finish(data)
    if data.dtype != np.uint8:
        return torch.from_numpy(data) if output_type == "pt" else data
    if output_type == "pil":
        pictures = [
            DiffusionPipeline.numpy_to_pil(clip / 255) for clip in (data if data.ndim == 5 else [data])
        ]
        return pictures if data.ndim == 5 else pictures[0]
    floats = data.astype(np.float32) / 255
    return torch.from_numpy(floats).movedim(-1, -3) if output_type == "pt" else floats
