"""Where clouds come from: catalogues, files, and what a person's own shapes become."""

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
