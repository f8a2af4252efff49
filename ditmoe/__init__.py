"""Diffusion transformers with mixtures of experts for images, point clouds and short videos."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditmoe.model import DiTMoE
    from ditmoe.pipelines import Pipeline
    from ditmoe.pretrained import load

_LAZY = {  # they need torch, Hydra and diffusers, for which a mistake on the command line should not wait
    "DiTMoE": "model",
    "Pipeline": "pipelines",
    "load": "pretrained",
}

__all__ = ["DiTMoE", "Pipeline", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
