"""Cost estimates of a model before it is built: parameters, multiply-adds, memory, communication."""

from ditmoe.cost.communication import Machine, Measured, Spread, traffic
from ditmoe.cost.flops import Counts, count
from ditmoe.cost.memory import sampling_memory, training_memory

__all__ = [
    "Counts",
    "Machine",
    "Measured",
    "Spread",
    "count",
    "sampling_memory",
    "traffic",
    "training_memory",
]
