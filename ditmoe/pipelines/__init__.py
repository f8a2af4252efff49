"""A model as a pipeline of diffusers, in a folder of which nothing is executed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditmoe.pipelines.components import Memory, ModelMixin, Transformer
    from ditmoe.pipelines.pipeline import Output, Pipeline

_LAZY = {  # they need diffusers, which importing this room should not bring
    "Memory": "components",
    "ModelMixin": "components",
    "Transformer": "components",
    "Output": "pipeline",
    "Pipeline": "pipeline",
}

__all__ = [
    "Memory",
    "ModelMixin",
    "Output",
    "Pipeline",
    "Transformer",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
