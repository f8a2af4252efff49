"""From YAML to objects: what builds them, what is trusted, and what all commands share."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditmoe.config.restore import Restored

__all__ = [
    "Restored",
]


def __getattr__(name: str) -> Any:
    if name == "Restored":  # it needs torch, which a mistake on the command line should not wait for
        from ditmoe.config.restore import Restored

        return Restored
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
