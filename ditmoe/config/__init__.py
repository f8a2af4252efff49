"""Configuration: building objects from YAML, trust in foreign configurations, and what all commands share."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditmoe.config.restore import Restored

__all__ = [
    "Restored",
]


def __getattr__(name: str) -> Any:
    if name == "Restored":  # imports torch; errors on the command line are reported without it
        from ditmoe.config.restore import Restored

        return Restored
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
