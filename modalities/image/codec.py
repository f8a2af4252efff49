"""Published image autoencoders of diffusers, behind one interface."""

from os import PathLike

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modalities.latent import Published


class Autoencoder(Published):
    """A diffusers image autoencoder: AutoencoderKL (SD, SDXL, SD3, Flux), AutoencoderTiny, AutoencoderDC."""

    known = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
    stride = (1, 1)  # until a trial run determines it

    def __init__(self, path: str | PathLike | nn.Module, subfolder: str | None = None) -> None:
        super().__init__(path, subfolder)
        self.pixel_channels = self.model.config.get("in_channels", 3)
        raw = self._raw(torch.zeros(1, self.pixel_channels, 64, 64))
        self.channels, self.stride = raw.shape[1], (64 // raw.shape[2], 64 // raw.shape[3])

    def _raw(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L h w"]:
        return self.modes(x)

    def _pixels(self, raw: Float[Tensor, "B L h w"]) -> Float[Tensor, "B C H W"]:
        return self.model.decode(raw).sample
