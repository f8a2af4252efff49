"""Images: 2-D latents of a codec, and FID with a documented protocol."""

from modalities.image.adapter import Image
from modalities.image.codec import Autoencoder
from modalities.image.data.dataset import Pictures
from modalities.image.metrics.evaluation import evaluate_images
from modalities.image.tokens import LatentTokens

__all__ = [
    "Autoencoder",
    "Image",
    "LatentTokens",
    "Pictures",
    "evaluate_images",
]
