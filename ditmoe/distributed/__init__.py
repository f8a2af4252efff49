"""Who else is there: the processes of a run, and what they tell each other."""

from ditmoe.distributed.launch import say
from ditmoe.distributed.ranks import ALONE, Ranks, is_spread, local, whole

__all__ = [
    "ALONE",
    "Ranks",
    "is_spread",
    "local",
    "say",
    "whole",
]
