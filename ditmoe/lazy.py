"""Names that a module lends and others define: each is imported when it is first asked for."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazily(module: str, places: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """What a module has for `__getattr__`, so that importing it does not bring torch, Hydra or diffusers.

    Args:
        module: its name.
        places: the modules that define what it lends, and the names in each.
    """
    place_of = {name: place for place, names in places.items() for name in names}

    def get(name: str) -> Any:
        if name not in place_of:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(import_module(place_of[name]), name)

    return get
