"""Diffusion transformers with mixtures of experts for images, point clouds and short videos."""

from typing import TYPE_CHECKING, Any

from ditmoe.model import DiTMoE

if TYPE_CHECKING:
    from ditmoe.pipelines import Pipeline
    from ditmoe.pretrained import load

__all__ = ["DiTMoE", "Pipeline", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":  # it needs Hydra, which importing ditmoe alone should not bring
        from ditmoe.pretrained import load

        return load
    if name == "Pipeline":  # and diffusers
        from ditmoe.pipelines import Pipeline

        return Pipeline
    raise AttributeError(f"module 'ditmoe' has no attribute {name!r}")
