"""The backbone: a diffusion transformer with mixtures of experts, its masked variant, and how one model starts
from another.
"""

from ditmoe.model.backbone import DiTMoE
from ditmoe.model.block import Block
from ditmoe.model.initialization import initialize_layers
from ditmoe.model.low_memory import LowMemory, num_parameters
from ditmoe.model.masked import MaskedDiTMoE
from ditmoe.model.mup import Widths, set_base
from ditmoe.model.parameters import Parameter, parameters_of
from ditmoe.model.step_embedding import StepEmbedding
from ditmoe.model.upcycling import transfer

__all__ = [
    "Block",
    "DiTMoE",
    "LowMemory",
    "MaskedDiTMoE",
    "Parameter",
    "StepEmbedding",
    "Widths",
    "initialize_layers",
    "num_parameters",
    "parameters_of",
    "set_base",
    "transfer",
]
