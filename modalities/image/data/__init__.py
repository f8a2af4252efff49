"""Image data sets: listings, folders, archives."""

from modalities.image.data.dataset import Pictures

__all__ = [
    "Pictures",
]
