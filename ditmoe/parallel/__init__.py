"""How a model lies on many devices: copies, shards (FSDP2) and spread experts."""

from ditmoe.parallel.expert_parallel import Exchange
from ditmoe.parallel.mesh import Mesh, gradient_norm

__all__ = [
    "Exchange",
    "Mesh",
    "gradient_norm",
]
