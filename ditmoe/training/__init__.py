"""Training: the loop, batches, EMA, gradient clipping, distillation, logs and checkpoints."""

from ditmoe.training.batch import Batch
from ditmoe.training.computing import repeat_exactly
from ditmoe.training.distillation import Distillation, Teaching
from ditmoe.training.ema import EMA
from ditmoe.training.grad_guard import Guard
from ditmoe.training.options import Options
from ditmoe.training.parameter_groups import ParameterGroups
from ditmoe.training.run_log import Recorder
from ditmoe.training.signals import Stop
from ditmoe.training.trainer import Trainer

__all__ = [
    "EMA",
    "Batch",
    "Distillation",
    "Guard",
    "Options",
    "ParameterGroups",
    "Recorder",
    "Stop",
    "Teaching",
    "Trainer",
    "repeat_exactly",
]
