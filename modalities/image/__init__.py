"""Images: 2-D latents of a codec, and FID that says what it is."""

from modalities.image.adapter import Image
from modalities.image.metric import evaluate_images

__all__ = ["Image", "evaluate_images"]
