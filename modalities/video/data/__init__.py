"""Video data sets: listings, folders, the built-in moving digits."""

from modalities.video.data.dataset import Clips
from modalities.video.data.moving_digits import MovingDigits
from modalities.video.data.native_clips import NativeClips

__all__ = [
    "Clips",
    "MovingDigits",
    "NativeClips",
]
