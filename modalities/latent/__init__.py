"""What images and videos share: codecs, latents on disk, native sizes and proportions."""

from modalities.latent.adapter import LatentModality
from modalities.latent.autoencoder import Published
from modalities.latent.codec import Codec, Identity, PatchPCA
from modalities.latent.packing import Packing

__all__ = [
    "Codec",
    "Identity",
    "LatentModality",
    "Packing",
    "PatchPCA",
    "Published",
]
