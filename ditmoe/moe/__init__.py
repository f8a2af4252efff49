"""Mixture of experts: routings (assignments of tokens to experts), the experts, their layer, and the routers."""

from ditmoe.moe.base import Base
from ditmoe.moe.batch_pool import BatchPool
from ditmoe.moe.diff_moe import DiffMoE
from ditmoe.moe.expert_choice import ExpertChoice
from ditmoe.moe.expert_memory import Traffic
from ditmoe.moe.expert_race import ExpertRace
from ditmoe.moe.experts import Experts, Rows
from ditmoe.moe.layer import MoE
from ditmoe.moe.mixture_of_tokens import MixtureOfTokens
from ditmoe.moe.promoe import ProMoE
from ditmoe.moe.relu import ReLU
from ditmoe.moe.router import Context, Place, Router
from ditmoe.moe.routing import Loss, Routing
from ditmoe.moe.sinkhorn import Sinkhorn
from ditmoe.moe.soft import Soft, SoftRouting
from ditmoe.moe.time_aware import TimeAware
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
    "MixtureOfTokens",
    "MoE",
    "Place",
    "ProMoE",
    "ReLU",
    "Router",
    "Routing",
    "Rows",
    "Sinkhorn",
    "Soft",
    "SoftRouting",
    "TimeAware",
    "TimestepExperts",
    "TokenChoice",
    "Traffic",
]
