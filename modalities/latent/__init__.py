"""What images and clips share: codecs, latents on disk, samples at their own sizes."""

from modalities.latent.adapter import LatentModality
from modalities.latent.autoencoder import Published
from modalities.latent.codec import Codec, Identity, PatchPCA
from modalities.latent.latent_cache import Latents
from modalities.latent.packing import Packing

__all__ = [
    "Codec",
    "Identity",
    "LatentModality",
    "Latents",
    "Packing",
    "PatchPCA",
    "Published",
]
