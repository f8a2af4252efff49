"""Published weights: what they are, how they become ours, and the folders that hold them."""

from ditmoe.pretrained.conversion import convert_file
from ditmoe.pretrained.weights import load

__all__ = [
    "convert_file",
    "load",
]
