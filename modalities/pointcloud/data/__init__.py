"""Where clouds come from: catalogues, files, and what a person's own shapes become."""

from modalities.pointcloud.data.dataset import Clouds

__all__ = [
    "Clouds",
]
