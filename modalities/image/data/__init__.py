"""Where pictures come from: catalogues, folders, shards."""

from modalities.image.data.dataset import Pictures

__all__ = [
    "Pictures",
]
