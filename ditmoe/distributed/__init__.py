"""Who else is there: the processes of a run, and what they tell each other."""

from typing import TYPE_CHECKING, Any

from ditmoe.distributed.launch import say

if TYPE_CHECKING:
    from ditmoe.distributed.ranks import ALONE, Ranks, is_spread, local, whole

__all__ = [
    "ALONE",
    "Ranks",
    "is_spread",
    "local",
    "say",
    "whole",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # they need torch, which a mistake on the command line should not wait for
        from ditmoe.distributed import ranks

        return getattr(ranks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
