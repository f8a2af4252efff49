"""From YAML to objects: what builds them, what is trusted, and what all commands share."""

from ditmoe.config.build import Restored

__all__ = [
    "Restored",
]
