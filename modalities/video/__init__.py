"""Short videos: spacetime patches of latents (Sora), a causal autoencoder, clips that are read exactly."""

from modalities.video.adapter import Video
from modalities.video.codec.autoencoder import Autoencoder
from modalities.video.codec.causal_patches import CausalPatches
from modalities.video.data.dataset import Clips
from modalities.video.metrics.evaluation import evaluate_videos
from modalities.video.tokens import SpacetimeTokens

__all__ = [
    "Autoencoder",
    "CausalPatches",
    "Clips",
    "SpacetimeTokens",
    "Video",
    "evaluate_videos",
]
