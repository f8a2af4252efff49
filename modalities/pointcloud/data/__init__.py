"""Point-cloud data sets: listings, file formats, and the preparation of a user's own shapes."""

from typing import TYPE_CHECKING

from ditmoe.lazy import lazily

if TYPE_CHECKING:
    from modalities.pointcloud.data.dataset import Clouds

__all__ = [
    "Clouds",
]
__getattr__ = lazily(
    __name__,
    {
        "modalities.pointcloud.data.dataset": ["Clouds"],
    },
)
