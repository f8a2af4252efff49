"""The processes of a run and their communication."""

from typing import TYPE_CHECKING

from ditmoe.distributed.launch import say
from ditmoe.lazy import lazily

if TYPE_CHECKING:
    from ditmoe.distributed.ranks import ALONE, Ranks, is_spread, local, whole

__all__ = ["ALONE", "Ranks", "is_spread", "local", "say", "whole"]
__getattr__ = lazily(__name__, {"ditmoe.distributed.ranks": __all__})  # torch
