"""Mixture of experts: who goes where (a routing), the experts, the layer around them, and the routers."""

from ditmoe.moe.assignment import Base, Sinkhorn
from ditmoe.moe.diff_moe import DiffMoE
from ditmoe.moe.expert_choice import ExpertChoice
from ditmoe.moe.experts import Experts
from ditmoe.moe.layer import MoE
from ditmoe.moe.pool import BatchPool, ExpertRace
from ditmoe.moe.relu import ReLU
from ditmoe.moe.routing import Context, Loss, Place, Router, Routing
from ditmoe.moe.soft import Soft
from ditmoe.moe.timestep import TimestepExperts
from ditmoe.moe.token_choice import TokenChoice

__all__ = [
    "Base",
    "BatchPool",
    "Context",
    "DiffMoE",
    "ExpertChoice",
    "ExpertRace",
    "Experts",
    "Loss",
    "MoE",
    "Place",
    "ReLU",
    "Router",
    "Routing",
    "Sinkhorn",
    "Soft",
    "TimestepExperts",
    "TokenChoice",
]
