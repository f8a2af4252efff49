"""Diffusion transformers with mixtures of experts for images, point clouds and short videos."""

from ditmoe.model import DiTMoE

__all__ = ["DiTMoE", "__version__"]
__version__ = "0.1.0"
