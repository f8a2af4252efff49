"""Short videos: spacetime patches of latents (Sora), a causal autoencoder, clips that are read exactly."""

from modalities.video.adapter import Video
from modalities.video.metric import evaluate_videos

__all__ = ["Video", "evaluate_videos"]
