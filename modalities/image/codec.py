"""Published image autoencoders of diffusers, whose differing interfaces end here."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modalities.codec import Codec

KNOWN = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")


class Autoencoder(Codec):
    """An image autoencoder of diffusers: AutoencoderKL (SD, SDXL, SD3, Flux), AutoencoderTiny, AutoencoderDC.

        z = (raw - mean) scale / deviation

    with latents_mean and latents_std of its configuration per channel where it has them, else its shift_factor and
    scaling_factor. Where it has a posterior, its mode is taken: encoding has no randomness.

    Args:
        path: a folder that `save_pretrained` wrote, a name on the Hugging Face hub, or the loaded model itself.
        subfolder: of it ("vae" in a pipeline's folder).

    Raises:
        ValueError: if it is no such autoencoder or cannot be had.
    """

    mean: Tensor
    scale: Tensor
    model: Any

    def __init__(self, path: str | nn.Module, subfolder: str | None = None) -> None:
        super().__init__()
        model: Any = _load(path, subfolder) if isinstance(path, str) else path
        self.model, config = model.eval().requires_grad_(False), model.config
        self.pixel_channels = config.get("in_channels", 3)
        raw = self._raw(torch.zeros(1, self.pixel_channels, 64, 64))
        self.channels, self.stride = raw.shape[1], (64 // raw.shape[2], 64 // raw.shape[3])
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        self.register_buffer("mean", _per_channel(config.get("shift_factor") if mean is None else mean, 0.0))
        scale = _per_channel(config.get("scaling_factor"), 1.0) / _per_channel(deviation, 1.0)
        self.register_buffer("scale", scale)

    def encode(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L h w"]:
        self.shape(x.shape[2:])
        return (self._raw(x).to(x) - self.mean) * self.scale

    def decode(self, z: Float[Tensor, "B L h w"]) -> Float[Tensor, "B C H W"]:
        raw = (z / self.scale + self.mean).to(self._place(), self.model.dtype)
        with torch.no_grad():
            return self.model.decode(raw).sample.to(z)

    def _raw(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L h w"]:
        with torch.no_grad():
            out = self.model.encode(x.to(self._place(), self.model.dtype))
        if hasattr(out, "latent_dist"):
            return out.latent_dist.mode()
        return out.latents if hasattr(out, "latents") else out.latent

    def _place(self) -> torch.device:
        """Where the model works; offloaded by a pipeline, it lies elsewhere until it does."""
        return getattr(getattr(self.model, "_hf_hook", None), "execution_device", None) or self.model.device


def _load(path: str, subfolder: str | None) -> Any:
    import diffusers

    options = {"subfolder": subfolder} if subfolder else {}
    try:
        name = diffusers.AutoencoderKL.load_config(path, **options).get("_class_name")
        if name in KNOWN:
            return getattr(diffusers, name).from_pretrained(
                path, use_safetensors=True, low_cpu_mem_usage=False, **options
            )
    except (OSError, ValueError) as error:
        where = Path(path, subfolder or "")
        raise ValueError(
            f"codec.path must hold an autoencoder of diffusers, got {where}: {_first(error)}"
        ) from error
    raise ValueError(f"codec.path must hold one of {', '.join(KNOWN)}, got {path} with {name}")


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _per_channel(value: Any, default: float) -> Float[Tensor, "1 _ 1 1"]:
    return torch.tensor(default if value is None else value, dtype=torch.float32).reshape(1, -1, 1, 1)
