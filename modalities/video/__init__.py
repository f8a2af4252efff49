"""Short videos: spacetime patches of latents (Sora), a causal autoencoder, frame-exact reading."""

from typing import TYPE_CHECKING

from ditmoe.lazy import lazily

if TYPE_CHECKING:
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
__getattr__ = lazily(
    __name__,
    {
        "modalities.video.adapter": ["Video"],
        "modalities.video.codec.autoencoder": ["Autoencoder"],
        "modalities.video.codec.causal_patches": ["CausalPatches"],
        "modalities.video.data.dataset": ["Clips"],
        "modalities.video.metrics.evaluation": ["evaluate_videos"],
        "modalities.video.tokens": ["SpacetimeTokens"],
    },
)
