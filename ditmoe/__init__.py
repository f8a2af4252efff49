"""Diffusion transformers with mixtures of experts for images, point clouds and short videos."""

from typing import TYPE_CHECKING

from ditmoe.lazy import lazily

if TYPE_CHECKING:
    from ditmoe.model import DiTMoE
    from ditmoe.pipelines import Pipeline
    from ditmoe.pretrained import load

__all__ = ["DiTMoE", "Pipeline", "__version__", "load"]
__version__ = "0.1.0"
__getattr__ = lazily(
    __name__,
    {"ditmoe.model": ["DiTMoE"], "ditmoe.pipelines": ["Pipeline"], "ditmoe.pretrained": ["load"]},
)
