"""Published weights: recognition, conversion, and the folders of converted weights."""

from ditmoe.pretrained.conversion import convert_file
from ditmoe.pretrained.start import Upcycling
from ditmoe.pretrained.training_words import words_to_start_from
from ditmoe.pretrained.weights import load

__all__ = [
    "Upcycling",
    "convert_file",
    "load",
    "words_to_start_from",
]
