"""Video codecs: the built-in causal autoencoder, and published ones."""

from modalities.video.codec.autoencoder import Autoencoder
from modalities.video.codec.causal_patches import CausalPatches

__all__ = [
    "Autoencoder",
    "CausalPatches",
]
