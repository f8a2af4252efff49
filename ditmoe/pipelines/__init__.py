"""Diffusers pipelines of ditmoe models; opening a pipeline's folder executes nothing in it."""

from typing import TYPE_CHECKING

from ditmoe.lazy import lazily

if TYPE_CHECKING:
    from ditmoe.pipelines.components import Memory, ModelMixin, Transformer
    from ditmoe.pipelines.output import Output
    from ditmoe.pipelines.pipeline import DiTMoEPipeline, Pipeline

__all__ = ["DiTMoEPipeline", "Memory", "ModelMixin", "Output", "Pipeline", "Transformer"]
__getattr__ = lazily(  # diffusers
    __name__,
    {
        "ditmoe.pipelines.components": ["Memory", "ModelMixin", "Transformer"],
        "ditmoe.pipelines.output": ["Output"],
        "ditmoe.pipelines.pipeline": ["DiTMoEPipeline", "Pipeline"],
    },
)
