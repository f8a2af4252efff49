"""Distribution of a model over devices: replication, sharding (FSDP2) and expert parallelism."""

from ditmoe.parallel.expert_parallel import Exchange
from ditmoe.parallel.mesh import Mesh, gradient_norm

__all__ = [
    "Exchange",
    "Mesh",
    "gradient_norm",
]
