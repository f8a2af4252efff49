"""Published weights: what they are, how they become ours, and the folders that hold them."""

from ditmoe.pretrained.conversion import convert_file
from ditmoe.pretrained.start import Upcycling
from ditmoe.pretrained.weights import load

__all__ = [
    "Upcycling",
    "convert_file",
    "load",
]
