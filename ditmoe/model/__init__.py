"""The backbone: a diffusion transformer with mixtures of experts, its masked variant, and how one model starts
from another.
"""

from ditmoe.model.backbone import ATTENTION, DiTMoE
from ditmoe.model.block import Block, FinalLayer
from ditmoe.model.initialization import initialize_layers
from ditmoe.model.low_memory import LowMemory, num_parameters, size_of
from ditmoe.model.masked import MaskedDiTMoE
from ditmoe.model.mup import Widths, set_base
from ditmoe.model.parameters import Parameter, parameters_of
from ditmoe.model.step_embedding import StepEmbedding
from ditmoe.model.upcycling import Transfer, transfer

__all__ = [
    "ATTENTION",
    "Block",
    "DiTMoE",
    "FinalLayer",
    "LowMemory",
    "MaskedDiTMoE",
    "Parameter",
    "StepEmbedding",
    "Transfer",
    "Widths",
    "initialize_layers",
    "num_parameters",
    "parameters_of",
    "set_base",
    "size_of",
    "transfer",
]
