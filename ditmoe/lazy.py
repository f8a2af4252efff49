"""Lazy re-exports: names that a module imports from others on first access."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazily(module: str, places: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Make a module's `__getattr__`, so that importing it does not import torch, Hydra or diffusers.

    Args:
        module: its name.
        places: the defining modules, each with the names re-exported from it.
    """
    place_of = {name: place for place, names in places.items() for name in names}

    def get(name: str) -> Any:
        if name not in place_of:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(import_module(place_of[name]), name)

    return get
